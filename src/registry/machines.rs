//! The machines that there are, and who may be one: a name has one machine, and the first stays.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::register::Event;
use super::registrations::Registrations;
use super::sockets;
use crate::blocking::blocking;
use crate::config::{Configuration, Directories, MachineSettings, Settings};
use crate::ids::Uid;
use crate::machine::{
    self, EventSender, Handle, HostServices, Lifetime, MachineConfig, MachineSpec, PlacementConfig,
    Processes, QmpEndpoint, Running,
};
use crate::names::MachineName;
use crate::process::{Leader, SocketFile};

/// All machines. The only writer of which there are.
pub(super) struct Machines {
    directories: Directories,
    pub(super) site: HostServices,
    outbox: EventSender,
    pub(super) configuration: Configuration,
    pub(super) registrations: Registrations,
    pub(super) known: BTreeMap<MachineName, Known>,
    /// Who would be a machine whose name is taken: by the file of the socket or configuration.
    passed_over: BTreeMap<PathBuf, (MachineName, String)>,
    /// What was told to be wrong.
    problems: Vec<String>,
    processes: Processes,
    /// Tells one machine from a later one of the same name.
    generation: u64,
    /// What is waited for.
    pub(super) events: FuturesUnordered<BoxFuture<'static, Event>>,
}

/// A machine.
pub(super) struct Known {
    pub(super) running: Running,
    task: JoinHandle<()>,
    pub(super) done: CancellationToken,
    pub(super) origin: Origin,
    pub(super) generation: u64,
    /// What its registration said of it.
    own: Settings,
    /// The socket that it was started with.
    own_socket: Option<PathBuf>,
}

/// Where a machine comes from.
pub(super) enum Origin {
    /// Its socket is in the directory.
    Socket,
    /// It has a file with its socket.
    File(PathBuf),
    /// A user registered it.
    Registration(Uid),
}

/// What makes a machine, beside the configuration.
pub(super) struct New {
    pub(super) origin: Origin,
    pub(super) endpoint: QmpEndpoint,
    pub(super) lifetime: Lifetime,
    /// What its registration says.
    pub(super) own: MachineSettings,
    pub(super) leader: Option<Arc<Leader>>,
}

impl Machines {
    /// No machines yet, for `configuration`.
    pub(super) fn new(
        directories: Directories,
        configuration: Configuration,
        site: HostServices,
        outbox: EventSender,
    ) -> Self {
        Self {
            registrations: Registrations::new(directories.registrations()),
            directories,
            site,
            outbox,
            configuration,
            known: BTreeMap::new(),
            passed_over: BTreeMap::new(),
            problems: Vec::new(),
            processes: Processes::default(),
            generation: 0,
            events: FuturesUnordered::new(),
        }
    }

    /// How many there are or are awaited.
    pub(super) fn count(&self) -> usize {
        self.known.len()
    }

    /// Starts the machines whose files have their sockets.
    pub(super) fn start_configured(&mut self) {
        let names: Vec<_> = self.configuration.machines.keys().cloned().collect();
        for name in names {
            self.add_file(&name);
        }
    }

    /// Starts the machine `name` if its file has its socket.
    fn add_file(&mut self, name: &MachineName) {
        let Some(file) = self.configuration.machines.get(name) else {
            return;
        };
        let qmp = file.settings.as_ref().and_then(|file| file.qmp.clone());
        let (file, Some(qmp)) = (file.path.clone(), qmp) else {
            return;
        };
        match self.origin(name) {
            Some(Origin::File(_)) => {}
            Some(origin) => {
                let text = taken(name, origin);
                self.pass_over(file, name, text);
            }
            None => self.start(name, New::of_place(Origin::File(file), qmp)),
        }
    }

    /// The socket of the machine `name` is in the directory.
    pub(super) fn add_socket(&mut self, name: &MachineName) {
        let socket = sockets::file(&self.directories.qmp(), name);
        let file = self.configuration.machines.get(name);
        let known = self.known.get(name);
        match (known, file) {
            (Some(known), _) if known.own_socket.as_ref() == Some(&socket) => {}
            (Some(known), _) => {
                let text = taken(name, &known.origin);
                self.pass_over(socket, name, text);
            }
            (None, Some(file)) if file.settings.is_none() => {
                let text = format!("passed over, for {} has mistakes", file.path.display());
                self.pass_over(socket, name, text);
            }
            (None, _) => self.start(name, New::of_place(Origin::Socket, socket)),
        }
    }

    /// The socket of the machine `name` is not in the directory any more.
    pub(super) async fn remove_socket(&mut self, name: &MachineName) {
        let socket = sockets::file(&self.directories.qmp(), name);
        self.passed_over.remove(&socket);
        if self.origin(name).is_some_and(Origin::is_socket) {
            self.stop(name).await;
        }
    }

    /// Brings the machines in line with the sockets that are there.
    pub(super) async fn set_sockets(&mut self, names: Vec<MachineName>) {
        let names: BTreeSet<_> = names.into_iter().collect();
        let known = self.known.iter();
        let gone = known.filter(|(name, known)| known.origin.is_socket() && !names.contains(*name));
        let gone: Vec<_> = gone.map(|(name, _)| name.clone()).collect();
        for name in gone {
            self.remove_socket(&name).await;
        }
        for name in &names {
            self.add_socket(name);
        }
    }

    /// Waits until all machines have answered or were given their time to.
    pub(super) async fn settled(&mut self) {
        let machines = self.known.values_mut();
        join_all(machines.map(|known| known.running.settled())).await;
    }

    /// Removes what is remembered of machines that went while the service was down.
    pub(super) async fn forget_departed(&self) {
        let known = self.known.keys().cloned().collect();
        machine::forget_others(self.directories.records(), known).await;
    }

    /// Puts the configuration in force that is in the files now, and the machines in line with it
    /// and with `sockets`. Returns those that are to take up how they are treated.
    pub(super) async fn reload(&mut self, sockets: Option<Vec<MachineName>>) -> Vec<Handle> {
        let directory = self.directories.configuration.clone();
        let read = blocking(move || Configuration::read(&directory)).await;
        self.configuration = read.replacing(&self.configuration);
        self.passed_over.clear();
        let known = self.known.iter();
        let gone = known.filter(|(name, known)| match &known.origin {
            Origin::File(_) => !self.is_configured_like(name, known),
            _ => false,
        });
        let gone: Vec<_> = gone.map(|(name, _)| name.clone()).collect();
        for name in gone {
            self.stop(&name).await;
        }
        self.start_configured();
        if let Some(sockets) = sockets {
            self.set_sockets(sockets).await;
        }
        let known = self.known.iter();
        let treat = |(name, known): (_, &Known)| {
            let treatment = self.treatment(name, &known.origin, &known.own);
            known.running.configure(treatment)
        };
        known.map(treat).collect()
    }

    /// Whether the machine `name` is still at the socket that its file has.
    fn is_configured_like(&self, name: &MachineName, known: &Known) -> bool {
        let file = self.configuration.machines.get(name);
        let qmp = file.and_then(|file| file.settings.as_ref()?.qmp.as_ref());
        qmp.is_some() && qmp == known.own_socket.as_ref()
    }

    /// Tells what is wrong now, if that changed.
    pub(super) async fn tell_problems(&mut self) {
        let problems = self.configuration.problems.iter().map(ToString::to_string);
        let passed_over = self.passed_over.iter();
        let passed_over =
            passed_over.map(|(file, (_, text))| format!("{}: {text}", file.display()));
        let problems: Vec<String> = problems.chain(passed_over).collect();
        if problems == self.problems {
            return;
        }
        for problem in problems.iter().filter(|p| !self.problems.contains(p)) {
            warn!("{problem}");
        }
        self.problems.clone_from(&problems);
        self.outbox.send_problems(problems).await;
    }

    fn origin(&self, name: &MachineName) -> Option<&Origin> {
        self.known.get(name).map(|known| &known.origin)
    }

    pub(super) fn is_there(&self, name: &MachineName, generation: u64) -> bool {
        let known = self.known.get(name);
        known.is_some_and(|known| known.generation == generation)
    }

    fn pass_over(&mut self, file: PathBuf, name: &MachineName, text: String) {
        self.passed_over.insert(file, (name.clone(), text));
    }

    /// Gives the free name to the socket or file that was ignored because of it.
    pub(super) async fn let_others(&mut self, name: &MachineName) {
        let of_name = self.passed_over.iter().filter(|(_, (of, _))| of == name);
        let files: Vec<PathBuf> = of_name.map(|(file, _)| file.clone()).collect();
        for file in files {
            self.passed_over.remove(&file);
            match sockets::is_socket(file.clone()).await {
                true => self.add_socket(name),
                false => self.add_file(name),
            }
        }
    }

    /// Returns how the machine `name` is treated: by its registration `own`, then by its file, then by
    /// the defaults. Of the defaults only the time limits apply to a machine that an unprivileged
    /// user registered, unless the configuration says otherwise. A scope that such a registration
    /// asks for is in the slice of the user.
    fn treatment(&self, name: &MachineName, origin: &Origin, own: &Settings) -> MachineConfig {
        let file = self.configuration.machines.get(name);
        let file = file.and_then(|file| file.settings.as_ref());
        let file = file.map(|file| &file.settings);
        let Configuration {
            service, defaults, ..
        } = &self.configuration;
        let user = origin.user().filter(|uid| !uid.is_root());
        let defaults = match user.filter(|_| !service.defaults_for_users) {
            Some(uid) => Settings {
                slice: Some(format!("user-{uid}.slice")),
                ..defaults.for_users()
            },
            None => defaults.clone(),
        };
        let settings = match file {
            Some(file) => own.clone().over(file).over(&defaults),
            None => own.clone().over(&defaults),
        };
        MachineConfig {
            limits: settings.limits(),
            placement: PlacementConfig {
                mode: settings.placement.unwrap_or_default(),
                slice: settings.slice().to_owned(),
                tuning: settings.tuning(),
            },
        }
    }

    pub(super) fn start(&mut self, name: &MachineName, new: New) {
        let file = self.configuration.machines.get(name);
        let file = file.and_then(|file| file.settings.as_ref());
        let own = new.own.settings;
        let agent = new.own.guest_agent;
        let agent = agent.or_else(|| file?.guest_agent.clone());
        let own_socket = match &new.endpoint {
            QmpEndpoint::Socket(socket) => Some(socket.path().to_owned()),
            QmpEndpoint::Connection(_) => None,
        };
        let spec = MachineSpec {
            name: name.clone(),
            endpoint: new.endpoint,
            lifetime: new.lifetime,
            registrant: new.origin.user(),
            agent: agent.unwrap_or_else(|| sockets::file(&self.directories.guest_agents(), name)),
            record: self.directories.records().join(format!("{name}.json")),
            uuid: new.own.uuid.or_else(|| file?.uuid.clone()),
            leader: new.leader,
            processes: self.processes.clone(),
            config: self.treatment(name, &new.origin, &own),
        };
        self.generation += 1;
        let (running, task) = machine::create(spec, self.site.clone(), self.outbox.clone());
        let done = CancellationToken::new();
        let ending = done.clone().drop_guard();
        let task = tokio::spawn(async move {
            task.await;
            drop(ending);
        });
        let known = Known {
            running,
            task,
            done,
            origin: new.origin,
            generation: self.generation,
            own,
            own_socket,
        };
        self.known.insert(name.clone(), known);
    }

    pub(super) async fn stop(&mut self, name: &MachineName) {
        if let Some(known) = self.known.remove(name) {
            if known.origin.user().is_some() {
                self.registrations.remove(name).await;
            }
            known.running.cancel();
            let _ = known.task.await;
        }
    }
}

impl New {
    fn of_place(origin: Origin, socket: PathBuf) -> Self {
        Self {
            origin,
            endpoint: QmpEndpoint::Socket(SocketFile::chosen_by_root(socket)),
            lifetime: Lifetime::Endpoint,
            own: MachineSettings::default(),
            leader: None,
        }
    }
}

impl Origin {
    fn is_socket(&self) -> bool {
        matches!(self, Self::Socket)
    }

    /// The user who registered it.
    pub(super) fn user(&self) -> Option<Uid> {
        match self {
            Self::Registration(uid) => Some(*uid),
            Self::Socket | Self::File(_) => None,
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket => f.write_str("its socket in the directory qmp"),
            Self::File(path) => path.display().fmt(f),
            Self::Registration(uid) => write!(f, "a registration by user {uid}"),
        }
    }
}

/// Why somebody else is not the machine `name`.
fn taken(name: &MachineName, origin: &Origin) -> String {
    format!("passed over, for there is a machine {name} from {origin}")
}
