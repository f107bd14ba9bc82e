//! A QMP monitor of the test's own, which tells what QEMU itself says, events included.

use std::collections::VecDeque;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::wait::within;

/// A monitor that QEMU was told to connect to.
pub(crate) struct Monitor {
    messages: Lines<BufReader<OwnedReadHalf>>,
    commands: OwnedWriteHalf,
    /// The events that nobody has asked for yet.
    events: VecDeque<Value>,
}

impl Monitor {
    /// Waits until a QEMU connects, which by then listens on the sockets named before. Also gives
    /// its PID.
    pub(crate) async fn accept(listener: &UnixListener) -> (Self, u32) {
        let accepted = within("QEMU to connect", listener.accept()).await;
        let (stream, _) = accepted.expect("a socket");
        let peer = stream.peer_cred().expect("the kernel knows").pid();
        let (messages, commands) = stream.into_split();
        let mut monitor = Self {
            messages: BufReader::new(messages).lines(),
            commands,
            events: VecDeque::new(),
        };
        monitor.execute("qmp_capabilities", json!({})).await;
        (monitor, peer.expect("of this host") as u32)
    }

    /// Executes a command, which has to succeed.
    pub(crate) async fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let line = json!({"execute": command, "arguments": arguments, "id": command});
        let line = format!("{line}\n");
        let sent = self.commands.write_all(line.as_bytes()).await;
        sent.expect("QEMU reads");
        loop {
            let what = format!("the reply to {command}");
            let message = within(what, self.message()).await;
            if message["id"] == command {
                assert!(message.get("error").is_none(), "{message}");
                return message["return"].clone();
            }
            if message.get("event").is_some() {
                self.events.push_back(message);
            }
        }
    }

    /// The data of the next event called `name`; others before it are forgotten.
    pub(crate) async fn event(&mut self, name: &str) -> Value {
        let found = async {
            loop {
                let event = match self.events.pop_front() {
                    Some(event) => event,
                    None => self.message().await,
                };
                if event["event"] == name {
                    return event["data"].clone();
                }
            }
        };
        within(format!("the event {name}"), found).await
    }

    /// Plugs the vCPU `index` past the service, as the device `id`.
    pub(crate) async fn plug(&mut self, index: u64, id: &str) {
        let slots = self.execute("query-hotpluggable-cpus", json!({})).await;
        let slots = slots.as_array().expect("a list");
        // One vCPU a socket, as guests of the lab have them.
        let slot = slots
            .iter()
            .find(|slot| slot["props"]["socket-id"] == index);
        let slot = slot.expect("there is such a vCPU");
        let mut device = slot["props"].clone();
        device["driver"] = slot["type"].clone();
        device["id"] = id.into();
        self.execute("device_add", device).await;
    }

    async fn message(&mut self) -> Value {
        let line = self.messages.next_line().await.expect("QEMU writes UTF-8");
        serde_json::from_str(&line.expect("QEMU runs")).expect("QEMU writes JSON")
    }
}
