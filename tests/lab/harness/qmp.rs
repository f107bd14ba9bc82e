//! A QMP monitor of the test, with the events of QEMU.

use std::collections::VecDeque;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::wait::within;

/// A monitor to which QEMU connects.
pub(crate) struct Monitor {
    messages: Lines<BufReader<OwnedReadHalf>>,
    commands: OwnedWriteHalf,
    /// The events that were not read yet.
    events: VecDeque<Value>,
}

impl Monitor {
    /// Waits until QEMU connects; then it also listens on its other sockets. Also returns its PID.
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

    /// Executes a command, which must succeed.
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

    /// Returns the data of the next event `name`, and discards other events before it.
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

    /// Plugs the vCPU `index` without the service, as the device `id`.
    pub(crate) async fn plug(&mut self, index: u64, id: &str) {
        let slots = self.execute("query-hotpluggable-cpus", json!({})).await;
        let slots = slots.as_array().expect("a list");
        // Guests of the lab have one vCPU in each socket.
        let slot = slots
            .iter()
            .find(|slot| slot["props"]["socket-id"] == index);
        let slot = slot.expect("the vCPU exists");
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
