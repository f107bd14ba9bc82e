//! A QEMU that says what it is told to say: the truth about the CPUs that it has, or not.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Above all thread ids that Linux gives, so that no thread of this process is meant.
const THREADS: i64 = 1 << 30;

/// How the next answer to a command is no good.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lie {
    /// A refusal, in one of QEMU's texts.
    Refusal(usize),
    /// A value of another type.
    OtherType(usize),
    /// None at all.
    Silence,
    /// One to a command that was not sent.
    OtherId,
    /// What is no QMP.
    Junk,
    /// CPU `n` is left out.
    Without(usize),
    /// The threads are left out.
    WithoutThreads,
    /// The entities have more vCPUs than they had.
    Wider,
}

/// What QEMU refuses with, where vcpud looks at the text.
const REFUSALS: [&str; 6] = [
    "Duplicate device ID 'vcpu1'",
    "Device vcpu1 is already in the process of unplug",
    "The command is permitted only after machine initialization has completed",
    "device_del not allowed while migrating",
    "Unable to add CPU: 2147483647, max allowed: 3",
    "no",
];

/// A listening QEMU. It ends when this is dropped.
pub(super) struct Qemu {
    shared: Arc<Mutex<Shared>>,
    accepting: watch::Sender<bool>,
    task: JoinHandle<()>,
}

pub(super) struct Shared {
    architecture: &'static str,
    width: usize,
    entities: Vec<Option<Plugged>>,
    /// How many have been plugged.
    plugs: usize,
    /// Whether a CPU goes when it is asked for, without a guest.
    pub(super) willing: bool,
    pub(super) lies: VecDeque<(&'static str, Lie)>,
    outgoing: Option<mpsc::UnboundedSender<Option<Vec<u8>>>>,
}

struct Plugged {
    path: String,
    thread: i64,
}

impl Qemu {
    /// One with room for `entities` CPUs of `width` vCPUs each, of which the first is there.
    pub(super) fn listen(
        socket: &Path,
        architecture: &'static str,
        width: usize,
        entities: usize,
    ) -> Self {
        let mut shared = Shared {
            architecture,
            width,
            entities: (0..entities).map(|_| None).collect(),
            plugs: 0,
            willing: false,
            lies: VecDeque::new(),
            outgoing: None,
        };
        shared.insert(0, "/machine/unattached/device[0]".to_owned());
        let shared = Arc::new(Mutex::new(shared));
        let accepting = watch::Sender::new(true);
        let listener = UnixListener::bind(socket).expect("the socket can be made");
        let task = tokio::spawn(serve_all(listener, shared.clone(), accepting.subscribe()));
        Self {
            shared,
            accepting,
            task,
        }
    }

    pub(super) fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    /// Whether clients are greeted from now on.
    pub(super) fn accept(&self, accepting: bool) {
        self.accepting.send_replace(accepting);
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// The first vCPUs of the entities that are there.
    pub(super) fn present(&self) -> Vec<u32> {
        let there = self.entities.iter().enumerate();
        let there = there.filter(|(_, entity)| entity.is_some());
        there.map(|(n, _)| (n * self.width) as u32).collect()
    }

    fn insert(&mut self, n: usize, path: String) {
        self.plugs += 1;
        let thread = THREADS + (self.plugs * self.width) as i64;
        self.entities[n] = Some(Plugged { path, thread });
    }

    /// Plugs entity `n` if it is not there.
    pub(super) fn plug(&mut self, n: usize) {
        if self.entities[n].is_none() {
            let path = format!("/machine/peripheral/other{}", self.plugs);
            self.insert(n, path);
        }
    }

    /// Takes entity `n` away. Returns the path that it had.
    pub(super) fn unplug(&mut self, n: usize) -> Option<String> {
        Some(self.entities[n].take()?.path)
    }

    pub(super) fn path(&self, n: usize) -> Option<&str> {
        Some(self.entities[n].as_ref()?.path.as_str())
    }

    /// Sends a message to who is connected, if anybody is.
    pub(super) fn send(&self, message: &Value) {
        self.tell(Some(format!("{message}\r\n").into_bytes()));
    }

    /// Closes the connection.
    pub(super) fn hang_up(&self) {
        self.tell(None);
    }

    fn tell(&self, bytes: Option<Vec<u8>>) {
        if let Some(outgoing) = &self.outgoing {
            let _ = outgoing.send(bytes);
        }
    }

    /// What is sent when `line` comes.
    fn take(&mut self, line: &[u8]) -> Vec<u8> {
        let call: Value = serde_json::from_slice(line).expect("the client writes JSON");
        let command = call["execute"].as_str().expect("a command").to_owned();
        let lie = self.lies.iter().position(|(about, _)| *about == command);
        let lie = lie.and_then(|at| self.lies.remove(at)).map(|(_, lie)| lie);
        let mut reply = match self.answer(&command, &call["arguments"]) {
            Ok(value) => json!({"return": value}),
            Err(desc) => refusal(&desc),
        };
        match lie {
            None => {}
            Some(Lie::Silence) => return Vec::new(),
            Some(Lie::Junk) => return b"{\"return\": \x00}\n".to_vec(),
            Some(Lie::OtherId) => return b"{\"return\": {}, \"id\": 0}\n".to_vec(),
            Some(Lie::Refusal(n)) => reply = refusal(REFUSALS[n % REFUSALS.len()]),
            Some(Lie::OtherType(n)) => {
                let others = [
                    json!({}),
                    json!([]),
                    json!("text"),
                    json!([{}]),
                    json!(1),
                    json!([1]),
                ];
                reply = json!({"return": others[n % others.len()]});
            }
            Some(Lie::Without(n)) => self.leave_out(&mut reply["return"], n),
            Some(Lie::WithoutThreads) if command == "query-cpus-fast" => {
                reply["return"] = json!([]);
            }
            Some(Lie::WithoutThreads) => {}
            Some(Lie::Wider) => {
                let slots = reply["return"].as_array_mut().into_iter().flatten();
                for slot in slots.filter(|slot| slot.get("vcpus-count").is_some()) {
                    slot["vcpus-count"] = json!(self.width * 2);
                }
            }
        }
        reply["id"] = call["id"].clone();
        format!("{reply}\r\n").into_bytes()
    }

    fn leave_out(&self, list: &mut Value, n: usize) {
        let Some(path) = self.path(n % self.entities.len()).map(str::to_owned) else {
            return;
        };
        let Some(list) = list.as_array_mut() else {
            return;
        };
        list.retain(|cpu| {
            let is_thread = cpu.get("thread-id").is_some();
            !is_thread
                || !cpu["qom-path"]
                    .as_str()
                    .is_some_and(|at| at.starts_with(&path))
        });
        for slot in list
            .iter_mut()
            .filter(|slot| slot["qom-path"] == path.as_str())
        {
            slot.as_object_mut().expect("an object").remove("qom-path");
        }
    }

    fn answer(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        Ok(match command {
            "qmp_capabilities" => json!({}),
            "query-commands" => COMMANDS.iter().map(|name| json!({"name": name})).collect(),
            "query-version" => json!({"qemu": {"major": 10, "minor": 0, "micro": 2}}),
            "query-uuid" => json!({"UUID": "c0ffee00-1234-4abc-8def-0123456789ab"}),
            "query-target" => json!({"arch": self.architecture}),
            "query-kvm" => json!({"enabled": true}),
            "query-status" => json!({"status": "running"}),
            "query-acpi-ospm-status" => json!([]),
            "query-hotpluggable-cpus" => self.slots(),
            "query-cpus-fast" => self.cpus(),
            "device_add" => {
                let id = arguments["id"].as_str().expect("an id");
                let n = arguments["core-id"]
                    .as_u64()
                    .expect("the property of the slot") as usize;
                let path = format!("/machine/peripheral/{id}");
                let mut there = self.entities.iter().flatten();
                if there.any(|plugged| plugged.path == path) {
                    return Err(format!("Duplicate device ID '{id}'"));
                }
                if self.entities[n].is_some() {
                    return Err("CPU exists".to_owned());
                }
                self.insert(n, path);
                json!({})
            }
            "device_del" => {
                let path = arguments["id"].as_str().expect("an id");
                let is_it =
                    |entity: &Option<Plugged>| entity.as_ref().is_some_and(|p| p.path == path);
                match self.entities.iter().position(is_it) {
                    None => return Err(format!("Device '{path}' not found")),
                    Some(n) if self.willing => drop(self.unplug(n)),
                    Some(_) => {}
                }
                json!({})
            }
            other => return Err(format!("The command {other} has not been found")),
        })
    }

    fn slots(&self) -> Value {
        let slot = |(n, entity): (usize, &Option<Plugged>)| {
            let mut slot =
                json!({"type": "cpu", "vcpus-count": self.width, "props": {"core-id": n}});
            if let Some(plugged) = entity {
                slot["qom-path"] = plugged.path.as_str().into();
            }
            slot
        };
        self.entities.iter().enumerate().rev().map(slot).collect()
    }

    fn cpus(&self) -> Value {
        let there = self.entities.iter().enumerate();
        let there = there.filter_map(|(n, entity)| Some((n, entity.as_ref()?)));
        let cpus = there.flat_map(|(n, plugged)| {
            (0..self.width).map(move |i| {
                let path = match self.width {
                    1 => plugged.path.clone(),
                    _ => format!("{}/thread[{i}]", plugged.path),
                };
                json!({
                    "cpu-index": n * self.width + i, "qom-path": path,
                    "thread-id": plugged.thread + i as i64, "target": self.architecture,
                })
            })
        });
        cpus.collect()
    }
}

/// What it can be asked.
pub(super) const COMMANDS: [&str; 12] = [
    "query-hotpluggable-cpus",
    "query-cpus-fast",
    "device_add",
    "device_del",
    "query-status",
    "query-acpi-ospm-status",
    "query-commands",
    "qmp_capabilities",
    "query-version",
    "query-uuid",
    "query-target",
    "query-kvm",
];

fn refusal(desc: &str) -> Value {
    json!({"error": {"class": "GenericError", "desc": desc}})
}

async fn serve_all(
    listener: UnixListener,
    shared: Arc<Mutex<Shared>>,
    mut accepting: watch::Receiver<bool>,
) {
    loop {
        let _ = accepting.wait_for(|accepting| *accepting).await;
        let (stream, _) = listener.accept().await.expect("it can accept");
        let (sender, outgoing) = mpsc::unbounded_channel();
        lock(&shared).outgoing = Some(sender);
        // A client that goes away is no failure.
        let _ = serve(stream, &shared, outgoing).await;
        lock(&shared).outgoing = None;
    }
}

async fn serve(
    stream: UnixStream,
    shared: &Mutex<Shared>,
    mut outgoing: mpsc::UnboundedReceiver<Option<Vec<u8>>>,
) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).split(b'\n');
    write
        .write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n")
        .await?;
    loop {
        tokio::select! {
            biased;
            line = lines.next_segment() => {
                let Some(line) = line? else { return Ok(()) };
                // 0xff ends what came before it.
                let command = line.rsplit(|byte| *byte == 0xff).next();
                let command = command.unwrap_or_default();
                if command.last() != Some(&b'}') {
                    return Ok(()); // the client left in the middle of a line
                }
                let answer = lock(shared).take(command);
                write.write_all(&answer).await?;
            }
            message = outgoing.recv() => match message.flatten() {
                Some(bytes) => write.write_all(&bytes).await?,
                None => return Ok(()),
            },
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
