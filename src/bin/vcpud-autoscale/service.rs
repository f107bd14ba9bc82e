//! The service: takes the samples of vcpud, decides, and makes the requests. It owns all state of the program, and ends
//! when there is nothing to scale.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};
use vcpud::autoscale::{Decision, Outcome};
use vcpud::names::{AUTOSCALE_PATH, MachineName};
use vcpud::process::monotonic;
use zbus::Connection;
use zbus::object_server::SignalEmitter;

use crate::describe;
use crate::error::Error;
use crate::fleet::{Action, Fleet};
use crate::holds::Holds;
use crate::interface::{Autoscale, Change, Command, not_scaled};
use crate::link::{Link, Readings, request};
use crate::settings::{Mode, Settings};
use crate::store::{Configuration, MAX_MACHINES, Origin, Store};

/// Without settings of a machine, the service ends after this time without a call.
const IDLE_EXIT: Duration = Duration::from_secs(60);

/// A machine, and how a request for it ended.
type Ended = (MachineName, Result<(), (Outcome, String)>);

/// The state of the program.
#[derive(Debug)]
pub(crate) struct Service {
    bus: Connection,
    /// The connection to vcpud. Calls of users cannot delay its replies.
    client: Connection,
    store: Store,
    configuration: Configuration,
    fleet: Fleet,
    /// The holds that are persisted.
    holds: Holds,
    /// Other holds could not be persisted.
    is_hold_unsaved: bool,
    /// The machines that are to be sampled.
    names: watch::Sender<HashSet<MachineName>>,
    /// The requests to vcpud that have no result.
    requests: JoinSet<Ended>,
    /// The reason why the last sample failed.
    failure: Option<String>,
    last_call: Instant,
}

impl Service {
    /// Reads the configuration.
    pub(crate) async fn new(bus: Connection, client: Connection, store: Store) -> Self {
        let mut service = Self {
            names: watch::Sender::default(),
            bus,
            client,
            store,
            configuration: Configuration::default(),
            fleet: Fleet::new(host_cpus()),
            holds: Holds::new(),
            is_hold_unsaved: false,
            requests: JoinSet::new(),
            failure: None,
            last_call: Instant::now(),
        };
        service.reload().await;
        service.restore().await;
        service
    }

    /// Takes the holds of a previous instance.
    async fn restore(&mut self) {
        let store = self.store.clone();
        match spawn_blocking(move || store.holds()).await {
            Ok(Ok(holds)) => {
                self.fleet.restore(&holds);
                self.holds = holds;
            }
            Ok(Err(error)) => warn!("{error}"),
            Err(_) => {}
        }
    }

    /// Persists the holds if they have changed.
    async fn save_holds(&mut self) {
        let holds = self.fleet.holds(monotonic());
        if holds == self.holds {
            return;
        }
        let (store, saved) = (self.store.clone(), holds.clone());
        let result = spawn_blocking(move || store.save_holds(&saved)).await;
        match result.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok(()) => {
                self.holds = holds;
                self.is_hold_unsaved = false;
            }
            Err(error) if !self.is_hold_unsaved => {
                warn!("the changes by other callers cannot be saved for a restart: {error}");
                self.is_hold_unsaved = true;
            }
            // The next sample tries again.
            Err(_) => {}
        }
    }

    /// Reads the configuration again. Machines whose settings stay keep their history.
    pub(crate) async fn reload(&mut self) {
        let store = self.store.clone();
        let Ok(configuration) = spawn_blocking(move || store.read()).await else {
            return;
        };
        for error in &configuration.errors {
            warn!("{error}");
        }
        self.fleet.configure(&configuration, host_cpus());
        self.configuration = configuration;
    }

    /// Serves until there is nothing to scale, or the connection to the bus is lost.
    ///
    /// # Errors
    /// The connection is lost.
    pub(crate) async fn run(
        &mut self,
        mut commands: mpsc::Receiver<Command>,
        mut reloads: mpsc::Receiver<()>,
    ) -> zbus::Result<()> {
        let (sender, mut readings) = mpsc::channel(1);
        let link = Link::new(self.client.clone()).await?;
        let mut sampler = JoinSet::new();
        sampler.spawn(link.run(self.names.subscribe(), sender));
        loop {
            self.names.send_if_modified(|names| {
                let active: HashSet<MachineName> = self.fleet.active().cloned().collect();
                let is_other = *names != active;
                *names = active;
                is_other
            });
            let idle_at = self.last_call + IDLE_EXIT;
            tokio::select! {
                _ = sampler.join_next() => return Err(lost()),
                Some(readings) = readings.recv() => self.take(readings).await,
                Some(ended) = self.requests.join_next() => {
                    if let Ok((name, result)) = ended {
                        self.end(&name, result);
                    }
                }
                Some(command) = commands.recv() => self.serve(command).await,
                Some(()) = reloads.recv() => self.reload().await,
                () = sleep_until(idle_at), if self.is_idle() => {
                    info!("no machine is to be scaled, so the service ends");
                    return Ok(());
                }
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.fleet.active().next().is_none() && self.requests.is_empty()
    }

    /// Takes a sample, decides, and begins requests.
    async fn take(&mut self, readings: zbus::Result<Readings>) {
        let readings = match readings {
            Ok(readings) => {
                self.failure = None;
                readings
            }
            Err(error) => {
                let error = error.to_string();
                if self.failure.as_ref() != Some(&error) {
                    warn!("cannot get the statistics of vcpud: {error}");
                }
                self.failure = Some(error);
                return;
            }
        };
        for action in self.fleet.step(monotonic(), readings) {
            match action {
                Action::Tell(name, decision) => self.tell(&name, &decision).await,
                Action::Request {
                    name,
                    from,
                    goal,
                    until,
                } => {
                    let call = request(self.client.clone(), name.clone(), from, goal, until);
                    self.requests.spawn(async move { (name, call.await) });
                }
            }
        }
        self.save_holds().await;
    }

    /// Logs and emits a decision.
    async fn tell(&self, name: &MachineName, decision: &Decision) {
        let (from, to) = (decision.details.present, decision.goal);
        let reason = decision.reason.to_string();
        let machine = self.fleet.machines.get(name);
        let mode = machine.map_or(Mode::Off, |machine| self.fleet.mode(machine));
        if from != to {
            let what = match mode {
                Mode::On => "sets",
                Mode::Observe | Mode::Off => "would set",
            };
            let plural = if to == 1 { "" } else { "s" };
            let code = decision.reason.code();
            info!(vm_name = %name, reason_code = code, "{name}: {what} {to} vCPU{plural} instead of {from}: {reason}");
        }
        let mut details = describe::numbers(decision);
        details.insert("mode", mode.as_str().into());
        details.insert("reason-code", decision.reason.code().into());
        if let Ok(emitter) = SignalEmitter::new(&self.bus, AUTOSCALE_PATH) {
            // Without a connection, the service ends soon.
            let _ = Autoscale::decided(&emitter, name.as_str(), from, to, &reason, details).await;
        }
    }

    /// Notes the result of a request.
    fn end(&mut self, name: &MachineName, result: Result<(), (Outcome, String)>) {
        if let Err((_, error)) = &result {
            warn!(vm_name = %name, "{name}: {error}");
        }
        self.fleet.note_result(name, result, monotonic());
    }

    async fn serve(&mut self, command: Command) {
        self.last_call = Instant::now();
        match command {
            Command::Enable(name, change, reply) => {
                let _ = reply.send(self.enable(name, change).await);
            }
            Command::Disable(name, reply) => {
                let _ = reply.send(self.disable(&name).await);
            }
            Command::List(reply) => {
                let machines = self.fleet.machines.iter();
                let failure = self.failure.as_deref();
                let row = |(name, machine): (&MachineName, _)| {
                    let row = describe::row(&self.fleet, machine, failure);
                    (name.as_str().to_owned(), row)
                };
                let _ = reply.send(machines.map(row).collect::<BTreeMap<_, _>>());
            }
            Command::Explain(name, reply) => {
                let machine = self.fleet.machines.get(&name);
                let failure = self.failure.as_deref();
                let explain = |machine| describe::explanation(&self.fleet, &name, machine, failure);
                let _ = reply.send(machine.map(explain));
            }
            Command::Errors(reply) => {
                let _ = reply.send(self.configuration.errors.clone());
            }
        }
    }

    async fn enable(&mut self, name: MachineName, change: Change) -> Result<(), Error> {
        let max_vcpus = change.max_vcpus;
        let settings = if change.is_update {
            self.fleet.updated(&name, &change.settings)
        } else {
            change.settings
        };
        let checked = self.fleet.check(&settings, max_vcpus);
        checked.map_err(|error| Error::invalid_args(format!("{name}: {error}")))?;
        let is_new = !self.fleet.machines.contains_key(&name);
        if is_new && self.fleet.machines.len() >= MAX_MACHINES {
            return Err(Error::limit_exceeded(format!(
                "{MAX_MACHINES} machines have settings, which is the limit"
            )));
        }
        self.save(name.clone(), Some(settings.clone())).await?;
        self.fleet.enable(name.clone(), settings, Origin::Call);
        if let Some(max) = max_vcpus {
            self.fleet.limit(&name, max);
        }
        if let Some(machine) = self.fleet.machines.get(&name) {
            info!(vm_name = %name, "{name}: scaled, mode {}", self.fleet.mode(machine).as_str());
        }
        Ok(())
    }

    async fn disable(&mut self, name: &MachineName) -> Result<(), Error> {
        if !self.fleet.machines.contains_key(name) {
            return Err(not_scaled(name.as_str()));
        }
        let (store, machine) = (self.store.clone(), name.clone());
        let has_file = spawn_blocking(move || store.has_file(&machine)).await;
        // A file of the administrator stays, and the call precedes it.
        let off = has_file.unwrap_or(true).then(Settings::off);
        self.save(name.clone(), off.clone()).await?;
        match off {
            Some(off) => self.fleet.enable(name.clone(), off, Origin::Call),
            None => self.fleet.disable(name),
        }
        info!(vm_name = %name, "{name}: no longer scaled");
        Ok(())
    }

    /// Persists the settings of a machine, or forgets them.
    async fn save(&self, name: MachineName, settings: Option<Settings>) -> Result<(), Error> {
        let store = self.store.clone();
        let write = move || match settings {
            Some(settings) => store.save(&name, &settings),
            None => store.forget(&name),
        };
        let written = spawn_blocking(write).await;
        let written = written.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        written.map_err(|error| Error::io(format!("the settings cannot be saved: {error}")))
    }
}

/// Returns the error for a lost connection to the bus.
fn lost() -> zbus::Error {
    let error = std::io::Error::other("the connection to the bus is lost");
    zbus::Error::InputOutput(error.into())
}

/// Returns the number of online host CPUs.
fn host_cpus() -> f64 {
    use nix::unistd::{SysconfVar, sysconf};
    let online = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    let online = online.and_then(|number| u32::try_from(number).ok());
    online.map_or(1.0, f64::from)
}
