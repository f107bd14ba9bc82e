//! A scripted vcpud with one machine, whose load is exact. No real guest has such a load on a busy host.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use tokio::sync::watch;
use vcpud::process::monotonic;
use vcpud::proxy::{Changed, Statistics};
use zbus::{DBusError, OwnedObjectPath, OwnedVariant, Variant, interface};

use crate::harness::*;

type Dict = HashMap<String, OwnedVariant>;

const PATH: &str = "/org/vcpud1/machine/web";

/// The machine, and the host that it runs on.
#[derive(Debug)]
pub(super) struct State {
    pub(super) present: u32,
    pub(super) max: u32,
    pub(super) started: u32,
    pub(super) pending: u32,
    /// The number of busy threads of the guest.
    pub(super) demand: f64,
    /// The number of host CPUs that it obtains at most.
    pub(super) supply: f64,
    pub(super) state: &'static str,
    pub(super) pinned: Vec<u32>,
    /// The guest refuses to give up vCPUs.
    pub(super) refuses: bool,
    pub(super) counted_at: Instant,
    /// The CPU time and the wait of each vCPU, in µs.
    pub(super) counters: [f64; 2],
}

impl Default for State {
    fn default() -> Self {
        Self {
            present: 1,
            max: 8,
            started: 8,
            pending: 0,
            demand: 0.1,
            supply: 100.0,
            state: "running",
            pinned: Vec::new(),
            refuses: false,
            counted_at: Instant::now(),
            counters: [0.0; 2],
        }
    }
}

impl State {
    /// Counts what the vCPUs did since the last call.
    fn count(&mut self) {
        let time = self.counted_at.elapsed().as_secs_f64() * 1e6;
        self.counted_at = Instant::now();
        let vcpus = f64::from(self.present);
        let runnable = self.demand.min(vcpus);
        let used = runnable.min(self.supply);
        self.counters[0] += used / vcpus * time;
        self.counters[1] += (runnable - used) / vcpus * time;
    }

    fn statistics(&mut self) -> Statistics {
        self.count();
        let [used, waited] = self.counters.map(|counter| counter as u64);
        let machine = HashMap::from([
            ("timestamp-usec", (monotonic().as_micros() as u64).into()),
            ("vcpus", self.present.into()),
            ("max-vcpus", self.max.into()),
            ("started", self.started.min(self.present).into()),
            ("pending", self.pending.into()),
        ]);
        let vcpu = |id: u32| {
            owned(HashMap::from([
                ("id", id.into()),
                ("usage-usec", used.into()),
                ("wait-usec", waited.into()),
            ]))
        };
        (owned(machine), (0..self.present).map(vcpu).collect())
    }
}

fn owned(dict: HashMap<&str, Variant<'static>>) -> Dict {
    let owned = |(key, value): (&str, Variant<'static>)| {
        (
            key.to_owned(),
            OwnedVariant::try_from(value).expect("no descriptor"),
        )
    };
    dict.into_iter().map(owned).collect()
}

#[derive(Debug, DBusError)]
#[zbus(prefix = "org.vcpud1.Error")]
enum Refusal {
    #[zbus(error)]
    ZBus(zbus::Error),
    GuestRefused(String),
    Busy(String),
}

/// The scripted vcpud.
#[derive(Clone)]
pub(super) struct Scripted {
    state: Arc<Mutex<State>>,
    /// The requests: the numbers of vCPUs before and after.
    requests: watch::Sender<Vec<(u32, u32)>>,
    /// The number of calls of `GetMachine`.
    found: watch::Sender<u32>,
    /// Calls of `GetStatistics` and `GetMachine` wait while this is true.
    hangs: watch::Sender<bool>,
}

impl Scripted {
    /// Serves a machine `web`.
    pub(super) async fn start(world: &World, state: State) -> Self {
        let scripted = Self {
            state: Arc::new(Mutex::new(state)),
            requests: watch::Sender::default(),
            hangs: watch::Sender::default(),
            found: watch::Sender::default(),
        };
        let objects = world.connection.object_server();
        let root = "/org/vcpud1";
        objects.at(root, zbus::fdo::ObjectManager).await.unwrap();
        objects.at(root, Manager(scripted.clone())).await.unwrap();
        objects.at(PATH, Machine(scripted.clone())).await.unwrap();
        world.connection.request_name("org.vcpud1").await.unwrap();
        scripted
    }

    /// Changes the machine. What its vCPUs did until now is counted first.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap();
        state.count();
        state
    }

    /// Pauses the guest, which is a signal.
    pub(super) async fn pause(&self, world: &World) {
        self.state().state = "paused";
        let objects = world.connection.object_server();
        let machine = objects.interface::<_, Machine>(PATH).await.unwrap();
        let emitter = machine.signal_emitter();
        machine.get().await.state_changed(emitter).await.unwrap();
    }

    /// Sets the number of vCPUs, with a signal, as another caller does.
    pub(super) async fn set(&self, world: &World, present: u32) {
        self.state().present = present;
        let objects = world.connection.object_server();
        let machine = objects.interface::<_, Machine>(PATH).await.unwrap();
        let emitter = machine.signal_emitter();
        machine.get().await.vcpus_changed(emitter).await.unwrap();
    }

    pub(super) fn hang(&self, hangs: bool) {
        self.hangs.send_replace(hangs);
    }

    /// Waits until requests match.
    pub(super) async fn requests(
        &self,
        what: &str,
        mut matches: impl FnMut(&[(u32, u32)]) -> bool,
    ) -> Vec<(u32, u32)> {
        let mut requests = self.requests.subscribe();
        let matching = requests.wait_for(|requests| matches(requests));
        within(what, matching).await.unwrap().clone()
    }

    /// Waits for a call of `GetMachine`.
    pub(super) async fn is_asked(&self, count: u32) {
        let mut found = self.found.subscribe();
        let asked = found.wait_for(|calls| *calls >= count);
        within("a call of GetMachine", asked).await.unwrap();
    }

    pub(super) fn requested(&self) -> Vec<(u32, u32)> {
        self.requests.borrow().clone()
    }
}

struct Manager(Scripted);

#[interface(name = "org.vcpud1.Manager")]
impl Manager {
    async fn get_statistics(&self, _options: Dict) -> HashMap<OwnedObjectPath, Statistics> {
        let mut hangs = self.0.hangs.subscribe();
        let _ = hangs.wait_for(|hangs| !hangs).await;
        let path = OwnedObjectPath::try_from(PATH).unwrap();
        HashMap::from([(path, self.0.state.lock().unwrap().statistics())])
    }

    async fn get_machine(&self, _name: &str) -> OwnedObjectPath {
        self.0.found.send_modify(|calls| *calls += 1);
        let mut hangs = self.0.hangs.subscribe();
        let _ = hangs.wait_for(|hangs| !hangs).await;
        OwnedObjectPath::try_from(PATH).unwrap()
    }
}

struct Machine(Scripted);

#[interface(name = "org.vcpud1.Machine")]
impl Machine {
    fn set_vcpus(&self, count: u32, options: Dict) -> Result<Changed, Refusal> {
        let mut state = self.0.state();
        assert_eq!(*options["until"], "started".into());
        if *options["current"] != state.present.into() {
            return Err(Refusal::Busy("another number".to_owned()));
        }
        let from = state.present;
        if count < from && state.refuses {
            self.0.requests.send_modify(|all| all.push((from, count)));
            return Err(Refusal::GuestRefused("the guest is busy".to_owned()));
        }
        state.present = count;
        self.0.requests.send_modify(|all| all.push((from, count)));
        Ok(((from..count).collect(), (count..from).collect(), Vec::new()))
    }

    fn get_tuning(&self) -> Dict {
        let pins = self.0.state().pinned.clone().into_iter();
        let pins: Vec<(u32, String)> = pins.map(|vcpu| (vcpu, "0".to_owned())).collect();
        owned(HashMap::from([("pins", Variant::from(pins))]))
    }

    #[zbus(property)]
    fn state(&self) -> &'static str {
        self.0.state.lock().unwrap().state
    }

    #[zbus(property)]
    fn leader(&self) -> u32 {
        std::process::id()
    }

    #[zbus(property)]
    fn max_vcpus(&self) -> u32 {
        self.0.state.lock().unwrap().max
    }

    #[zbus(property)]
    fn vcpus(&self) -> u32 {
        self.0.state.lock().unwrap().present
    }

    #[zbus(property)]
    fn vcpus_per_slot(&self) -> u32 {
        1
    }
}
