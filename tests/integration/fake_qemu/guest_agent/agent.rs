//! A scripted guest agent.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::harness::*;

/// A scripted agent: a process of the guest behind a channel of QEMU, which takes one client at a time.
pub(super) struct Agent {
    guest: Guest,
    tasks: [JoinHandle<()>; 2],
}

impl Agent {
    pub(super) fn start(world: &World, name: &str, cpus: &[(u64, bool)]) -> Self {
        let listener = UnixListener::bind(world.agent_socket(name)).unwrap();
        let (sender, requests) = mpsc::unbounded_channel();
        let guest = Guest::default();
        guest.cpus.lock().unwrap().extend(cpus.iter().copied());
        let channel = tokio::spawn(pass_on(listener, sender, guest.client.clone()));
        let process = tokio::spawn(guest.clone().serve(requests));
        let tasks = [channel, process];
        Self { guest, tasks }
    }

    pub(super) fn set(&self) -> Vec<(u64, bool)> {
        self.set.borrow().clone()
    }

    pub(super) fn stick(&self, is_stuck: bool) {
        self.is_stuck.send_replace(is_stuck);
    }

    /// Waits until the service has set these CPUs and no others.
    pub(super) async fn was_told(&self, wanted: &[(u64, bool)]) {
        let mut set = self.set.subscribe();
        let is_told = |set: &Vec<(u64, bool)>| set == wanted;
        let what = format!("the agent to set {wanted:?}");
        within(what, set.wait_for(is_told)).await.unwrap();
    }
}

impl Deref for Agent {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// The client of the channel.
type Client = Arc<tokio::sync::Mutex<Option<OwnedWriteHalf>>>;

/// Passes the lines of one client after the other on to the guest.
async fn pass_on(listener: UnixListener, requests: mpsc::UnboundedSender<Vec<u8>>, client: Client) {
    loop {
        let (stream, _) = listener.accept().await.expect("it listens");
        let (read, mut write) = stream.into_split();
        // The rest of a reply to an earlier client.
        let _ = write.write_all(b"{\"return\": {}}\n").await;
        *client.lock().await = Some(write);
        let mut lines = BufReader::new(read).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            requests.send(line).expect("the guest reads");
        }
        *client.lock().await = None;
    }
}

/// The process in the guest. All clones are the same.
#[derive(Clone, Default)]
pub(super) struct Guest {
    pub(super) cpus: Arc<Mutex<BTreeMap<u64, bool>>>,
    /// The CPUs that it set.
    pub(super) set: watch::Sender<Vec<(u64, bool)>>,
    /// While it is stuck, requests wait in the channel.
    pub(super) is_stuck: watch::Sender<bool>,
    /// Whether it gets stuck when it has set the next CPU and not said so.
    pub(super) sticks_at_set: Arc<AtomicBool>,
    /// The ids of all synchronizations.
    pub(super) synchronizations: Arc<Mutex<Vec<u64>>>,
    client: Client,
}

impl Guest {
    /// Answers each request to the current client.
    async fn serve(self, mut requests: mpsc::UnboundedReceiver<Vec<u8>>) {
        let mut stuck = self.is_stuck.subscribe();
        while let Some(line) = requests.recv().await {
            stuck.wait_for(|is_stuck| !is_stuck).await.unwrap();
            let text = line.rsplit(|b| *b == 0xff).next().unwrap();
            let call: Value = serde_json::from_slice(text).expect("JSON");
            let mut answer = format!("{}\n", self.answer(&call)).into_bytes();
            if call["execute"] == "guest-sync-delimited" {
                answer.insert(0, 0xff);
            }
            if call["execute"] == "guest-set-vcpus" && self.sticks_at_set.swap(false, Relaxed) {
                self.is_stuck.send_replace(true);
            }
            stuck.wait_for(|is_stuck| !is_stuck).await.unwrap();
            if let Some(client) = &mut *self.client.lock().await {
                let _ = client.write_all(&answer).await;
            }
        }
    }

    /// CPU 0 cannot be taken offline; asking for 3 fails.
    fn answer(&self, call: &Value) -> Value {
        match call["execute"].as_str().unwrap() {
            "guest-sync-delimited" => {
                let id = call["arguments"]["id"].as_u64().unwrap();
                self.synchronizations.lock().unwrap().push(id);
                json!({"return": id})
            }
            "guest-get-vcpus" => {
                let cpus = self.cpus.lock().unwrap();
                let list = cpus.iter().map(|(id, online)| {
                    json!({"logical-id": id, "online": online, "can-offline": *id != 0})
                });
                json!({"return": list.collect::<Vec<_>>()})
            }
            "guest-set-vcpus" => {
                // One at a time, as it may.
                let first = &call["arguments"]["vcpus"][0];
                let id = first["logical-id"].as_u64().unwrap();
                let online = first["online"].as_bool().unwrap();
                self.set.send_modify(|set| set.push((id, online)));
                if id == 3 && !online {
                    return json!({"error": {"class": "GenericError", "desc": "CPU 3 is dear to me"}});
                }
                self.cpus.lock().unwrap().insert(id, online);
                json!({"return": 1})
            }
            other => panic!("asked for {other}"),
        }
    }
}
