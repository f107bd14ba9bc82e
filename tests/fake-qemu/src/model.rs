//! A model of a machine's CPUs, and what a QEMU would answer.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::thread::Parked;

/// A machine of hotpluggable entities: a CPU each on x86, a core of several on pseries.
pub struct Model {
    /// QEMU's name of what it emulates.
    pub target: &'static str,
    driver: &'static str,
    /// How many vCPUs an entity has.
    width: usize,
    slots: Vec<Slot>,
    plugged: u64,
    /// Ids that devices have, CPUs or others.
    pub ids: BTreeSet<String>,
    /// What becomes of `device_del`.
    pub removal: Removal,
    /// Whose threads run the vCPUs.
    pub threads: Threads,
    /// QEMU's word for the run state.
    pub status: &'static str,
    /// What it was asked for though it was so already.
    superfluous: Vec<String>,
}

/// What a guest does when it is asked to give up a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It gives it up at once.
    Willing,
    /// It takes its time.
    Held,
}

/// Whose threads QEMU names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The peer's own.
    Own,
    /// Those of a process that is not the peer.
    Foreign,
}

/// A command as the peer got it.
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

/// A process that is not the test, and has one thread of its PID.
const OTHER_PROCESS: u32 = 1;

impl Call {
    /// The reply that says it was done.
    pub fn reply(&self, value: Value) -> Value {
        json!({"return": value, "id": self.id})
    }

    /// The reply that says it was not.
    pub fn refusal(&self, text: &str) -> Value {
        json!({"error": {"class": "GenericError", "desc": text}, "id": self.id})
    }
}

impl Model {
    /// A PC with `present` of `max` CPUs, which are entities of one vCPU each.
    pub fn x86(present: usize, max: usize) -> Self {
        let props = |n| json!({"socket-id": n, "core-id": 0, "thread-id": 0});
        Self::new("x86_64", "qemu64-x86_64-cpu", 1, present, max, props)
    }

    /// A pseries machine with `present` of `max` cores of four vCPUs each.
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
            superfluous: Vec::new(),
        };
        for n in 0..present {
            model.insert(n, format!("/machine/unattached/device[{n}]"));
        }
        model
    }

    /// What it was asked for though it was so already, or by a name that something else has.
    pub fn superfluous(&self) -> &[String] {
        &self.superfluous
    }

    /// Plugs entity `n` with `id`, as another QMP client would.
    pub fn plug(&mut self, n: usize, id: &str) {
        self.ids.insert(id.to_owned());
        self.insert(n, format!("/machine/peripheral/{id}"));
    }

    /// Takes entity `n` away. Returns its QOM path.
    pub fn unplug(&mut self, n: usize) -> String {
        let gone = self.slots[n].plugged.take().expect("it is plugged in");
        if let Some(id) = gone.path.strip_prefix("/machine/peripheral/") {
            self.ids.remove(id);
        }
        gone.path
    }

    /// The QOM path of entity `n`, which is plugged in.
    pub fn path(&self, n: usize) -> String {
        let plugged = self.slots[n].plugged.as_ref().expect("it is plugged in");
        plugged.path.clone()
    }

    /// The entity at the QOM path `path`.
    pub fn at(&self, path: &str) -> Option<usize> {
        let is_there = |slot: &Slot| slot.plugged.as_ref().is_some_and(|p| p.path == path);
        self.slots.iter().position(is_there)
    }

    /// The host threads of entity `n`.
    pub fn threads_of(&self, n: usize) -> Vec<u32> {
        let plugged = self.slots[n].plugged.as_ref();
        plugged.map_or_else(Vec::new, |plugged| plugged.threads.clone())
    }

    fn insert(&mut self, n: usize, path: String) {
        assert!(self.slots[n].plugged.is_none(), "entity {n} is there");
        let parked: Vec<Parked> = (0..self.width).map(|_| Parked::start()).collect();
        self.plugged += 1;
        self.slots[n].plugged = Some(Plugged {
            path,
            order: self.plugged,
            threads: parked.iter().map(Parked::id).collect(),
            _parked: parked,
        });
    }

    /// What QEMU sends when it is asked `call`: its reply, and events.
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
                };
                json!({
                    "cpu-index": n * self.width + i, "qom-path": path, "thread-id": thread,
                    "props": slot.props, "target": self.target,
                })
            })
        });
        entries.collect()
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

/// `DEVICE_DELETED` of what was at `path`.
pub fn deleted(path: &str) -> Value {
    let mut data = json!({"path": path});
    if let Some(id) = path.strip_prefix("/machine/peripheral/")
        && !id.contains('/')
    {
        data["device"] = id.into();
    }
    event("DEVICE_DELETED", data)
}

/// `ACPI_DEVICE_OST` for CPU slot `slot`, with the `device` where QEMU names it.
pub fn ost(slot: usize, device: Option<&str>, source: u32, status: u32) -> Value {
    let mut info = json!({
        "slot-type": "CPU", "slot": slot.to_string(), "source": source, "status": status,
    });
    if let Some(device) = device {
        info["device"] = device.into();
    }
    event("ACPI_DEVICE_OST", json!({"info": info}))
}

/// The event `name` with `data`.
pub fn event(name: &str, data: Value) -> Value {
    let timestamp = json!({"seconds": 1_795_231_039, "microseconds": 42});
    json!({"event": name, "data": data, "timestamp": timestamp})
}

/// The UUID of every scripted machine.
pub const UUID: &str = "c0ffee00-1234-4abc-8def-0123456789ab";

const COMMANDS: &[&str] = &[
    "device_add",
    "device_del",
    "qmp_capabilities",
    "query-commands",
    "query-cpus-fast",
    "query-hotpluggable-cpus",
    "query-kvm",
    "query-status",
    "query-target",
    "query-uuid",
    "query-version",
];
