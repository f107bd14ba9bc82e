//! The owner of the tasks of all machines.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::task;
use tracing::warn;

use super::claims::{Claims, Decision, socket_of};
use super::error::SupervisorError;
use super::registrations::{Registered, Registrations};
use super::reviews::Reviews;
use super::tasks::Tasks;
use crate::blocking::blocking;
use crate::config::{Configuration, Directories, Settings};
use crate::ids::Uid;
use crate::machine::{
    self, EventSender, Handle, HostServices, Lifetime, MachineConfig, MachineSpec, Origin,
    PlacementConfig, Processes, QmpEndpoint, Running, StopReason,
};
use crate::names::MachineName;
use crate::process::{Leader, SocketFile};

/// All machines and their tasks. Carries out the decisions of [`Claims`], one after the other.
pub(super) struct Supervisor {
    directories: Directories,
    pub(super) services: HostServices,
    pub(super) events: EventSender,
    configuration: Configuration,
    pub(super) claims: Claims,
    /// The files of registrations.
    pub(super) registrations: Registrations,
    machines: BTreeMap<MachineName, Machine>,
    tasks: Tasks,
    pub(super) processes: Processes,
    /// The configuration errors and conflicts that were reported last.
    reported: Vec<String>,
}

/// A machine and its task.
struct Machine {
    running: Running,
    /// Its task; `None` after the end of the task was reported.
    task: Option<task::Id>,
    /// The user that registered it, and the settings of the registration.
    registration: Option<(Uid, Settings)>,
}

/// The parts of a machine that do not follow from the configuration.
pub(super) struct NewMachine {
    pub(super) endpoint: QmpEndpoint,
    pub(super) lifetime: Lifetime,
    pub(super) registration: Option<Registered>,
    pub(super) leader: Option<Arc<Leader>>,
}

impl Supervisor {
    /// Returns a supervisor without machines. Machines emit their events to `events`.
    pub(super) fn new(
        directories: Directories,
        configuration: Configuration,
        services: HostServices,
        events: EventSender,
    ) -> Self {
        Self {
            claims: Claims::new(directories.qmp()),
            registrations: Registrations::new(directories.registrations()),
            directories,
            services,
            events,
            configuration,
            machines: BTreeMap::new(),
            tasks: Tasks::default(),
            processes: Processes::default(),
            reported: Vec::new(),
        }
    }

    /// Returns the configuration in force.
    pub(super) fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Starts the machines that the configuration in force defines, and stops those that it does not
    /// define any more.
    ///
    /// # Errors
    /// Fails if a task failed.
    pub(super) async fn apply_configuration(&mut self) -> Result<(), SupervisorError> {
        let decisions = self
            .claims
            .configuration_changed(&self.configuration.machines);
        self.perform(decisions).await
    }

    /// Reads the configuration, puts it in force, and returns the machines. Each applies its part in its
    /// own task.
    ///
    /// # Errors
    /// Fails if a task failed.
    pub(super) async fn reload(&mut self) -> Result<Vec<Handle>, SupervisorError> {
        let directory = self.directories.configuration.clone();
        let read = blocking(move || Configuration::read(&directory)).await;
        self.configuration = read.replacing(&self.configuration);
        self.apply_configuration().await?;
        let machines = self.machines.iter().map(|(name, machine)| {
            let config = self.machine_config(name, machine.registration.as_ref());
            machine.running.configure(config)
        });
        Ok(machines.collect())
    }

    /// Carries out `decisions` in their order. Waits for the end of each machine that stops, so its name
    /// and its files are free for the next one.
    ///
    /// # Errors
    /// Fails if a task failed.
    pub(super) async fn perform(
        &mut self,
        decisions: impl IntoIterator<Item = Decision>,
    ) -> Result<(), SupervisorError> {
        for decision in decisions {
            match decision {
                Decision::Stop(name, reason) => self.stop(&name, reason).await?,
                Decision::Start(name, socket) => self.start_at(&name, socket),
            }
        }
        Ok(())
    }

    /// Starts the machine `name`, and returns the id of its task.
    pub(super) fn start(&mut self, name: &MachineName, new: NewMachine) -> task::Id {
        let registrant = new.registration.as_ref().map(|it| it.uid);
        let own = new.registration.map(|it| it.settings).unwrap_or_default();
        let file = self.configuration.machines.get(name);
        let file = file.and_then(|file| file.settings.as_ref());
        let origin = match registrant {
            Some(uid) => Origin::Registration(uid),
            None if file.is_some_and(|file| file.qmp.is_some()) => Origin::File,
            None => Origin::Socket,
        };
        let agent = own.guest_agent.or_else(|| file?.guest_agent.clone());
        let registration = registrant.map(|uid| (uid, own.settings));
        let config = self.machine_config(name, registration.as_ref());
        let spec = MachineSpec {
            name: name.clone(),
            endpoint: new.endpoint,
            lifetime: new.lifetime,
            origin,
            agent: agent.unwrap_or_else(|| socket_of(&self.directories.guest_agents(), name)),
            state_file: self
                .directories
                .machine_states()
                .join(format!("{name}.json")),
            uuid: own.uuid.or_else(|| file?.uuid.clone()),
            leader: new.leader,
            processes: self.processes.clone(),
            config,
        };
        let (running, task) = machine::create(spec, self.services.clone(), self.events.clone());
        let task = self.tasks.spawn(task);
        let machine = Machine {
            running,
            task: Some(task),
            registration,
        };
        self.machines.insert(name.clone(), machine);
        task
    }

    /// Starts a machine that exists as long as its socket or its file.
    fn start_at(&mut self, name: &MachineName, socket: PathBuf) {
        let new = NewMachine {
            endpoint: QmpEndpoint::Socket(SocketFile::chosen_by_root(socket)),
            lifetime: Lifetime::Endpoint,
            registration: None,
            leader: None,
        };
        self.start(name, new);
    }

    /// Stops the machine `name`, and waits for the end of its task. Its last event is sent then.
    async fn stop(
        &mut self,
        name: &MachineName,
        reason: StopReason,
    ) -> Result<(), SupervisorError> {
        let Some(machine) = self.machines.remove(name) else {
            return Ok(());
        };
        if machine.registration.is_some() {
            self.registrations.remove(name).await;
        }
        machine.running.stop(reason);
        if let Some(task) = machine.task {
            self.tasks.join(task).await?;
        }
        Ok(())
    }

    /// Waits for the end of the task of any machine, and returns the name of the machine. No end is lost if
    /// the call is cancelled.
    ///
    /// # Errors
    /// Fails if the task failed.
    pub(super) async fn next_ended(&mut self) -> Result<MachineName, SupervisorError> {
        loop {
            let task = self.tasks.next().await?;
            let mut machines = self.machines.iter_mut();
            if let Some((name, machine)) = machines.find(|(_, machine)| machine.task == Some(task))
            {
                machine.task = None;
                return Ok(name.clone());
            }
        }
    }

    /// Removes the machine `name`, which has ended or is about to.
    ///
    /// # Errors
    /// Fails if a task failed.
    pub(super) async fn end(&mut self, name: &MachineName) -> Result<(), SupervisorError> {
        self.stop(name, StopReason::Ended).await?;
        let decision = self.claims.machine_ended(name);
        self.perform(decision).await
    }

    /// Returns whether `task` is the task of the machine `name`.
    pub(super) fn is_current(&self, name: &MachineName, task: task::Id) -> bool {
        let machine = self.machines.get(name);
        machine.is_some_and(|machine| machine.task == Some(task))
    }

    /// Returns the machine `name`.
    pub(super) fn running(&mut self, name: &MachineName) -> Option<&mut Running> {
        self.machines
            .get_mut(name)
            .map(|machine| &mut machine.running)
    }

    /// Returns the number of machines with a task.
    pub(super) fn count(&self) -> usize {
        self.machines.len()
    }

    /// Lets the machine review itself whose turn it is.
    pub(super) fn review(&self, reviews: &mut Reviews) {
        if let Some(machine) = reviews.turn(&self.machines) {
            machine.running.review();
        }
    }

    /// Waits until each machine has answered, or its time limit is over.
    pub(super) async fn settled(&mut self) {
        let machines = self.machines.values_mut();
        join_all(machines.map(|machine| machine.running.settled())).await;
    }

    /// Removes the persisted state of machines that do not exist any more.
    pub(super) async fn remove_other_states(&self) {
        let names = self.machines.keys().cloned().collect();
        machine::forget_others(self.directories.machine_states(), names).await;
    }

    /// Reports the errors of the configuration and the claims that are ignored, if they changed.
    pub(super) async fn report_errors(&mut self) {
        let errors = self.configuration.errors.iter().map(ToString::to_string);
        let conflicts = self.claims.conflicts(&self.processes.second_names());
        let errors = errors.chain(conflicts.iter().map(ToString::to_string));
        let errors: Vec<String> = errors.collect();
        if errors == self.reported {
            return;
        }
        for error in errors.iter().filter(|error| !self.reported.contains(error)) {
            warn!("{error}");
        }
        self.reported.clone_from(&errors);
        self.events.send_problems(errors).await;
    }

    /// Returns the configuration of the machine `name`.
    fn machine_config(
        &self,
        name: &MachineName,
        registration: Option<&(Uid, Settings)>,
    ) -> MachineConfig {
        let registration = registration.map(|(uid, own)| (*uid, own));
        let settings = self.configuration.settings_of(name, registration);
        MachineConfig {
            limits: settings.limits(),
            placement: PlacementConfig {
                mode: settings.placement.unwrap_or_default(),
                slice: settings.slice().to_owned(),
                tuning: settings.tuning(),
            },
        }
    }
}
