//! One machine's actor (`vcpud::machine`) and a QEMU that lies, in any story.
//!
//! Time is not that of the clock: it goes on when everybody waits. So a story of minutes takes
//! milliseconds, and is the same each time but for one thing: where two things happen at once, tokio
//! chooses which is seen first. An input that breaks a promise may do so only at every other try.

mod qemu;

use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use vcpud::audit::Audit;
use vcpud::config::Limits;
use vcpud::fd_store::FdStore;
use vcpud::ids::{SlotId, Uid, VcpuId};
use vcpud::inventory::Target;
use vcpud::machine::{
    self, BusMessage, DISCONNECTED, Error, EventSender, Handle, HostServices, Lifetime,
    MachineConfig, MachineEvent, MachineSpec, Outcome, PlacementConfig, Processes, QmpEndpoint,
    Request, Snapshot, Wait,
};
use vcpud::placement::{NewScope, Process, UnitError, UnitFacts, Units};
use vcpud::placer::Host;
use vcpud::process::SocketFile;

use super::choice::Choices;
use qemu::{COMMANDS, Lie, Qemu};

/// A longer story shows nothing that a shorter one does not.
const STEPS: usize = 48;
/// How long QEMU may take for a reply.
const SILENCE: Duration = Duration::from_secs(1);
/// The longest that a call waits.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest time until everything that goes on by itself has ended: time limits, and pauses
/// before a new connection, which grow to minutes for a QEMU that breaks the protocol.
const SETTLED: Duration = Duration::from_secs(20 * 60);

/// What was told of vCPUs adds up to what is shown of them at every moment, every caller is
/// answered, and a QEMU that tells the truth again is believed again.
pub fn machine(data: &[u8]) {
    super::in_own_time(tell(Choices::new(data)));
}

async fn tell(mut choices: Choices<'_>) {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let mut story = Story::begin(directory.path(), &mut choices).await;
    for _ in 0..STEPS {
        if choices.is_empty() {
            break;
        }
        story.take(&mut choices).await;
    }
    story.end().await;
}

/// A machine, its QEMU, and what was told of it.
struct Story<'a> {
    directory: &'a Path,
    qemu: Qemu,
    entities: usize,
    service: Service,
    told: Arc<Mutex<Told>>,
    calls: Vec<JoinHandle<Result<Outcome, Error>>>,
}

/// The vCPUs that are there if what was told is true.
#[derive(Default)]
struct Told {
    there: BTreeSet<VcpuId>,
    /// Of which it may be told once more what was told just before the service ended.
    repeatable: BTreeSet<VcpuId>,
    /// Whether QEMU keeps to what an entity is. Where it does not, what is told of vCPUs is as wrong.
    is_strict: bool,
}

impl<'a> Story<'a> {
    async fn begin(directory: &'a Path, choices: &mut Choices<'_>) -> Self {
        let (architecture, width) = choices.one(&[("x86_64", 1), ("ppc64", 4), ("s390x", 1)]);
        let entities = 1 + choices.below(6);
        let qemu = Qemu::listen(&directory.join("qmp"), architecture, width, entities);
        let told = Arc::new(Mutex::new(Told {
            is_strict: true,
            ..Told::default()
        }));
        let service = Service::start(directory, told.clone()).await;
        // What is there at first is no news.
        let there = service.handle.snapshot();
        let there = there
            .inventory
            .present()
            .flat_map(|(entity, _)| entity.vcpus());
        lock(&told).there = there.collect();
        Self {
            directory,
            qemu,
            entities,
            service,
            told,
            calls: Vec::new(),
        }
    }

    async fn take(&mut self, choices: &mut Choices<'_>) {
        match choices.below(12) {
            0 | 1 => self.pause(choices).await,
            2 => self.request(Target::Count(choices.below(28) as u32), choices),
            3 => {
                let list = (0..24).filter(|_| choices.once_in(4));
                let list = list.map(VcpuId).collect();
                self.request(Target::Absent(list), choices);
            }
            4 => {
                let list = (0..24).filter(|_| choices.once_in(4));
                let list = list.map(VcpuId).collect();
                self.request(Target::Present(list), choices);
            }
            5 => self.eject(choices),
            6 => self.qemu.shared().plug(choices.below(self.entities)),
            7 => self.say(choices),
            8 => self.lie(choices),
            9 => {
                self.qemu.accept(choices.below(2) == 0);
                self.qemu.shared().hang_up();
            }
            10 => {
                let willing = choices.below(2) == 1;
                self.qemu.shared().willing = willing;
            }
            _ => self.restart().await,
        }
    }

    async fn pause(&self, choices: &mut Choices<'_>) {
        match choices.one(&[0, 1, 20, 260, 1_100, 5_100]) {
            0 => tokio::task::yield_now().await,
            time => {
                sleep(Duration::from_millis(time)).await;
                self.check();
            }
        }
    }

    /// Asks as the bus does, with the number that comes of it.
    fn request(&mut self, target: Target, choices: &mut Choices<'_>) {
        let handle = self.service.handle.clone();
        let count = handle.snapshot().plan(&target).map_or_else(
            |error| {
                let _ = error.to_string();
                0
            },
            |(_, count)| count,
        );
        let wait = match choices.below(4) {
            0 => Wait::No,
            1 => Wait::UpTo(None),
            2 => Wait::UpTo(Some(Duration::ZERO)),
            _ => Wait::UpTo(Some(PATIENCE)),
        };
        let request = Request {
            target,
            subject: handle.snapshot().subject(),
            authorized_count: count,
            wait,
            guest_online: false,
            uid: Uid(7),
        };
        let call = async move { machine::set_vcpus(&handle, request).await };
        self.calls.push(tokio::spawn(call));
    }

    /// The guest gives up a CPU, or ejects one by itself; QEMU may tell.
    fn eject(&self, choices: &mut Choices<'_>) {
        let n = choices.below(self.entities);
        let below = choices.one(&["", "/lapic", "/thread[0]"]);
        let mut qemu = self.qemu.shared();
        let gone = if n > 0 { qemu.unplug(n) } else { None };
        if let Some(path) = gone
            && choices.below(4) > 0
        {
            qemu.send(&event(
                "DEVICE_DELETED",
                json!({"path": format!("{path}{below}")}),
            ));
        }
    }

    /// Any event, of a CPU that is there or of none.
    fn say(&self, choices: &mut Choices<'_>) {
        let qemu = self.qemu.shared();
        let n = choices.below(self.entities);
        let below = choices.one(&["", "/lapic", "/thread[0]", "x", "/"]);
        let path = format!(
            "{}{below}",
            qemu.path(n).unwrap_or("/machine/peripheral/gone")
        );
        let device = path
            .rsplit('/')
            .find(|part| !part.is_empty())
            .unwrap_or_default();
        let with_device = choices.below(2) == 1;
        let mut data = json!({"path": path});
        if with_device {
            data["device"] = device.into();
        }
        qemu.send(&match choices.below(6) {
            0 => event("DEVICE_DELETED", data),
            1 => event("DEVICE_UNPLUG_GUEST_ERROR", data),
            2 | 3 => {
                let slot =
                    choices.one(&[n.to_string(), "-1".into(), "4294967296".into(), "".into()]);
                let mut info = json!({
                    "slot-type": choices.one(&["CPU", "CPU", "CPU", "DIMM"]), "slot": slot,
                    "source": choices.one(&[3, 0x103, 1, 0]),
                    "status": choices.one(&[0, 0x80, 0x82, 0x84, u64::MAX]),
                });
                if with_device {
                    info["device"] = device.into();
                }
                event("ACPI_DEVICE_OST", json!({"info": info}))
            }
            4 => event("RESET", json!({})),
            _ => event("STOP", json!({})),
        });
    }

    fn lie(&self, choices: &mut Choices<'_>) {
        let about = choices.one(&COMMANDS);
        let lie = match choices.below(9) {
            0 => Lie::Refusal(choices.below(8)),
            1 => Lie::OtherType(choices.below(8)),
            2 => Lie::Silence,
            3 => Lie::OtherId,
            4 => Lie::Junk,
            5 | 6 => Lie::Without(choices.below(self.entities)),
            7 => Lie::WithoutThreads,
            _ => {
                lock(&self.told).is_strict = false;
                Lie::Wider
            }
        };
        self.qemu.shared().lies.push_back((about, lie));
    }

    async fn restart(&mut self) {
        self.service.end().await;
        lock(&self.told).repeatable = (0..64).map(VcpuId).collect();
        self.service = Service::start(self.directory, self.told.clone()).await;
    }

    /// Whether what was told is what is shown.
    fn check(&self) {
        let snapshot = self.service.handle.snapshot();
        let inventory = &snapshot.inventory;
        assert!(snapshot.pending.len() <= 1024);
        if snapshot.state() == DISCONNECTED || !lock(&self.told).is_strict {
            return;
        }
        let present = inventory.present().flat_map(|(entity, _)| entity.vcpus());
        let present: Vec<VcpuId> = present.collect();
        let told: Vec<VcpuId> = lock(&self.told).there.iter().copied().collect();
        assert_eq!(told, present, "what was told, and what is shown");
        for vcpu in &snapshot.pending {
            assert!(present.contains(vcpu), "{vcpu} of {present:?} is leaving");
        }
    }

    /// QEMU tells the truth from now on.
    async fn end(mut self) {
        self.qemu.shared().lies.clear();
        self.qemu.accept(true);
        for call in std::mem::take(&mut self.calls) {
            let answer = timeout(SETTLED, call)
                .await
                .expect("every caller is answered");
            answered(&answer.expect("no call panics"));
        }
        if timeout(SETTLED, self.truth()).await.is_err() {
            let snapshot = self.service.handle.snapshot();
            let (shown, state) = (present(&snapshot), snapshot.state());
            let there = self.qemu.shared().present();
            panic!("{there:?} are there, {shown:?} are shown of a machine that is {state}");
        }
        self.check();
        self.service.end().await;
    }

    /// Returns when the machine is shown as it is.
    async fn truth(&self) {
        loop {
            // Longer than the service lets pass between two looks.
            sleep(Duration::from_millis(5_100)).await;
            let snapshot = self.service.handle.snapshot();
            let shown = present(&snapshot);
            if snapshot.state() == "running" && shown == self.qemu.shared().present() {
                return;
            }
        }
    }
}

/// The slots that are shown as present.
fn present(snapshot: &Snapshot) -> Vec<SlotId> {
    let present = snapshot.inventory.present();
    present.map(|(entity, _)| entity.id).collect()
}

/// No vCPU is in an answer twice, and the answer can be shown.
fn answered(answer: &Result<Outcome, Error>) {
    match answer {
        Ok(Outcome {
            added,
            removed,
            pending,
        }) => {
            let all = [&added[..], removed, pending].concat();
            let different: BTreeSet<VcpuId> = all.iter().copied().collect();
            assert_eq!(different.len(), all.len(), "{answer:?}");
        }
        Err(error) => drop(error.to_string()),
    }
}

/// The service, as far as one machine needs it.
struct Service {
    running: Option<(machine::Running, JoinHandle<()>)>,
    handle: Handle,
    listener: JoinHandle<()>,
}

impl Service {
    async fn start(directory: &Path, told: Arc<Mutex<Told>>) -> Self {
        let (outbox, mut notices) = EventSender::new();
        let limits = Limits {
            qmp_timeout: SILENCE,
            removal_timeout: PATIENCE,
        };
        let spec = MachineSpec {
            name: "machine".parse().expect("it is a name"),
            registrant: None,
            endpoint: QmpEndpoint::Socket(SocketFile::chosen_by_root(directory.join("qmp"))),
            lifetime: Lifetime::Endpoint,
            uuid: None,
            leader: None,
            processes: Processes::default(),
            agent: directory.join("agent"),
            record: directory.join("record"),
            config: MachineConfig {
                limits,
                placement: PlacementConfig::default(),
            },
        };
        let (running, task) = machine::create(spec, SITE.clone(), outbox.clone());
        let task = tokio::spawn(task);
        // While a QEMU that nobody knows yet answers with lies, it is no machine.
        let first = timeout(STEPS as u32 * SETTLED, notices.recv()).await;
        let Ok(Some(BusMessage::Appeared(handle))) = first else {
            panic!("{first:?} comes first");
        };
        outbox.open();
        Self {
            running: Some((running, task)),
            handle,
            listener: tokio::spawn(listen(notices, told)),
        }
    }

    /// Ends it in the middle of whatever it does.
    async fn end(&mut self) {
        let (running, task) = self.running.take().expect("it runs");
        task.abort();
        let _ = task.await;
        running.finish().await;
        self.listener.abort();
        let ended = (&mut self.listener).await;
        assert!(
            ended.err().is_none_or(|error| !error.is_panic()),
            "what was told is true"
        );
    }
}

/// Keeps what is told of vCPUs that came and went.
async fn listen(mut notices: mpsc::Receiver<BusMessage>, told: Arc<Mutex<Told>>) {
    while let Some(notice) = notices.recv().await {
        let mut told = lock(&told);
        match notice {
            BusMessage::Reply(reply) => reply.complete(),
            BusMessage::Event { event, .. } => match event {
                MachineEvent::VcpuAdded(vcpu) => {
                    let is_news = told.there.insert(vcpu.id);
                    told.check(vcpu.id, is_news);
                }
                MachineEvent::VcpuRemoved(vcpu) => {
                    let is_news = told.there.remove(&vcpu.id);
                    told.check(vcpu.id, is_news);
                }
                _ => {}
            },
            BusMessage::Problems(_) | BusMessage::Appeared(_) => {}
        }
    }
}

impl Told {
    fn check(&mut self, vcpu: VcpuId, is_news: bool) {
        let may_be_again = self.repeatable.remove(&vcpu);
        assert!(
            is_news || may_be_again || !self.is_strict,
            "vCPU {vcpu} came or went twice"
        );
    }
}

fn event(name: &str, data: Value) -> Value {
    json!({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}})
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A host without systemd, whose audit log is nobody's.
static SITE: LazyLock<HostServices> = LazyLock::new(|| HostServices {
    units: Arc::new(Nobody),
    host: Host::this().expect("this is a host"),
    audit: Arc::new(Audit::none()),
    fd_store: Arc::new(Nobody),
});

#[derive(Debug)]
struct Nobody;

type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T, UnitError>> + Send + 'a>>;

impl Units for Nobody {
    fn unit_of<'a>(&'a self, _: Process<'a>) -> Asked<'a, UnitFacts> {
        Box::pin(async { Err(UnitError::Absent("nobody is there".to_owned())) })
    }

    fn start_scope<'a>(&'a self, _: NewScope<'a>, _: Process<'a>) -> Asked<'a, String> {
        panic!("nobody was asked where the machine is")
    }
}

impl FdStore for Nobody {
    fn keep(&self, _: &str, _: BorrowedFd<'_>) {}
    fn release(&self, _: &str) {}
    fn take(&self, _: &str) -> Option<OwnedFd> {
        None
    }
}
