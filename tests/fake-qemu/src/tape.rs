//! A recorded conversation, and the state of its machine while it is replayed.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::model::{Call, UUID};
use super::thread::Parked;

/// The next part of the recording.
#[derive(Clone, Debug)]
pub enum Next {
    /// Commands that were sent at once, with their replies.
    Commands(Vec<Command>),
    /// An event.
    Event,
    /// No client was connected for a while.
    Detached,
    /// The recording is over.
    End,
}

/// A recorded command.
#[derive(Clone, Debug)]
pub struct Command {
    /// The name of the command.
    pub name: String,
    /// The id and the properties of the CPU to plug, or the present path of the CPU to unplug.
    pub arguments: Map<String, Value>,
    /// The text of QEMU, if it refused the command.
    pub error: Option<String>,
    id: Value,
}

/// An event that was sent.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The name of the event.
    pub name: String,
    /// Its data.
    pub data: Value,
    /// The QOM paths of the CPUs that are not listed after the event.
    pub gone: Vec<String>,
}

/// The rest of a recording, and the present state of the machine.
pub(crate) struct Tape {
    pub(crate) head: Value,
    pub(crate) steps: VecDeque<Value>,
    pub(crate) slots: Vec<Slot>,
    /// CPUs that are present, in the order of plugging.
    pub(crate) plugged: Vec<Plugged>,
    pub(crate) status: String,
    /// The present id of each CPU by the recorded one.
    ids: HashMap<String, String>,
    /// Threads that stand for the recorded ones.
    threads: HashMap<u64, Parked>,
    /// The calls of the service that took the place of recorded commands, by the recorded id.
    taken: Vec<(Value, Call)>,
}

/// A slot, as QEMU lists it if it is free.
pub(crate) struct Slot(pub(crate) Value);

pub(crate) struct Plugged {
    /// The index of its slot; `None` if QEMU lists no slots.
    slot: Option<usize>,
    pub(crate) path: String,
    cpus: Vec<Value>,
}

impl Tape {
    pub(crate) fn read(name: &str) -> Self {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/conversations");
        let file = Path::new(directory).join(format!("{name}.jsonl"));
        let text = fs::read_to_string(&file);
        let text = text.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut lines = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("it is JSON"));
        let head = lines.next().expect("it has a machine");
        let mut tape = Self {
            status: head["status"].as_str().expect("a word").to_owned(),
            steps: lines.collect(),
            slots: Vec::new(),
            plugged: Vec::new(),
            ids: HashMap::new(),
            threads: HashMap::new(),
            taken: Vec::new(),
            head,
        };
        let listed = tape.head["hotpluggable"].as_array().cloned();
        let paths: Vec<Value> = listed
            .into_iter()
            .flatten()
            .map(|mut slot| {
                let path = slot.as_object_mut().expect("an object").remove("qom-path");
                tape.slots.push(Slot(slot));
                path.unwrap_or_default()
            })
            .collect();
        for mut cpu in tape.head["cpus"].as_array().cloned().unwrap_or_default() {
            let path = entity_of(cpu["qom-path"].as_str().expect("a path")).to_owned();
            cpu["thread-id"] = tape.thread(cpu["thread-id"].as_u64()).into();
            match tape.plugged.iter_mut().find(|there| there.path == path) {
                Some(there) => there.cpus.push(cpu),
                None => tape.plugged.push(Plugged {
                    slot: paths.iter().position(|there| *there == *path),
                    path,
                    cpus: vec![cpu],
                }),
            }
        }
        tape.check();
        tape
    }

    /// Returns the thread of this process in the place of `recorded`, or a new one for `None`.
    fn thread(&mut self, recorded: Option<u64>) -> u32 {
        if recorded.is_some() && self.head["leader"].as_u64() == recorded {
            return std::process::id();
        }
        let other = u64::MAX - self.threads.len() as u64;
        let thread = self.threads.entry(recorded.unwrap_or(other));
        thread.or_insert_with(Parked::start).id()
    }

    /// Returns the messages after `call`, or `None` if the model answers it.
    pub(crate) fn answer(&mut self, call: &Call) -> Option<Vec<Value>> {
        let version = &self.head["qemu"];
        let value = match call.command.as_str() {
            "query-version" => json!({
                "qemu": {"major": version[0], "minor": version[1], "micro": version[2]},
                "package": "",
            }),
            "query-target" => json!({"arch": self.head["target"]}),
            "query-kvm" => json!({"enabled": self.head["kvm"], "present": true}),
            "query-uuid" => json!({"UUID": UUID}),
            "query-status" => {
                json!({"status": self.status, "running": self.status == "running"})
            }
            "query-hotpluggable-cpus" => match &self.head["hotpluggable"] {
                Value::Object(error) => return Some(vec![json!({"error": error, "id": call.id})]),
                _ => self.hotpluggable(),
            },
            "query-cpus-fast" => match &self.head["cpus"] {
                Value::Object(error) => return Some(vec![json!({"error": error, "id": call.id})]),
                _ => {
                    let cpus = self.plugged.iter().flat_map(|cpu| cpu.cpus.clone());
                    cpus.collect()
                }
            },
            "device_add" | "device_del" => return Some(self.take(call)),
            _ => return None,
        };
        Some(vec![call.reply(value)])
    }

    fn hotpluggable(&self) -> Value {
        let entry = |(n, slot): (usize, &Slot)| {
            let mut entry = slot.0.clone();
            if let Some(cpu) = self.plugged.iter().find(|cpu| cpu.slot == Some(n)) {
                entry["qom-path"] = cpu.path.as_str().into();
            }
            entry
        };
        self.slots.iter().enumerate().map(entry).collect()
    }

    pub(crate) fn next(&self) -> Next {
        let Some(first) = self.steps.front() else {
            return Next::End;
        };
        if first.get("event").is_some() {
            return Next::Event;
        }
        if first.get("detached").is_some() {
            return Next::Detached;
        }
        let commands = self.steps.iter().map_while(|step| self.command(step));
        Next::Commands(commands.collect())
    }

    fn command(&self, step: &Value) -> Option<Command> {
        let name = step.get("execute")?.as_str()?.to_owned();
        let mut arguments = step["arguments"].as_object().cloned().unwrap_or_default();
        if name == "device_del" {
            let id = arguments["id"].as_str().expect("an id");
            let path = if id.starts_with('/') {
                id.to_owned()
            } else {
                format!("/machine/peripheral/{id}")
            };
            arguments.insert("id".into(), self.present_path(&path).into());
        }
        let id = step["id"].clone();
        let reply = self
            .steps
            .iter()
            .find(|reply| is_reply(reply) && reply["id"] == id);
        let reply = reply.unwrap_or_else(|| panic!("no reply to {step}"));
        let error = reply["error"]["desc"].as_str().map(str::to_owned);
        Some(Command {
            name,
            arguments,
            error,
            id,
        })
    }

    pub(crate) fn slot_of(&self, command: &Command) -> usize {
        let reply = self
            .steps
            .iter()
            .find(|reply| is_reply(reply) && reply["id"] == command.id);
        let slot = reply.and_then(|reply| reply["slot"].as_u64());
        slot.expect("it plugs an entity") as usize
    }

    /// Lets `call` of the service take the place of a recorded command. When the service has sent all
    /// commands that were sent at once, they get the recorded replies.
    fn take(&mut self, call: &Call) -> Vec<Value> {
        let Next::Commands(commands) = self.next() else {
            panic!("unexpected: {call:?}, next is {:?}", self.steps.front());
        };
        let is_same = |command: &&Command| {
            let is_free = self.taken.iter().all(|(id, _)| *id != command.id);
            let is_meant = match command.name.as_str() {
                "device_add" => {
                    let slot = &self.slots[self.slot_of(command)].0;
                    let props = slot["props"].as_object().expect("an object");
                    let mut props = props.iter();
                    call.arguments["driver"] == slot["type"]
                        && props.all(|(key, value)| call.arguments[key] == *value)
                }
                _ => call.arguments["id"] == command.arguments["id"],
            };
            is_free && command.name == call.command && is_meant
        };
        let command = commands.iter().find(is_same);
        let command = command.unwrap_or_else(|| panic!("unexpected: {call:?}, not {commands:?}"));
        if command.name == "device_add"
            && let Some(recorded) = command.arguments.get("id")
        {
            let id = call.arguments["id"].as_str().expect("an id").to_owned();
            let recorded = recorded.as_str().expect("an id").to_owned();
            self.ids.insert(recorded, id);
        }
        self.taken.push((command.id.clone(), call.clone()));
        if self.taken.len() < commands.len() {
            return Vec::new();
        }
        self.steps.drain(..commands.len());
        let taken = std::mem::take(&mut self.taken);
        self.play_replies(taken.into_iter().map(|(id, call)| (id, Some(call.id))))
            .0
    }

    pub(crate) fn by_another_client(&mut self) -> (Vec<Value>, Vec<Sent>) {
        let step = self.steps.pop_front().expect("a command is next");
        assert!(step.get("execute").is_some(), "{step}");
        if let Some(id) = step["arguments"]["id"].as_str()
            && step["execute"] == "device_add"
        {
            self.ids.insert(id.to_owned(), id.to_owned());
        }
        self.play_replies([(step["id"].clone(), None)].into_iter())
    }

    /// Plays up to the last reply to the commands `ids`. The second id is the id of the service's command,
    /// if the reply is for the service. Returns all messages to the service, and the events among them.
    fn play_replies(
        &mut self,
        ids: impl Iterator<Item = (Value, Option<Value>)>,
    ) -> (Vec<Value>, Vec<Sent>) {
        let mut open: Vec<(Value, Option<Value>)> = ids.collect();
        let (mut messages, mut events) = (Vec::new(), Vec::new());
        while !open.is_empty() {
            let step = self.steps.pop_front().expect("all were answered");
            if step.get("event").is_some() {
                let (message, sent) = self.play_event(&step);
                messages.push(message);
                events.push(sent);
                continue;
            }
            let place = open.iter().position(|(id, _)| step["id"] == *id);
            let (_, answered) = open.swap_remove(place.unwrap_or_else(|| panic!("{step}")));
            self.plug(&step);
            if let Some(id) = answered {
                let word = if step.get("error").is_some() {
                    "error"
                } else {
                    "return"
                };
                messages.push(json!({word: step[word], "id": id}));
            }
        }
        self.check();
        (messages, events)
    }

    /// Plugs the CPUs that the reply `step` to a `device_add` plugged.
    fn plug(&mut self, step: &Value) {
        let Some(path) = step["came"].as_str() else {
            return;
        };
        let path = self.present_path(path);
        let slot = step["slot"].as_u64().expect("it has a place") as usize;
        let entry = self.slots[slot].0.clone();
        let width = entry["vcpus-count"].as_u64().expect("a number");
        let target = self.head["target"].clone();
        let cpus = (0..width).map(|n| {
            let thread = self.thread(step["threads"][n as usize].as_u64());
            let path = if target == "ppc64" {
                format!("{path}/thread[{n}]")
            } else {
                path.clone()
            };
            let index = slot as u64 * width + n;
            json!({"cpu-index": index, "qom-path": path, "thread-id": thread,
                "props": entry["props"], "target": target})
        });
        let cpus = cpus.collect();
        self.plugged.push(Plugged {
            slot: Some(slot),
            path,
            cpus,
        });
    }

    pub(crate) fn play_event(&mut self, step: &Value) -> (Value, Sent) {
        let gone = self.take_away(step);
        if let Some(status) = step["status"].as_str() {
            status.clone_into(&mut self.status);
        }
        let mut data = step["data"].clone();
        if let Some(path) = data["path"].as_str() {
            data["path"] = self.present_path(path).into();
        }
        for pointer in ["/device", "/info/device"] {
            if let Some(device) = data.pointer_mut(pointer)
                && let Some(id) = self.ids.get(device.as_str().expect("an id"))
            {
                *device = id.as_str().into();
            }
        }
        let name = step["event"].as_str().expect("a name").to_owned();
        let timestamp = json!({"seconds": 1_795_231_039, "microseconds": 42});
        let mut message = json!({"event": name, "timestamp": timestamp});
        if !data.is_null() {
            message["data"] = data.clone();
        }
        (message, Sent { name, data, gone })
    }

    /// Removes the CPUs that `step` removed. Returns their paths.
    pub(crate) fn take_away(&mut self, step: &Value) -> Vec<String> {
        let gone = step["gone"].as_array().into_iter().flatten();
        let gone = gone.map(|path| self.present_path(path.as_str().expect("a path")));
        let gone: Vec<String> = gone.collect();
        for path in &gone {
            let place = self.plugged.iter().position(|cpu| cpu.path == *path);
            self.plugged
                .remove(place.unwrap_or_else(|| panic!("no {path}")));
        }
        gone
    }

    /// Checks that the machine is in the recorded state, where the recording has it.
    pub(crate) fn check(&mut self) {
        loop {
            match self.steps.front() {
                Some(step) if step.get("listed").is_some() => {
                    let listed = step["listed"].as_array().expect("a list");
                    let listed = listed.iter().map(|path| path.as_str().expect("a path"));
                    let listed: Vec<String> = listed.map(|path| self.present_path(path)).collect();
                    let plugged: Vec<String> =
                        self.plugged.iter().map(|cpu| cpu.path.clone()).collect();
                    assert_eq!(plugged, listed);
                }
                Some(step) if step.get("is").is_some() => {
                    self.status = step["is"].as_str().expect("a word").to_owned();
                }
                _ => return,
            }
            self.steps.pop_front();
        }
    }

    /// Returns the present path of the CPU that was recorded at `path`.
    fn present_path(&self, path: &str) -> String {
        let Some(rest) = path.strip_prefix("/machine/peripheral/") else {
            return path.to_owned();
        };
        let (id, below) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let id = self.ids.get(id).map_or(id, String::as_str);
        format!("/machine/peripheral/{id}{below}")
    }
}

fn is_reply(step: &Value) -> bool {
    step.get("return").is_some() || step.get("error").is_some()
}

/// Returns the path of the slot that contains the CPU at `path`.
fn entity_of(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some((entity, last)) if last.starts_with("thread[") => entity,
        _ => path,
    }
}
