//! The client of vcpud: readings of its machines, and requests to it. It never starts the service, which has no
//! machine when it does not run.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use vcpud::autoscale::Outcome;
use vcpud::names::{BUS_NAME, MACHINE_INTERFACE, MachineName, ROOT_PATH, error_name, name_of};
use vcpud::proxy::{MachineProxy, ManagerProxy, Statistics, error_reply};
use vcpud::signals::Signals;
use zbus::proxy::{CacheProperties, MethodFlags};
use zbus::{Connection, Message, OwnedObjectPath, OwnedVariant, Proxy, Variant};

use crate::counters::{Reading, state};
use crate::error::Error;
use crate::fleet::Facts;

type Dict = HashMap<String, OwnedVariant>;

/// The counters of machines, and what else vcpud says of them.
pub(crate) type Readings = BTreeMap<MachineName, (Reading, Facts)>;

/// The time between readings.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long vcpud has to return the counters of all machines.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// How long a request may take beyond the limits of vcpud.
const REQUEST_LIMIT: Duration = Duration::from_secs(600);

/// How long vcpud has to find a machine.
const FIND_LIMIT: Duration = Duration::from_secs(3);

/// The maximum number of machines whose pins are read at a time.
const MAX_PINS: usize = 16;

/// The maximum number of changes of a machine that are kept for a reading.
const MAX_COUNTS: usize = 64;

/// The maximum number of signals that wait for the end of a reading.
const MAX_SIGNALS: usize = 4096;

/// The connection to vcpud.
#[derive(Debug)]
pub(crate) struct Link {
    bus: Connection,
    signals: mpsc::Receiver<Message>,
    /// Signals were lost.
    has_lost: Arc<AtomicBool>,
    /// The task that takes the signals from the connection, which has no replies while signals wait in it.
    _taker: JoinSet<()>,
    machines: HashMap<String, Facts>,
    /// The machines are to be read again.
    is_outdated: bool,
    /// The machines whose pins are to be read again.
    unread_pins: HashSet<String>,
}

impl Link {
    /// Subscribes to the signals of vcpud.
    pub(crate) async fn new(bus: Connection) -> zbus::Result<Self> {
        let mut all = Signals::subscribe(&bus, None).await?;
        let (sender, signals) = mpsc::channel(MAX_SIGNALS);
        let has_lost = Arc::new(AtomicBool::new(false));
        let lost = Arc::clone(&has_lost);
        let mut taker = JoinSet::new();
        taker.spawn(async move {
            while let Some(signal) = all.next().await {
                let is_kept = signal.is_ok_and(|signal| sender.try_send(signal).is_ok());
                lost.fetch_or(!is_kept, Ordering::Relaxed);
            }
        });
        Ok(Self {
            bus,
            signals,
            has_lost,
            _taker: taker,
            machines: HashMap::new(),
            is_outdated: true,
            unread_pins: HashSet::new(),
        })
    }

    /// Sends the readings of the machines in `names` once a second. Without such a machine, it waits for a signal.
    pub(crate) async fn run(
        mut self,
        mut names: watch::Receiver<HashSet<MachineName>>,
        readings: mpsc::Sender<zbus::Result<Readings>>,
    ) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wanted = names.borrow_and_update().clone();
            let is_active = wanted.iter().any(|name| self.has(name)) || self.is_outdated;
            tokio::select! {
                _ = ticks.tick(), if is_active && !wanted.is_empty() => {
                    if readings.send(self.read(&wanted).await).await.is_err() {
                        return;
                    }
                }
                changed = names.changed() => if changed.is_err() {
                    return;
                },
                signal = self.signals.recv() => match signal {
                    Some(signal) => {
                        self.note(&signal);
                    }
                    None => return,
                },
            }
        }
    }

    fn note(&mut self, signal: &Message) -> Option<()> {
        let header = signal.header();
        match header.member()?.as_str() {
            "PropertiesChanged" => {
                let (interface, changed, _): (String, Dict, Vec<String>) =
                    signal.body().deserialize().ok()?;
                let facts = self.machines.get_mut(header.path()?.as_str());
                if let Some(facts) = facts.filter(|_| interface == MACHINE_INTERFACE) {
                    facts.apply(&changed);
                }
            }
            "VcpuChanged" => {
                self.unread_pins.insert(header.path()?.to_string());
            }
            "InterfacesAdded" | "InterfacesRemoved" | "NameOwnerChanged" => self.is_outdated = true,
            _ => {}
        }
        Some(())
    }

    fn has(&self, name: &MachineName) -> bool {
        self.machines.contains_key(&name.object_path())
    }

    /// Reads the properties of all machines, if they may have changed.
    async fn refresh(&mut self) -> zbus::Result<()> {
        self.is_outdated |= self.has_lost.swap(false, Ordering::Relaxed);
        if !self.is_outdated {
            return Ok(());
        }
        type Objects = HashMap<OwnedObjectPath, HashMap<String, Dict>>;
        let manager = proxy(&self.bus, ROOT_PATH, "org.freedesktop.DBus.ObjectManager").await?;
        let objects: Option<Objects> = match call(&manager, "GetManagedObjects", &()).await {
            Err(error) if is_absent(&error) => None,
            objects => Some(objects?),
        };
        self.is_outdated = false;
        let mut known = std::mem::take(&mut self.machines);
        for (path, mut object) in objects.into_iter().flatten() {
            if let Some(properties) = object.remove(MACHINE_INTERFACE) {
                let path = path.to_string();
                let mut facts = known.remove(&path).unwrap_or_default();
                facts.apply(&properties);
                self.machines.insert(path, facts);
            }
        }
        self.unread_pins = self.machines.keys().cloned().collect();
        Ok(())
    }

    /// Reads the counters of the machines with a name of `names`, and their pins if these may have changed.
    async fn read(&mut self, names: &HashSet<MachineName>) -> zbus::Result<Readings> {
        let read = timeout(READ_LIMIT, self.read_unlimited(names)).await;
        read.unwrap_or_else(|_| {
            let error = std::io::Error::from(std::io::ErrorKind::TimedOut);
            Err(zbus::Error::InputOutput(error.into()))
        })
    }

    /// Reads the pins that may have changed. Without the pins, there is no reading, and so no removal.
    async fn read_pins(&mut self, names: &HashSet<MachineName>) -> zbus::Result<()> {
        let paths = names.iter().map(MachineName::object_path);
        let unread: Vec<String> = paths
            .filter(|path| self.unread_pins.contains(path))
            .collect();
        let bus = &self.bus;
        let read = async |path: String| (highest_pinned(bus, &path).await, path);
        let mut pins = stream::iter(unread).map(read).buffer_unordered(MAX_PINS);
        while let Some((pinned, path)) = pins.next().await {
            let pinned = pinned?;
            self.unread_pins.remove(&path);
            if let Some(facts) = self.machines.get_mut(&path) {
                facts.highest_pinned = pinned;
            }
        }
        Ok(())
    }

    async fn read_unlimited(&mut self, names: &HashSet<MachineName>) -> zbus::Result<Readings> {
        self.refresh().await?;
        self.read_pins(names).await?;
        let manager = proxy(&self.bus, ROOT_PATH, vcpud::names::MANAGER_INTERFACE).await?;
        let options: HashMap<&str, Variant<'_>> = HashMap::new();
        let read = call(&manager, "GetStatistics", &(options,)).await;
        let all: HashMap<OwnedObjectPath, Statistics> = match read {
            Err(error) if is_absent(&error) => HashMap::new(),
            read => read?,
        };
        let machines = &mut self.machines;
        let readings = all.iter().filter_map(|(path, statistics)| {
            let name: MachineName = name_of(path).parse().ok()?;
            let facts = machines.get_mut(path.as_str())?;
            if !names.contains(&name) {
                return None;
            }
            let counts = std::mem::take(&mut facts.counts);
            let facts = Facts {
                counts,
                ..facts.clone()
            };
            Some((name, (Reading::new(statistics), facts)))
        });
        Ok(readings.collect())
    }
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            state: state("disconnected"),
            slot: 1,
            leader: 0,
            counts: Vec::new(),
            highest_pinned: None,
        }
    }
}

impl Facts {
    fn apply(&mut self, properties: &Dict) {
        if let Some(Variant::Str(word)) = properties.get("State").map(|value| &**value) {
            self.state = state(word);
        }
        let number = |key| match properties.get(key).map(|value| &**value) {
            Some(Variant::U32(number)) => Some(*number),
            _ => None,
        };
        self.slot = number("VcpusPerSlot").unwrap_or(self.slot);
        self.leader = number("Leader").unwrap_or(self.leader);
        // A machine has no vCPUs until QEMU has answered.
        let count = number("Vcpus").filter(|count| *count > 0);
        if self.counts.len() < MAX_COUNTS {
            self.counts.extend(count);
        }
    }
}

/// Calls a method. The bus does not start vcpud for it.
async fn call<R>(
    proxy: &Proxy<'_>,
    method: &str,
    arguments: &(impl serde::Serialize + zbus::DynamicType),
) -> zbus::Result<R>
where
    R: for<'a> zbus::wire::DynamicDeserialize<'a>,
{
    let flags = MethodFlags::NO_AUTO_START;
    let reply = proxy.call_with_flags(method, flags, arguments).await?;
    reply.ok_or(zbus::Error::InvalidReply)
}

async fn proxy<'a>(bus: &Connection, path: &'a str, interface: &'a str) -> zbus::Result<Proxy<'a>> {
    let builder = zbus::proxy::Builder::new(bus)
        .destination(BUS_NAME)
        .path(path);
    let builder = builder.interface(interface);
    builder.cache_properties(CacheProperties::No).build().await
}

/// Whether an error is the reply with one of `names`.
fn has_name(error: &zbus::Error, names: &[&str]) -> bool {
    error_reply(error).is_some_and(|(name, _)| names.contains(&name.as_str()))
}

/// Whether the bus says that vcpud does not run.
fn is_absent(error: &zbus::Error) -> bool {
    let absent = [
        "org.freedesktop.DBus.Error.ServiceUnknown",
        "org.freedesktop.DBus.Error.NameHasNoOwner",
    ];
    has_name(error, &absent)
}

/// Whether the machine of a call does not exist any more.
fn is_gone(error: &zbus::Error) -> bool {
    let gone = [
        "org.freedesktop.DBus.Error.UnknownObject",
        error_name::NO_SUCH_MACHINE,
    ];
    is_absent(error) || has_name(error, &gone)
}

/// Returns the highest vCPU with a pin of its own; `None` also for a machine that has ended.
async fn highest_pinned(bus: &Connection, path: &str) -> zbus::Result<Option<u32>> {
    let machine = proxy(bus, path, MACHINE_INTERFACE).await?;
    let tuning: Dict = match call(&machine, "GetTuning", &()).await {
        Err(error) if is_gone(&error) => return Ok(None),
        tuning => tuning?,
    };
    let pins = tuning.get("pins").cloned();
    let pins: Option<Vec<(u32, String)>> = pins.and_then(|pins| pins.try_into().ok());
    Ok(pins.into_iter().flatten().map(|(vcpu, _)| vcpu).max())
}

/// Returns whether vcpud has the machine.
///
/// # Errors
/// vcpud does not answer in time.
pub(crate) async fn has_machine(bus: &Connection, name: &MachineName) -> Result<bool, Error> {
    match max_vcpus(bus, name).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_no_such_machine() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the maximum number of vCPUs of a machine, or `None` if vcpud does not know it yet.
///
/// # Errors
/// vcpud does not have the machine, or does not answer in time.
pub(crate) async fn max_vcpus(bus: &Connection, name: &MachineName) -> Result<Option<u32>, Error> {
    let question = async {
        let manager = ManagerProxy::builder(bus).cache_properties(CacheProperties::No);
        let path = manager.build().await?.get_machine(name.as_str()).await?;
        let machine = MachineProxy::builder(bus).path(path);
        let machine = machine.cache_properties(CacheProperties::No).build();
        machine.await?.max_vcpus().await
    };
    let answer = timeout(FIND_LIMIT, question).await;
    match answer.map_err(|_| Error::io("vcpud does not answer in time"))? {
        Ok(max) => Ok((max > 0).then_some(max)),
        Err(error) if is_gone(&error) && !is_absent(&error) => {
            Err(Error::no_such_machine(match error_reply(&error) {
                Some((_, text)) => text,
                None => error.to_string(),
            }))
        }
        Err(error) => Err(Error::io(format!("vcpud does not answer: {error}"))),
    }
}

/// Sets the number of vCPUs of a machine that has `from`. An addition ends as `until` says.
///
/// # Errors
/// How the request failed, with the text.
pub(crate) async fn request(
    bus: Connection,
    name: MachineName,
    from: u32,
    goal: u32,
    until: &'static str,
) -> Result<(), (Outcome, String)> {
    let options = HashMap::from([("until", Variant::from(until)), ("current", from.into())]);
    let call = async {
        let builder = MachineProxy::builder(&bus).path(name.object_path());
        let machine = builder
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        machine.set_vcpus(goal, options).await
    };
    let result = match timeout(REQUEST_LIMIT, call).await {
        Ok(result) => result,
        Err(_) => return Err((Outcome::TimedOut, "vcpud did not answer".to_owned())),
    };
    result.map(drop).map_err(|error| {
        let Some((name, text)) = error_reply(&error) else {
            return (Outcome::Refused, error.to_string());
        };
        match name.as_str() {
            error_name::REMOVAL_PENDING | error_name::GUEST_DID_NOT_START => {
                (Outcome::TimedOut, text)
            }
            _ => (Outcome::Refused, text),
        }
    })
}
