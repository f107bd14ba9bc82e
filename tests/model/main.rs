//! Any story of a machine: whatever is asked of it, whatever its guest and its other clients do,
//! in any order, with the connection lost at any point. At the end of each story the numbers,
//! the pending removals and the notices add up to what QEMU has.
//!
//! The machine's actor is real and speaks QMP over a socket; QEMU is scripted. A story that goes
//! wrong is shrunk and printed, with its seed. `PROPTEST_CASES` says how many rounds of
//! [`STORIES`] there are.

#[path = "../suite/harness/scripted/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the suite uses the rest")]
mod scripted;
#[path = "../suite/harness/wait.rs"]
mod wait;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use proptest::prelude::*;
use scripted::{Model, Peer, Removal, deleted, event, ost};
use tokio::sync::mpsc;
use vcpud::config::Limits;
use vcpud::inventory::Target;
use vcpud::machine::{self, Handle, News, Notice, Outbox, Request, Source, Wait};
use wait::within;

/// How many stories go on at once.
const STORIES: usize = 16;
/// How many vCPUs there can be.
const MAX: u32 = 6;

/// What can happen. Numbers choose among what there is.
#[derive(Clone, Copy, Debug)]
enum Step {
    SetCount(u32),
    Plug(u32),
    Unplug(u32),
    /// The guest gives up a CPU that it was asked for.
    GiveUp(usize),
    /// The guest refuses to.
    Refuse(usize),
    /// The guest ejects any CPU.
    Eject(usize),
    /// The guest is reset, which completes what is pending.
    Reset,
    /// Another client plugs a CPU.
    External(usize),
    /// An event of a CPU that is alive.
    Stale(usize),
    HangUp,
    Accept,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..=MAX + 1).prop_map(Step::SetCount),
        3 => (0..MAX).prop_map(Step::Plug),
        3 => (0..MAX).prop_map(Step::Unplug),
        6 => any::<usize>().prop_map(Step::GiveUp),
        3 => any::<usize>().prop_map(Step::Refuse),
        2 => any::<usize>().prop_map(Step::Eject),
        1 => Just(Step::Reset),
        2 => any::<usize>().prop_map(Step::External),
        1 => any::<usize>().prop_map(Step::Stale),
        1 => Just(Step::HangUp),
        1 => Just(Step::Accept),
    ]
}

/// A machine, its QEMU, and what was told of it.
struct Story {
    handle: Handle,
    outbox: Outbox,
    peer: Peer,
    /// The entities that QEMU was asked to unplug and that the guest holds.
    held: Arc<Mutex<BTreeSet<usize>>>,
    told: Arc<Mutex<Vec<(bool, u32)>>>,
    connected: bool,
    plugs: usize,
    steps: Vec<Step>,
}

impl Story {
    async fn begin(directory: &std::path::Path) -> (Self, machine::Running) {
        let mut model = Model::x86(2, MAX as usize);
        model.removal = Removal::Held;
        let socket = directory.join("machine.sock");
        let peer = Peer::start(&socket, model);
        let held = Arc::new(Mutex::new(BTreeSet::new()));
        let asked = held.clone();
        peer.script(move |model, call| {
            if call.command == "device_del"
                && let Some(n) = model.at(call.arguments["id"].as_str()?).filter(|n| *n > 0)
            {
                asked.lock().unwrap().insert(n);
            }
            None
        });
        let (outbox, mut notices) = Outbox::new();
        let name = "machine".parse().unwrap();
        let limits = Limits::default();
        let running = machine::start(
            Source {
                name,
                socket,
                limits,
            },
            outbox.clone(),
        );
        let first = within("the machine", notices.recv()).await;
        let Some(Notice::News {
            news: News::Appeared(handle),
            ..
        }) = first
        else {
            panic!("{first:?} comes first");
        };
        let told = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(listen(notices, told.clone()));
        let story = Self {
            handle,
            outbox,
            peer,
            held,
            told,
            connected: true,
            plugs: 0,
            steps: Vec::new(),
        };
        (story, running)
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::SetCount(count) => self.request(Target::Count(count)).await,
            Step::Plug(vcpu) => self.request(Target::Present([vcpu].into())).await,
            Step::Unplug(vcpu) => self.request(Target::Absent([vcpu].into())).await,
            Step::GiveUp(choice) => {
                let held = self.held.lock().unwrap().clone();
                if let Some(n) = pick(&held, choice) {
                    self.eject(n);
                }
            }
            Step::Refuse(choice) if self.connected => {
                let held = self.held.lock().unwrap().clone();
                if let Some(n) = pick(&held, choice) {
                    self.held.lock().unwrap().remove(&n);
                    self.peer.send(&ost(n, None, 3, 130));
                }
            }
            Step::Eject(choice) => {
                if let Some(n) = pick(&self.there(), choice).filter(|n| *n > 0) {
                    self.eject(n);
                }
            }
            Step::Reset => {
                let held = std::mem::take(&mut *self.held.lock().unwrap());
                for n in held {
                    self.peer.model().unplug(n);
                }
                self.send(&event("RESET", serde_json::json!({})));
            }
            Step::External(choice) => {
                let there = self.there();
                let free: BTreeSet<usize> =
                    (0..MAX as usize).filter(|n| !there.contains(n)).collect();
                if let Some(n) = pick(&free, choice) {
                    self.plugs += 1;
                    let id = format!("other{}", self.plugs);
                    self.peer.model().plug(n, &id);
                    self.send(&ost(n, Some(&id), 1, 0));
                }
            }
            Step::Stale(choice) => {
                if let Some(n) = pick(&self.there(), choice) {
                    let path = self.peer.model().path(n);
                    self.send(&deleted(&path));
                }
            }
            Step::HangUp if self.connected => {
                self.connected = false;
                self.peer.hang_up();
            }
            Step::Accept if !self.connected => {
                self.reconnect().await;
            }
            Step::Refuse(_) | Step::HangUp | Step::Accept => {}
        }
    }

    /// Asks as the bus does: with the number that comes of it, and without waiting.
    async fn request(&self, target: Target) {
        let count = match &target {
            Target::Count(count) => *count,
            list => self
                .handle
                .snapshot()
                .plan(list)
                .map_or(0, |(_, count)| count),
        };
        let wait = Wait::No;
        let request = Request {
            target,
            count,
            wait,
            uid: 7,
        };
        let answer = self.handle.set_vcpus(request);
        // Whether it succeeds is not the matter here, only that it is answered.
        let _ = within("an answer", answer).await;
    }

    fn there(&self) -> BTreeSet<usize> {
        let model = self.peer.model();
        (0..MAX as usize)
            .filter(|n| !model.threads_of(*n).is_empty())
            .collect()
    }

    fn eject(&self, n: usize) {
        self.held.lock().unwrap().remove(&n);
        let path = self.peer.model().unplug(n);
        self.send(&deleted(&format!("{path}/lapic")));
    }

    fn send(&self, message: &serde_json::Value) {
        if self.connected {
            self.peer.send(message);
        }
    }

    async fn reconnect(&mut self) {
        let clients = self.peer.clients();
        self.peer.accept();
        self.peer.had_clients(clients + 1).await;
        // What a QEMU tells a client that has not asked for anything yet is told to nobody.
        let connected = async {
            while self.handle.snapshot().state() != "running" {
                self.outbox.barrier().await;
                tokio::task::yield_now().await;
            }
        };
        within("the connection", connected).await;
        self.connected = true;
    }

    /// Waits until the machine is known to be as QEMU has it, and all of that was told.
    async fn settle(&mut self) {
        if !self.connected {
            self.reconnect().await;
        }
        let numbers = |set: BTreeSet<usize>| set.into_iter().map(|n| n as u32).collect::<Vec<_>>();
        let (there, held) = (
            numbers(self.there()),
            numbers(self.held.lock().unwrap().clone()),
        );
        let is_known = || {
            let snapshot = self.handle.snapshot();
            let present: Vec<u32> = snapshot.inventory.present().map(|(e, _)| e.first).collect();
            // The snapshot comes first and what it means is told after it, so both are awaited.
            snapshot.state() == "running"
                && snapshot.pending == held
                && present == there
                && self.sum_of_told() == there
        };
        let known = async {
            while !is_known() {
                self.outbox.barrier().await;
                tokio::task::yield_now().await;
            }
        };
        let what = format!(
            "{there:?} present and {held:?} pending after {:?}",
            self.steps
        );
        within(what, known).await;
    }

    /// The vCPUs that are there if what was told is all true.
    fn sum_of_told(&self) -> Vec<u32> {
        let mut sum = BTreeSet::from([0, 1]);
        for (came, vcpu) in self.told.lock().unwrap().iter() {
            let is_news = if *came {
                sum.insert(*vcpu)
            } else {
                sum.remove(vcpu)
            };
            assert!(is_news, "vCPU {vcpu} came or went twice");
        }
        sum.into_iter().collect()
    }
}

/// Keeps what is told of vCPUs that came (`true`) and went.
async fn listen(mut notices: mpsc::Receiver<Notice>, told: Arc<Mutex<Vec<(bool, u32)>>>) {
    while let Some(notice) = notices.recv().await {
        let mut told = told.lock().unwrap();
        match notice {
            Notice::Barrier(passed) => drop(passed.send(())),
            Notice::News {
                news: News::VcpuAdded(vcpu),
                ..
            } => told.push((true, vcpu.id)),
            Notice::News {
                news: News::VcpuRemoved(vcpu),
                ..
            } => told.push((false, vcpu.id)),
            Notice::News { .. } => {}
        }
    }
}

fn pick(set: &BTreeSet<usize>, choice: usize) -> Option<usize> {
    set.iter().nth(choice % set.len().max(1)).copied()
}

async fn tell(steps: Vec<Step>) {
    let directory = tempfile::tempdir().unwrap();
    let (mut story, running) = Story::begin(directory.path()).await;
    for step in steps {
        story.steps.push(step);
        story.take(step).await;
    }
    story.settle().await;
    running.stop().await;
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(96),
        ..ProptestConfig::default()
    })]

    /// Scripted QEMU.
    #[test]
    fn any_story_ends_with_the_truth(
        stories in prop::collection::vec(prop::collection::vec(step(), 0..16), STORIES)
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(join_all(stories.into_iter().map(tell)));
    }
}
