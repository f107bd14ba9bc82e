//! Random stories about a machine: requests, actions of the guest and of other clients, and lost connections,
//! in any order. At the end of each story, the numbers, the pending removals and the signals agree with QEMU.
//!
//! The task of the machine is real and uses QMP over a socket; QEMU is scripted. A story that fails is shrunk
//! and printed with its seed. `PROPTEST_CASES` is the number of rounds of [`STORIES`].

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a failed step ends the test"
)]

use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use fake_qemu::{Model, Peer, Removal, deleted, event, ost, within};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all, ready};
use proptest::prelude::*;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use vcpud::audit::Audit;
use vcpud::config::Limits;
use vcpud::fd_store::FdStore;
use vcpud::ids::{Uid, VcpuId};
use vcpud::inventory::Target;
use vcpud::machine::{
    self, BusMessage, EventSender, Handle, HostServices, Lifetime, MachineConfig, MachineEvent,
    MachineSpec, PlacementConfig, Processes, QmpEndpoint, Request, Until, Wait,
};
use vcpud::placement::{NewScope, Process, UnitError, UnitFacts, Units};
use vcpud::placer::Host;
use vcpud::process::SocketFile;

/// The number of stories that run at a time.
const STORIES: usize = 16;
/// The maximum number of vCPUs.
const MAX: u32 = 6;

/// A step of a story. Numbers select one of the present items.
#[derive(Clone, Copy, Debug)]
enum Step {
    SetCount(u32),
    Plug(u32),
    Unplug(u32),
    /// The guest releases a CPU whose removal is pending.
    GiveUp(usize),
    /// The guest refuses a removal.
    Refuse(usize),
    /// The guest ejects any CPU.
    Eject(usize),
    /// The guest is reset, which completes pending removals.
    Reset,
    /// Another client plugs a CPU.
    External(usize),
    /// An event about a CPU that is present.
    Stale(usize),
    HangUp,
    Accept,
    /// The service ends at any moment, and starts again.
    Restart,
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
        1 => Just(Step::Restart),
    ]
}

/// An event that was reported.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Told {
    Came(VcpuId),
    Went(VcpuId),
    /// The service started again. Events just before its end may be reported twice.
    Anew,
}

/// A machine, its QEMU, and the reported events.
struct Story {
    directory: PathBuf,
    service: Option<Service>,
    peer: Peer,
    /// The entities that QEMU was asked to unplug, and that the guest keeps.
    held: Arc<Mutex<BTreeSet<usize>>>,
    /// The entities that the guest refused last.
    kept: Arc<Mutex<BTreeSet<usize>>>,
    /// The entities that the guest refused twice in a row. The list of QEMU shows no difference, so a second
    /// refusal is unknown if its event is lost with the connection.
    kept_again: BTreeSet<usize>,
    /// The ones whose event may be lost.
    doubtful: BTreeSet<usize>,
    /// Everything that was reported. Each message of the machine marks it as changed.
    told: watch::Sender<Vec<Told>>,
    connected: bool,
    plugs: usize,
    steps: Vec<Step>,
}

impl Story {
    async fn begin(directory: &Path) -> Self {
        let mut model = Model::x86(2, MAX as usize);
        model.removal = Removal::Held;
        let socket = directory.join("machine.sock");
        let peer = Peer::start(&socket, model);
        let held = Arc::new(Mutex::new(BTreeSet::new()));
        let kept = Arc::new(Mutex::new(BTreeSet::new()));
        let (asked, refused) = (held.clone(), kept.clone());
        peer.script(move |model, call| match call.command.as_str() {
            "device_del" => {
                let n = model.at(call.arguments["id"].as_str()?).filter(|n| *n > 0);
                asked.lock().unwrap().extend(n);
                None
            }
            "query-commands" => {
                let mut reply = model.answer(call).remove(0);
                let commands = reply["return"].as_array_mut().expect("a list");
                commands.push(json!({"name": "query-acpi-ospm-status"}));
                Some(vec![reply])
            }
            "query-acpi-ospm-status" => {
                let refused = refused.lock().unwrap();
                let status = refused.iter().map(|n| refusal(*n)["data"]["info"].clone());
                Some(vec![call.reply(status.collect())])
            }
            _ => None,
        });
        let told = watch::Sender::default();
        let service = Service::start(directory, told.clone()).await;
        Self {
            directory: directory.to_owned(),
            service: Some(service),
            peer,
            held,
            kept,
            kept_again: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            told,
            connected: true,
            plugs: 0,
            steps: Vec::new(),
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::SetCount(count) => self.request(Target::Count(count)).await,
            Step::Plug(vcpu) => self.request(Target::Present([VcpuId(vcpu)].into())).await,
            Step::Unplug(vcpu) => self.request(Target::Absent([VcpuId(vcpu)].into())).await,
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
                    if !self.kept.lock().unwrap().insert(n) {
                        self.kept_again.insert(n);
                    }
                    self.peer.send(&refusal(n));
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
                    self.take_away(n);
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
                self.doubtful.append(&mut self.kept_again);
                self.peer.hang_up();
            }
            Step::Accept if !self.connected => {
                self.reconnect().await;
            }
            Step::Restart if self.connected => {
                self.service.take().expect("it runs").end().await;
                self.doubtful.append(&mut self.kept_again);
                self.told.send_modify(|told| told.push(Told::Anew));
                self.service = Some(Service::start(&self.directory, self.told.clone()).await);
            }
            Step::Refuse(_) | Step::HangUp | Step::Accept | Step::Restart => {}
        }
    }

    /// Sends a request with the resulting number, as `bus` does, without waiting for removals.
    async fn request(&self, target: Target) {
        let count = match &target {
            Target::Count(count) => *count,
            list => self
                .handle()
                .snapshot()
                .plan(list)
                .map_or(0, |(_, count)| count),
        };
        let wait = Wait::No;
        let request = Request {
            target,
            subject: self.handle().snapshot().subject(),
            authorized_count: count,
            expected_count: None,
            wait,
            until: Until::Present,
            guest_online: false,
            uid: Uid(7),
        };
        let answer = machine::set_vcpus(self.handle(), request);
        // The request may fail, but must be answered.
        let _ = within("an answer", answer).await;
    }

    fn service(&self) -> &Service {
        self.service.as_ref().expect("it runs")
    }

    fn handle(&self) -> &Handle {
        &self.service().handle
    }

    fn there(&self) -> BTreeSet<usize> {
        let model = self.peer.model();
        (0..MAX as usize)
            .filter(|n| !model.threads_of(*n).is_empty())
            .collect()
    }

    fn eject(&mut self, n: usize) {
        self.held.lock().unwrap().remove(&n);
        let path = self.take_away(n);
        self.send(&deleted(&format!("{path}/lapic")));
    }

    fn take_away(&mut self, n: usize) -> String {
        self.kept.lock().unwrap().remove(&n);
        self.kept_again.remove(&n);
        self.doubtful.remove(&n);
        self.peer.model().unplug(n)
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
        // Events that QEMU sends before the first query are not reported.
        let mut told = self.told.subscribe();
        let connected = async {
            while self.handle().snapshot().state() != "running" {
                told.changed().await.expect("the story owns the sender");
            }
        };
        within("the connection", connected).await;
        self.connected = true;
    }

    /// Waits until the snapshot agrees with QEMU, and all events were reported.
    async fn settle(&mut self) {
        if !self.connected {
            self.reconnect().await;
        }
        let numbers = |set: BTreeSet<usize>| {
            set.into_iter()
                .map(|n| VcpuId(n as u32))
                .collect::<Vec<_>>()
        };
        let (there, held) = (
            numbers(self.there()),
            numbers(self.held.lock().unwrap().clone()),
        );
        let doubtful = numbers(self.doubtful.clone());
        let is_known = || {
            let snapshot = self.handle().snapshot();
            let mut pending = snapshot.pending.iter();
            let is_pending = held.iter().all(|vcpu| snapshot.pending.contains(vcpu))
                && pending.all(|vcpu| held.contains(vcpu) || doubtful.contains(vcpu));
            let present = snapshot.inventory.present();
            let present: Vec<VcpuId> = present.map(|(slot, _)| slot.id.first()).collect();
            // The events follow the snapshot, so both are awaited.
            snapshot.state() == "running"
                && is_pending
                && present == there
                && self.sum_of_told() == there
        };
        let mut told = self.told.subscribe();
        let known = async {
            while !is_known() {
                told.changed().await.expect("the story owns the sender");
            }
        };
        let what = format!(
            "{there:?} present and {held:?} pending after {:?}",
            self.steps
        );
        within(what, known).await;
    }

    /// Returns the present vCPUs according to the reported events.
    fn sum_of_told(&self) -> Vec<VcpuId> {
        let mut sum = BTreeSet::from([VcpuId(0), VcpuId(1)]);
        let mut repeatable = BTreeSet::new();
        let told = self.told.borrow().clone();
        for (i, news) in told.iter().enumerate() {
            let (vcpu, is_news) = match news {
                Told::Came(vcpu) => (*vcpu, sum.insert(*vcpu)),
                Told::Went(vcpu) => (*vcpu, sum.remove(vcpu)),
                Told::Anew => {
                    repeatable = (0..MAX).map(VcpuId).collect();
                    continue;
                }
            };
            assert!(
                is_news || repeatable.contains(&vcpu),
                "vCPU {vcpu} was added or removed twice: {:?}",
                &told[..=i]
            );
            repeatable.remove(&vcpu);
        }
        sum.into_iter().collect()
    }
}

/// The parts of the service that one machine needs.
struct Service {
    running: machine::Running,
    task: JoinHandle<()>,
    outbox: EventSender,
    handle: Handle,
    listener: JoinHandle<()>,
}

impl Service {
    /// Starts the service for the machine in `directory`. Its events are added to `told`.
    async fn start(directory: &Path, told: watch::Sender<Vec<Told>>) -> Self {
        let (outbox, mut notices) = EventSender::new();
        let spec = MachineSpec {
            name: "machine".parse().unwrap(),
            origin: machine::Origin::Socket,
            endpoint: QmpEndpoint::Socket(SocketFile::chosen_by_root(
                directory.join("machine.sock"),
            )),
            lifetime: Lifetime::Endpoint,
            uuid: None,
            leader: None,
            processes: Processes::default(),
            agent: directory.join("agent.sock"),
            state_file: directory.join("machine.json"),
            config: MachineConfig {
                limits: Limits::default(),
                placement: PlacementConfig::default(),
            },
        };
        let (running, task) = machine::create(spec, site(), outbox.clone());
        let task = tokio::spawn(task);
        let first = within("the machine", notices.recv()).await;
        let Some(BusMessage::Appeared {
            machine: handle, ..
        }) = first
        else {
            panic!("{first:?} comes first");
        };
        outbox.open().await;
        let listener = tokio::spawn(listen(notices, told));
        Self {
            running,
            task,
            outbox,
            handle,
            listener,
        }
    }

    /// Ends the service at any point of its work.
    async fn end(self) {
        self.task.abort();
        let _ = self.task.await;
        self.running.finish().await;
        drop((self.running, self.outbox, self.handle));
        within("the last event", self.listener).await.unwrap();
    }
}

/// A host without systemd.
fn site() -> HostServices {
    #[derive(Debug)]
    struct Nobody;
    impl Units for Nobody {
        fn unit_of<'a>(&'a self, _: Process<'a>) -> BoxFuture<'a, Result<UnitFacts, UnitError>> {
            ready(Err(UnitError::Absent("no service manager".to_owned()))).boxed()
        }

        fn start_scope<'a>(
            &'a self,
            _: NewScope<'a>,
            _: Process<'a>,
        ) -> BoxFuture<'a, Result<String, UnitError>> {
            panic!("no unit was looked up")
        }

        fn appeared(&self) -> BoxFuture<'_, ()> {
            std::future::pending().boxed()
        }
    }
    impl FdStore for Nobody {
        fn keep(&self, _: &str, _: BorrowedFd<'_>) {}
        fn release(&self, _: &str) {}
        fn take(&self, _: &str) -> Option<OwnedFd> {
            None
        }
    }
    HostServices {
        watches: None,
        units: Arc::new(Nobody),
        host: Host::this().unwrap(),
        audit: Arc::new(Audit::open()),
        fd_store: Arc::new(Nobody),
    }
}

/// Records the events of added and removed vCPUs.
async fn listen(mut notices: mpsc::Receiver<BusMessage>, told: watch::Sender<Vec<Told>>) {
    while let Some(notice) = notices.recv().await {
        match notice {
            BusMessage::Completion(completion) => completion.run(),
            BusMessage::Problems(_) | BusMessage::Appeared { .. } | BusMessage::NameOwned => {}
            BusMessage::Event { event, .. } => told.send_modify(|told| match event {
                MachineEvent::VcpuAdded(vcpu) => told.push(Told::Came(vcpu.id)),
                MachineEvent::VcpuRemoved(vcpu) => told.push(Told::Went(vcpu.id)),
                _ => {}
            }),
        }
    }
}

/// Returns the event that the guest keeps CPU `n`.
fn refusal(n: usize) -> serde_json::Value {
    ost(n, None, 3, 130)
}

fn pick(set: &BTreeSet<usize>, choice: usize) -> Option<usize> {
    set.iter().nth(choice % set.len().max(1)).copied()
}

async fn tell(steps: Vec<Step>) {
    let directory = tempfile::tempdir().unwrap();
    let mut story = Story::begin(directory.path()).await;
    for step in steps {
        story.steps.push(step);
        story.take(step).await;
    }
    story.settle().await;
    story.service.take().expect("it runs").end().await;
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(24),
        // In milliseconds: a story that fails takes a minute.
        max_shrink_time: 180_000,
        ..ProptestConfig::default()
    })]

    /// Scripted QEMU.
    #[test]
    fn any_story_ends_with_the_state_of_qemu(
        stories in prop::collection::vec(prop::collection::vec(step(), 0..16), STORIES)
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(join_all(stories.into_iter().map(tell)));
    }
}
