//! The effects of a machine's model, performed: jobs are started, and their results become inputs.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant as StdInstant};

use futures_util::FutureExt;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::callers::Callers;
use super::connect::{Connector, Reached};
use super::events::{BusMessage, Completion, EventSender};
use super::handle::Handle;
use super::jobs::{self, Done, Jobs};
use super::journal::Journal;
use super::model::effect::{Effect, LogEntry};
use super::model::event::MachineEvent;
use super::model::input::{Input, Opened};
use super::model::snapshot::Snapshot;
use super::outbox::Outbox;
use super::placement::PlacementWorker;
use super::processes::Processes;
use super::qmp_session::QmpSession;
use super::running::Ready;
use super::saver::Saver;
use super::spec::{ConnectError, HostServices, Lifetime, MachineSpec};
use super::state_file::StateFile;
use crate::names::MachineName;
use crate::process::Leader;
use crate::qmp::{Closed, Event, Events};

/// Where a machine reports to.
pub(super) struct Outlets {
    pub handle: Handle,
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    pub leader: watch::Sender<Option<Arc<Leader>>>,
    pub session: watch::Sender<Weak<QmpSession>>,
    pub events: EventSender,
    pub ready: oneshot::Sender<Ready>,
    pub over: CancellationToken,
    pub review: Arc<Notify>,
}

/// The performer of one machine.
pub(super) struct Performer {
    name: MachineName,
    lifetime: Lifetime,
    processes: Processes,
    handle: Handle,
    connector: Connector,
    saver: Saver,
    services: HostServices,
    /// Whether an unprivileged user registered the machine.
    is_of_user: bool,
    worker: PlacementWorker,
    /// Notified when another program changed the groups of the worker.
    review: Arc<Notify>,
    journal: Journal,
    snapshot: watch::Sender<Arc<Snapshot>>,
    published_leader: watch::Sender<Option<Arc<Leader>>>,
    over: CancellationToken,
    leader: Option<Arc<Leader>>,
    reached: Option<Reached>,
    session: Option<Arc<QmpSession>>,
    published_session: watch::Sender<Weak<QmpSession>>,
    /// QEMU's events, while there is a connection.
    pub(super) events: Option<Events>,
    pub(super) outbox: Outbox,
    pub(super) connection_jobs: Jobs,
    pub(super) process_jobs: Jobs,
}

impl Performer {
    pub(super) fn new(
        spec: MachineSpec,
        services: HostServices,
        file: StateFile,
        outlets: Outlets,
    ) -> Self {
        let is_of_user = spec.origin.registrant().is_some_and(|uid| !uid.is_root());
        let fd_store = services.fd_store.clone();
        let endpoint = spec.endpoint.to_string();
        Self {
            lifetime: spec.lifetime,
            processes: spec.processes,
            handle: outlets.handle,
            connector: Connector::new(&spec.name, spec.endpoint, spec.leader, fd_store),
            saver: Saver::new(file),
            worker: PlacementWorker::new(
                spec.name.clone(),
                services.clone(),
                is_of_user,
                outlets.review.clone(),
            ),
            review: outlets.review,
            journal: Journal::new(spec.name.clone(), endpoint, services.audit.clone()),
            services,
            is_of_user,
            snapshot: outlets.snapshot,
            published_leader: outlets.leader,
            over: outlets.over,
            leader: None,
            reached: None,
            session: None,
            published_session: outlets.session,
            events: None,
            outbox: Outbox::new(outlets.events, outlets.ready),
            connection_jobs: Jobs::new(),
            process_jobs: Jobs::new(),
            name: spec.name,
        }
    }

    /// Returns the QEMU process.
    pub(super) fn leader(&self) -> Option<&Arc<Leader>> {
        self.leader.as_ref()
    }

    /// Returns the next event of QEMU that came already.
    pub(super) fn try_event(&mut self) -> Option<Result<Event, Closed>> {
        self.events.as_mut()?.try_recv()
    }

    /// Sends everything that is not sent yet.
    pub(super) async fn finish(&mut self) {
        self.outbox.finish().await;
    }

    /// Performs `effect`, or starts the job that does.
    pub(super) async fn perform(&mut self, effect: Effect, callers: &mut Callers) {
        match effect {
            Effect::Connect => {
                let connect = jobs::connect(self.connector.clone());
                self.connection_jobs.push(connect.boxed());
            }
            Effect::Load => self.load(),
            Effect::Open { limit, with_ospm } => self.open(limit, with_ospm),
            Effect::KeepConnection => self.keep_connection(),
            Effect::Close => self.close(),
            Effect::Save(id, state) => {
                self.saver.push(id, *state);
                self.process_jobs
                    .extend(self.saver.next().map(FutureExt::boxed));
            }
            Effect::Publish(snapshot) => {
                self.journal.publish(snapshot.clone());
                self.snapshot.send_replace(snapshot);
            }
            Effect::Emit(event) => self.emit(event),
            Effect::Flush(flush) => self.request_flush(flush),
            Effect::Reply(id, answer) => {
                if let Some(caller) = callers.take(id) {
                    let reply = Completion::reply(caller, answer);
                    self.outbox.send(BusMessage::Completion(reply));
                }
            }
            Effect::Log(entry) => self.log(entry),
            Effect::Ready(ready) => self.outbox.report(ready),
            Effect::End => self.over.cancel(),
            Effect::Forget => self.forget().await,
            other => self.start_job(other),
        }
    }

    fn log(&mut self, entry: LogEntry) {
        if let (LogEntry::Unresponsive(_), Lifetime::Endpoint) = (&entry, self.lifetime)
            && let Some(leader) = &self.leader
        {
            self.processes.note_silence(leader.id(), &self.name);
        }
        self.journal.entry(now(), entry);
    }

    /// Starts the job of an effect that needs the process, or a connection to it.
    fn start_job(&mut self, effect: Effect) {
        let Some(leader) = self.leader.clone() else {
            return;
        };
        let worker = self.worker.clone();
        let job = match effect {
            Effect::Exchange(batch) => {
                self.journal.report_dropped(now());
                if let Some(session) = self.session.clone() {
                    let exchange = jobs::exchange(session, batch);
                    self.connection_jobs.push(exchange.boxed());
                }
                return;
            }
            Effect::RestoreGuest(cpus) => {
                let limit = self.handle.removal_timeout();
                let agent = self.handle.agent().clone();
                let restore = jobs::restore_guest(agent, leader.pid(), limit, cpus);
                self.connection_jobs.push(restore.boxed());
                return;
            }
            Effect::FindUnit(config) => {
                let found = worker.find_unit(leader, config);
                found.map(|found| Input::UnitFound(found).into()).boxed()
            }
            Effect::AwaitUnits => {
                let appeared = worker.units_appeared();
                appeared.map(|()| Input::UnitsAppeared.into()).boxed()
            }
            Effect::Prepare(vcpus) => {
                let prepared = worker.prepare(vcpus);
                prepared.map(|()| Done::Inputs(Vec::new())).boxed()
            }
            Effect::Place(tuning, threads, changed) => {
                jobs::place(worker, leader, tuning, threads, changed).boxed()
            }
            Effect::CheckTuning(change) => jobs::check_tuning(worker, leader, change).boxed(),
            Effect::ChangeTuning(switch) => jobs::change_tuning(worker, leader, *switch).boxed(),
            // The other effects need no job.
            _ => return,
        };
        self.process_jobs.push(job);
    }

    /// Takes what a job made. Returns the inputs for the model.
    pub(super) fn done(&mut self, done: Done) -> Vec<Input> {
        match done {
            Done::Inputs(inputs) => {
                for input in &inputs {
                    if let Input::Placed(report) | Input::TuningChanged(Ok(report)) = input {
                        self.handle.tally().placement(report);
                        self.journal.placement(now(), report);
                    }
                }
                inputs
            }
            Done::Reached(reached) => {
                let id = reached.leader.id();
                self.reached = Some(reached);
                vec![Input::Reached(id)]
            }
            Done::Opened(opened) => {
                let (session, events, mut opened) = *opened;
                if let Err(other) = self.confirm(&opened) {
                    if self.lifetime == Lifetime::Endpoint {
                        self.processes.note_second(&self.name, other.clone());
                    }
                    let error = ConnectError::OtherMachine(other);
                    return vec![Input::ConnectFailed(error)];
                }
                self.handle.tally().connection();
                let leader = self.leader.as_ref();
                opened.created = leader.map_or(0, |l| self.processes.created(l.id()));
                let session = Arc::new(session);
                self.published_session
                    .send_replace(Arc::downgrade(&session));
                self.session = Some(session);
                self.events = Some(events);
                vec![Input::Opened(Box::new(opened))]
            }
            Done::Saved(inputs) => {
                self.saver.end();
                self.process_jobs
                    .extend(self.saver.next().map(FutureExt::boxed));
                inputs
            }
        }
    }

    /// Makes the process behind the new connection that of the machine.
    fn adopt(&mut self) {
        if let Some(reached) = &self.reached {
            self.leader = Some(reached.leader.clone());
            self.published_leader.send_replace(self.leader.clone());
        }
    }

    fn load(&mut self) {
        self.adopt();
        let job = match self.claim() {
            Ok(()) => jobs::load(self.saver.file().clone()).boxed(),
            Err(error) => std::future::ready(Input::ConnectFailed(error).into()).boxed(),
        };
        self.connection_jobs.push(job);
    }

    /// Confirms that the process is this machine, and no other one: two machines never place the same
    /// threads.
    fn confirm(&self, opened: &Opened) -> Result<(), MachineName> {
        let mut vcpus = opened.state.inventory.vcpus();
        match (&self.leader, vcpus.find_map(|vcpu| vcpu.thread)) {
            (Some(leader), Some(thread)) => self.processes.confirm(leader.id(), &self.name, thread),
            _ => Ok(()),
        }
    }

    /// Claims the process for this machine. A call cannot give a process another name. That of a socket
    /// or a file of the administrator is confirmed when QEMU has answered.
    fn claim(&self) -> Result<(), ConnectError> {
        let Some(leader) = &self.leader else {
            return Ok(());
        };
        if self.lifetime == Lifetime::Registered {
            let claimed = self.processes.claim(leader.id(), &self.name);
            return claimed.map_err(ConnectError::OtherMachine);
        }
        self.processes.share(leader.id(), &self.name);
        Ok(())
    }

    fn open(&mut self, limit: Option<Duration>, with_ospm: bool) {
        self.adopt();
        let socket = self
            .reached
            .as_mut()
            .and_then(|reached| reached.socket.take());
        if let (Some(socket), Some(leader)) = (socket, self.leader.clone()) {
            let silence = self.handle.qmp_timeout();
            let leader = (leader, self.connector.has_named_leader());
            let open = jobs::open(socket, leader, silence, limit, with_ospm);
            self.connection_jobs.push(open.boxed());
        }
    }

    fn keep_connection(&mut self) {
        if let (Some(reached), Some(leader)) = (&mut self.reached, &self.leader)
            && let Some(connection) = reached.duplicate.take()
        {
            self.connector.keep(&connection, leader);
        }
    }

    fn close(&mut self) {
        self.connector.release();
        self.connection_jobs.clear();
        self.reached = None;
        self.session = None;
        self.events = None;
    }

    fn request_flush(&mut self, flush: u64) {
        let (sender, emitted) = oneshot::channel();
        let report = Completion::new(move || {
            let _ = sender.send(());
        });
        self.outbox.send(BusMessage::Completion(report));
        let flushed = emitted.map(move |emitted| {
            let input = emitted.map(|()| Input::Flushed(flush));
            Done::Inputs(input.into_iter().collect())
        });
        self.process_jobs.push(flushed.boxed());
    }

    fn emit(&mut self, event: MachineEvent) {
        self.journal.event(now(), &event);
        self.handle.tally().event(&event);
        let machine = self.name.clone();
        self.outbox.send(match event {
            MachineEvent::Appeared { is_known } => BusMessage::Appeared {
                machine: self.handle.clone(),
                is_known,
            },
            event => BusMessage::Event { machine, event },
        });
    }

    /// Forgets the process: its groups if it has exited, and its state file.
    async fn forget(&mut self) {
        self.process_jobs.clear();
        self.saver.clear();
        if let Some(leader) = self.leader.take() {
            self.worker.leave(leader.clone()).await;
            let created = self.snapshot.borrow().created;
            self.processes.release(leader.id(), &self.name, created);
        }
        let (name, services) = (self.name.clone(), self.services.clone());
        self.worker = PlacementWorker::new(name, services, self.is_of_user, self.review.clone());
        self.published_leader.send_replace(None);
        self.journal.forget_process();
        if let Err(error) = self.saver.file().remove().await {
            let vm_name = self.name.as_str();
            warn!(vm_name, %error, "{vm_name}: cannot remove the persisted state: {error}");
        }
    }
}

/// The time of the runtime, which tests can control.
pub(super) fn now() -> StdInstant {
    Instant::now().into_std()
}
