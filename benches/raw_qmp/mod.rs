//! A QMP client that only adds and removes vCPUs: the floor of the benchmarks. It knows what it sends before the
//! measurement, sends all commands at once, and queries nothing in between.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{interval, timeout};

/// The time that a QEMU has to start.
const LIMIT: Duration = Duration::from_secs(60);
/// The source of an `ACPI_DEVICE_OST` event after an ejection (ACPI, `_OST`).
const EJECTION: u32 = 3;

/// A connection to a QEMU.
pub(crate) struct RawQmp {
    messages: Lines<BufReader<OwnedReadHalf>>,
    commands: OwnedWriteHalf,
}

/// Commands that are sent at once.
pub(crate) struct Batch {
    text: String,
    count: usize,
}

impl RawQmp {
    /// Connects to the socket of a QEMU.
    pub(crate) async fn connect(socket: &Path) -> Self {
        let stream = timeout(LIMIT, listening(socket)).await;
        let stream = stream.expect("QEMU listens");
        let (messages, commands) = stream.into_split();
        let messages = BufReader::new(messages).lines();
        let mut client = Self { messages, commands };
        client.execute("qmp_capabilities").await;
        client
    }

    /// Executes a command without arguments.
    pub(crate) async fn execute(&mut self, command: &str) -> Value {
        let batch = Batch::new(vec![json!({"execute": command})]);
        self.send(&batch).await;
        loop {
            let mut message = self.message().await;
            if let Some(result) = message.get_mut("return") {
                return result.take();
            }
        }
    }

    /// Returns commands that add the first `count` free slots, in the order of the topology.
    pub(crate) async fn additions(&mut self, count: u32) -> Batch {
        let slots = self.execute("query-hotpluggable-cpus").await;
        let slots = slots.as_array().expect("a list");
        let mut free: Vec<&Value> = slots
            .iter()
            .filter(|s| s.get("qom-path").is_none())
            .collect();
        free.sort_by_key(|slot| {
            ["socket-id", "core-id", "thread-id"].map(|key| slot["props"][key].as_u64())
        });
        assert!(
            free.len() >= count as usize,
            "{} slots are free",
            free.len()
        );
        let command = |(n, slot): (usize, &Value)| {
            let mut arguments = slot["props"].clone();
            arguments["driver"] = slot["type"].clone();
            arguments["id"] = json!(id(n));
            json!({"execute": "device_add", "arguments": arguments})
        };
        let first = free.into_iter().take(count as usize).enumerate();
        Batch::new(first.map(command).collect())
    }

    /// Adds vCPUs, and returns after the last reply.
    pub(crate) async fn add(&mut self, additions: &Batch) {
        self.send(additions).await;
        self.expect(additions.count, |message| message.get("return").is_some())
            .await;
    }

    /// Removes the `count` vCPUs that [`RawQmp::add`] added, and returns when the guest has ejected the last one.
    pub(crate) async fn remove(&mut self, count: u32) {
        let command = |n| json!({"execute": "device_del", "arguments": {"id": id(n)}});
        let removals = Batch::new((0..count as usize).map(command).collect());
        self.send(&removals).await;
        // DEVICE_DELETED does not follow for an emulated vCPU, because QEMU keeps a reference to it.
        let is_removal = |message: &Value| {
            let info = &message["data"]["info"];
            message["event"] == "ACPI_DEVICE_OST"
                && info["source"] == EJECTION
                && info["status"] == 0
        };
        self.expect(removals.count, is_removal).await;
    }

    async fn send(&mut self, batch: &Batch) {
        let sent = self.commands.write_all(batch.text.as_bytes()).await;
        sent.expect("QEMU reads");
    }

    /// Waits for `count` messages that `is_wanted` accepts.
    async fn expect(&mut self, count: usize, is_wanted: impl Fn(&Value) -> bool) {
        let mut received = 0;
        while received < count {
            received += usize::from(is_wanted(&self.message().await));
        }
    }

    async fn message(&mut self) -> Value {
        let line = self.messages.next_line().await.expect("QEMU writes UTF-8");
        let message: Value =
            serde_json::from_str(&line.expect("QEMU runs")).expect("QEMU writes JSON");
        assert!(message.get("error").is_none(), "{message}");
        message
    }
}

impl Batch {
    fn new(commands: Vec<Value>) -> Self {
        let count = commands.len();
        let lines = commands.iter().map(|command| format!("{command}\n"));
        Self {
            text: lines.collect(),
            count,
        }
    }
}

/// Connects to a socket as soon as a program listens there.
async fn listening(socket: &Path) -> UnixStream {
    let mut tries = interval(Duration::from_millis(10));
    loop {
        tries.tick().await;
        if let Ok(stream) = UnixStream::connect(socket).await {
            return stream;
        }
    }
}

/// Returns the id of the nth vCPU that this client adds.
fn id(n: usize) -> String {
    format!("bench-{n}")
}
