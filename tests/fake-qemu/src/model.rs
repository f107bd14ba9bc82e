//! A model of the CPUs of a machine, with the replies of QEMU.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::thread::Parked;

/// A machine with hotplug slots: a CPU each on x86, a core of several on pseries.
pub struct Model {
    /// The architecture, as QEMU names it.
    pub target: &'static str,
    driver: &'static str,
    /// The number of vCPUs in a slot.
    width: usize,
    slots: Vec<Slot>,
    plugged: u64,
    /// The ids of all devices, CPUs and others.
    pub ids: BTreeSet<String>,
    /// The effect of `device_del`.
    pub removal: Removal,
    /// The threads in the replies.
    pub threads: Threads,
    /// The run state, as QEMU names it.
    pub status: &'static str,
    /// The CPUs that the guest starts.
    pub starts: Starts,
    /// How often the exits of CPUs were queried. Those of started CPUs grow with it.
    looks: u64,
    /// The reply to `query-stats` about all vCPUs.
    pub stats: Value,
    /// Commands that had nothing to do.
    superfluous: Vec<String>,
}

/// The reaction of the guest to the removal of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The guest releases the CPU at once.
    Willing,
    /// The guest keeps the CPU until the test removes it.
    Held,
}

/// The CPUs that the guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Starts {
    /// All present CPUs, at once.
    All,
    /// None.
    None,
}

/// The threads that QEMU names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// Threads of the peer.
    Own,
    /// Threads of the process 1.
    Foreign,
    /// The main thread of this process, and numbers above it.
    Of(u32),
}

/// A command that the peer received.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The name of the command.
    pub command: String,
    /// Its arguments; null without any.
    pub arguments: Value,
    /// The id that the reply must have.
    pub id: Value,
}

struct Slot {
    props: Map<String, Value>,
    plugged: Option<Plugged>,
}

struct Plugged {
    path: String,
    order: u64,
    threads: Vec<u32>,
    _parked: Vec<Parked>,
}

/// The PID and the thread of a process other than the test.
const OTHER_PROCESS: u32 = 1;

impl Call {
    /// Returns the reply to a command that succeeded.
    pub fn reply(&self, value: Value) -> Value {
        json!({"return": value, "id": self.id})
    }

    /// Returns the reply to a command that failed.
    pub fn refusal(&self, text: &str) -> Value {
        json!({"error": {"class": "GenericError", "desc": text}, "id": self.id})
    }
}

impl Model {
    /// Returns a PC with `present` of `max` slots of one vCPU each.
    pub fn x86(present: usize, max: usize) -> Self {
        let props = |n| json!({"socket-id": n, "core-id": 0, "thread-id": 0});
        Self::new("x86_64", "qemu64-x86_64-cpu", 1, present, max, props)
    }

    /// Returns a pseries machine with `present` of `max` cores of four vCPUs each.
    pub fn pseries(present: usize, max: usize) -> Self {
        let props = |n| json!({"core-id": 4 * n});
        Self::new(
            "ppc64",
            "power10_v2.0-spapr-cpu-core",
            4,
            present,
            max,
            props,
        )
    }

    fn new(
        target: &'static str,
        driver: &'static str,
        width: usize,
        present: usize,
        max: usize,
        props: impl Fn(usize) -> Value,
    ) -> Self {
        let slot = |n| Slot {
            props: props(n).as_object().expect("an object").clone(),
            plugged: None,
        };
        let mut model = Self {
            target,
            driver,
            width,
            slots: (0..max).map(slot).collect(),
            plugged: 0,
            ids: BTreeSet::new(),
            removal: Removal::Willing,
            threads: Threads::Own,
            status: "running",
            starts: Starts::All,
            looks: 0,
            stats: json!([]),
            superfluous: Vec::new(),
        };
        for n in 0..present {
            model.insert(n, format!("/machine/unattached/device[{n}]"));
        }
        model
    }

    /// Returns the commands that had nothing to do, or used the id of another device.
    pub fn superfluous(&self) -> &[String] {
        &self.superfluous
    }

    /// Plugs slot `n` with `id`, as another QMP client would.
    pub fn plug(&mut self, n: usize, id: &str) {
        self.ids.insert(id.to_owned());
        self.insert(n, format!("/machine/peripheral/{id}"));
    }

    /// Unplugs slot `n`. Returns its QOM path.
    pub fn unplug(&mut self, n: usize) -> String {
        let gone = self.slots[n].plugged.take().expect("it is plugged");
        if let Some(id) = gone.path.strip_prefix("/machine/peripheral/") {
            self.ids.remove(id);
        }
        gone.path
    }

    /// Returns the QOM path of slot `n`, which is plugged.
    pub fn path(&self, n: usize) -> String {
        let plugged = self.slots[n].plugged.as_ref().expect("it is plugged");
        plugged.path.clone()
    }

    /// Returns the slot at the QOM path `path`.
    pub fn at(&self, path: &str) -> Option<usize> {
        let is_there = |slot: &Slot| slot.plugged.as_ref().is_some_and(|p| p.path == path);
        self.slots.iter().position(is_there)
    }

    /// Returns the host threads of slot `n`.
    pub fn threads_of(&self, n: usize) -> Vec<u32> {
        let plugged = self.slots[n].plugged.as_ref();
        plugged.map_or_else(Vec::new, |plugged| plugged.threads.clone())
    }

    fn insert(&mut self, n: usize, path: String) {
        assert!(self.slots[n].plugged.is_none(), "slot {n} is plugged");
        let parked: Vec<Parked> = (0..self.width).map(|_| Parked::start()).collect();
        self.plugged += 1;
        self.slots[n].plugged = Some(Plugged {
            path,
            order: self.plugged,
            threads: parked.iter().map(Parked::id).collect(),
            _parked: parked,
        });
    }

    /// Returns the messages of QEMU after `call`: the reply, and events.
    pub fn answer(&mut self, call: &Call) -> Vec<Value> {
        let value = match call.command.as_str() {
            "qmp_capabilities" => json!({}),
            "query-commands" => COMMANDS.iter().map(|name| json!({"name": name})).collect(),
            "query-version" => json!({
                "qemu": {"major": 10, "minor": 0, "micro": 2}, "package": "",
            }),
            "query-uuid" => json!({"UUID": UUID}),
            "query-target" => json!({"arch": self.target}),
            "query-kvm" => json!({"enabled": true, "present": true}),
            "query-status" => json!({"status": self.status, "running": true}),
            "query-hotpluggable-cpus" => self.hotpluggable(),
            "query-cpus-fast" => self.cpus(),
            "query-stats" if call.arguments.get("vcpus").is_some() => self.exits(&call.arguments),
            "query-stats" => self.stats.clone(),
            "device_add" => return self.device_add(call),
            "device_del" => return self.device_del(call),
            other => return vec![call.refusal(&format!("The command {other} has not been found"))],
        };
        vec![call.reply(value)]
    }

    fn hotpluggable(&self) -> Value {
        let entry = |slot: &Slot| {
            let mut entry = json!({
                "type": self.driver, "vcpus-count": self.width, "props": slot.props,
            });
            if let Some(plugged) = &slot.plugged {
                entry["qom-path"] = plugged.path.as_str().into();
            }
            entry
        };
        self.slots.iter().rev().map(entry).collect()
    }

    fn cpus(&self) -> Value {
        let mut there: Vec<(usize, &Slot, &Plugged)> = self
            .slots
            .iter()
            .enumerate()
            .filter_map(|(n, slot)| Some((n, slot, slot.plugged.as_ref()?)))
            .collect();
        there.sort_by_key(|(_, _, plugged)| plugged.order);
        let entries = there.into_iter().flat_map(|(n, slot, plugged)| {
            plugged.threads.iter().enumerate().map(move |(i, thread)| {
                let path = match self.width {
                    1 => plugged.path.clone(),
                    _ => format!("{}/thread[{i}]", plugged.path),
                };
                let thread = match self.threads {
                    Threads::Own => *thread,
                    Threads::Foreign => OTHER_PROCESS + n as u32,
                    Threads::Of(pid) => pid + n as u32,
                };
                json!({
                    "cpu-index": n * self.width + i, "qom-path": path, "thread-id": thread,
                    "props": slot.props, "target": self.target,
                })
            })
        });
        entries.collect()
    }

    /// Returns the exits of the CPUs that are asked for.
    fn exits(&mut self, asked: &Value) -> Value {
        assert_eq!(asked["target"], "vcpu");
        self.looks += 1;
        let exits = match self.starts {
            Starts::All => self.looks,
            Starts::None => 0,
        };
        let asked = asked["vcpus"].as_array().expect("a list");
        // QEMU lists the last one first.
        let rows = asked.iter().rev().map(|path| {
            json!({"provider": "kvm", "qom-path": path, "stats": [{"name": "exits", "value": exits}]})
        });
        rows.collect()
    }

    fn device_add(&mut self, call: &Call) -> Vec<Value> {
        let wanted = call.arguments.as_object().expect("it has arguments");
        let id = wanted["id"].as_str().expect("it has an id").to_owned();
        if self.ids.contains(&id) {
            return vec![self.refuse(call, &format!("Duplicate device ID '{id}'"))];
        }
        let place = |slot: &Slot| {
            slot.props
                .iter()
                .all(|(key, value)| wanted.get(key) == Some(value))
        };
        let Some(n) = self.slots.iter().position(place) else {
            return vec![call.refusal("Invalid CPU socket-id")];
        };
        if self.slots[n].plugged.is_some() || wanted["driver"] != self.driver {
            return vec![self.refuse(call, &format!("CPU[{n}] exists, or is of another type"))];
        }
        self.plug(n, &id);
        vec![call.reply(json!({}))]
    }

    fn refuse(&mut self, call: &Call, text: &str) -> Value {
        self.superfluous.push(format!("{}: {text}", call.command));
        call.refusal(text)
    }

    fn device_del(&mut self, call: &Call) -> Vec<Value> {
        let path = call.arguments["id"].as_str().expect("it has an id");
        let Some(n) = self.at(path) else {
            return vec![self.refuse(call, &format!("Device '{path}' not found"))];
        };
        if n == 0 {
            return vec![call.refusal("Boot CPU is unpluggable")];
        }
        match self.removal {
            Removal::Held => vec![call.reply(json!({}))],
            Removal::Willing => vec![call.reply(json!({})), deleted(&self.unplug(n))],
        }
    }
}

/// Returns `DEVICE_DELETED` for the device at `path`.
pub fn deleted(path: &str) -> Value {
    let mut data = json!({"path": path});
    if let Some(id) = path.strip_prefix("/machine/peripheral/")
        && !id.contains('/')
    {
        data["device"] = id.into();
    }
    event("DEVICE_DELETED", data)
}

/// Returns `ACPI_DEVICE_OST` for CPU slot `slot`, with the `device` if QEMU names it.
pub fn ost(slot: usize, device: Option<&str>, source: u32, status: u32) -> Value {
    let mut info = json!({
        "slot-type": "CPU", "slot": slot.to_string(), "source": source, "status": status,
    });
    if let Some(device) = device {
        info["device"] = device.into();
    }
    event("ACPI_DEVICE_OST", json!({"info": info}))
}

/// Returns the event `name` with `data`.
pub fn event(name: &str, data: Value) -> Value {
    let timestamp = json!({"seconds": 1_795_231_039, "microseconds": 42});
    json!({"event": name, "data": data, "timestamp": timestamp})
}

/// The UUID of every fake machine.
pub const UUID: &str = "c0ffee00-1234-4abc-8def-0123456789ab";

const COMMANDS: &[&str] = &[
    "device_add",
    "device_del",
    "qmp_capabilities",
    "query-commands",
    "query-cpus-fast",
    "query-hotpluggable-cpus",
    "query-kvm",
    "query-stats",
    "query-status",
    "query-target",
    "query-uuid",
    "query-version",
];
