//! The effects of a machine's model, performed: jobs are started, and their results become inputs.

use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::callers::Callers;
use super::connect::{Connector, Reached};
use super::events::{BusMessage, EventSender, Reply};
use super::handle::Handle;
use super::journal::Journal;
use super::model::effect::{Batch, Effect, Threads, TuningSwitch};
use super::model::event::MachineEvent;
use super::model::input::{Input, Opened, SaveId};
use super::model::record::Record;
use super::model::snapshot::Snapshot;
use super::outbox::Outbox;
use super::placement::PlacementWorker;
use super::processes::Processes;
use super::qmp_session::{OpenFailed, QmpSession, closed_by};
use super::running::Ready;
use super::spec::{ConnectError, HostServices, Lifetime, MachineSpec, PlacementConfig};
use super::state_file::StateFile;
use crate::names::MachineName;
use crate::placement::Tuning;
use crate::process::Leader;
use crate::qmp::{Closed, Event, Events};

/// The jobs of a connection or a process. To clear them is to drop their results.
pub(super) type Jobs = FuturesUnordered<BoxFuture<'static, Done>>;

/// The result of a job.
#[derive(Debug)]
pub(super) enum Done {
    /// Inputs for the model.
    Inputs(Vec<Input>),
    /// A connection was made.
    Reached(Reached),
    /// QEMU answered on it.
    Opened(Box<(QmpSession, Events, Opened)>),
    /// Writes of the state file ended.
    Saved(Vec<Input>),
}

/// Where a machine reports to.
pub(super) struct Outlets {
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    pub leader: watch::Sender<Option<Arc<Leader>>>,
    pub events: EventSender,
    pub ready: oneshot::Sender<Ready>,
    pub over: CancellationToken,
}

/// The performer of one machine.
pub(super) struct Performer {
    name: MachineName,
    lifetime: Lifetime,
    processes: Processes,
    silence: watch::Receiver<super::spec::MachineConfig>,
    handle: Handle,
    connector: Connector,
    state_file: StateFile,
    /// The writes that wait for the one that goes on.
    saves: Vec<(SaveId, Record)>,
    is_saving: bool,
    services: HostServices,
    is_of_user: bool,
    worker: PlacementWorker,
    journal: Journal,
    snapshot: watch::Sender<Arc<Snapshot>>,
    published_leader: watch::Sender<Option<Arc<Leader>>>,
    over: CancellationToken,
    leader: Option<Arc<Leader>>,
    reached: Option<Reached>,
    session: Option<Arc<QmpSession>>,
    flush: mpsc::UnboundedSender<u64>,
    pub(super) events: Option<Events>,
    pub(super) outbox: Outbox,
    pub(super) flushed: mpsc::UnboundedReceiver<u64>,
    pub(super) connection_jobs: Jobs,
    pub(super) process_jobs: Jobs,
}

impl Performer {
    pub(super) fn new(
        spec: MachineSpec,
        services: HostServices,
        handle: Handle,
        state_file: StateFile,
        journal: Journal,
        outlets: Outlets,
    ) -> Self {
        let is_of_user = spec.registrant.is_some_and(|uid| !uid.is_root());
        let fd_store = services.fd_store.clone();
        let (flush, flushed) = mpsc::unbounded_channel();
        Self {
            lifetime: spec.lifetime,
            processes: spec.processes,
            silence: handle.configs.clone(),
            connector: Connector::new(&spec.name, spec.endpoint, spec.leader, fd_store),
            state_file,
            saves: Vec::new(),
            is_saving: false,
            worker: PlacementWorker::new(spec.name.clone(), services.clone(), is_of_user),
            services,
            is_of_user,
            journal,
            snapshot: outlets.snapshot,
            published_leader: outlets.leader,
            over: outlets.over,
            leader: None,
            reached: None,
            session: None,
            flush,
            events: None,
            outbox: Outbox::new(outlets.events, outlets.ready),
            flushed,
            connection_jobs: Jobs::new(),
            process_jobs: Jobs::new(),
            name: spec.name,
            handle,
        }
    }

    /// Returns the QEMU process.
    pub(super) fn leader(&self) -> Option<&Arc<Leader>> {
        self.leader.as_ref()
    }

    /// Returns the next event of QEMU that came already.
    pub(super) fn try_event(&mut self) -> Option<Result<Event, Closed>> {
        self.events.as_mut()?.try_recv().ok()
    }

    /// Sends everything that is not sent yet.
    pub(super) async fn finish(&mut self) {
        self.outbox.finish().await;
    }

    /// Performs `effect`, or starts the job that does.
    pub(super) async fn perform(&mut self, effect: Effect, callers: &mut Callers) {
        match effect {
            Effect::Connect => self.connect(),
            Effect::Load => self.load(),
            Effect::Open { limit, with_ospm } => self.open(limit, with_ospm),
            Effect::KeepConnection => self.keep_connection(),
            Effect::Close => self.close(),
            Effect::FindUnit(config) => self.find_unit(config),
            Effect::Exchange(batch) => {
                self.journal.report_dropped(now());
                self.exchange(batch);
            }
            Effect::Save(id, record) => self.save(id, *record),
            Effect::Prepare(vcpus) => {
                let prepared = self.worker.clone().prepare(vcpus);
                let done = prepared.map(|()| Done::Inputs(Vec::new()));
                self.process_jobs.push(done.boxed());
            }
            Effect::Place(tuning, threads) => self.place(tuning, threads),
            Effect::CheckTuning(change, tuning) => {
                let worker = self.worker.clone();
                let leader = self.leader.clone();
                self.process_jobs.push(
                    async move {
                        if let Some(leader) = leader
                            && let Err(error) = leader.verify().await
                        {
                            let closed = Input::Disconnected(closed_by(error));
                            let refused = super::model::error::TuningError::NoUnit;
                            return Done::Inputs(vec![Input::TuningChecked(Err(refused)), closed]);
                        }
                        let checked = worker.check(change, tuning).await;
                        Done::Inputs(vec![Input::TuningChecked(checked)])
                    }
                    .boxed(),
                );
            }
            Effect::ChangeTuning(switch) => self.change_tuning(*switch),
            Effect::RestoreGuest(cpus) => self.restore_guest(cpus),
            Effect::Publish(snapshot) => {
                self.journal.publish(snapshot.clone());
                self.snapshot.send_replace(snapshot);
            }
            Effect::Emit(event) => self.emit(event),
            Effect::Flush(flush) => {
                let sender = self.flush.clone();
                let reply = Reply::calling(move || {
                    let _ = sender.send(flush);
                });
                self.outbox.send(BusMessage::Reply(reply));
            }
            Effect::Reply(id, answer) => {
                if let Some(caller) = callers.take(id) {
                    let reply = Reply::new(caller, answer);
                    self.outbox.send(BusMessage::Reply(reply));
                }
            }
            Effect::Log(entry) => self.journal.entry(now(), entry),
            Effect::Ready(ready) => self.outbox.report(ready),
            Effect::Forget => self.forget().await,
            Effect::End => self.over.cancel(),
        }
    }

    /// Takes what a job made. Returns the inputs for the model.
    pub(super) fn done(&mut self, done: Done) -> Vec<Input> {
        match done {
            Done::Inputs(inputs) => {
                for input in &inputs {
                    if let Input::Placed(report, _) | Input::TuningChanged(Ok(report)) = input {
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
                let (session, events, opened) = *opened;
                self.session = Some(Arc::new(session));
                self.events = Some(events);
                vec![Input::Opened(Box::new(opened))]
            }
            Done::Saved(inputs) => {
                self.is_saving = false;
                self.save_next();
                inputs
            }
        }
    }

    fn connect(&mut self) {
        let connected = self.connector.clone().connect();
        let done = connected.map(|connected| match connected {
            Ok(reached) => Done::Reached(reached),
            Err(error) => Done::Inputs(vec![Input::ConnectFailed(error)]),
        });
        self.connection_jobs.push(done.boxed());
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
        if let Some(leader) = &self.leader {
            // A call cannot give a process another name; files and sockets of the administrator may.
            if self.lifetime == Lifetime::Registered {
                if let Err(other) = self.processes.claim(leader.id(), &self.name) {
                    let failed = Input::ConnectFailed(ConnectError::OtherMachine(other));
                    let done = std::future::ready(Done::Inputs(vec![failed]));
                    self.connection_jobs.push(done.boxed());
                    return;
                }
            } else {
                self.processes.share(leader.id(), &self.name);
            }
        }
        let file = self.state_file.clone();
        let load = async move {
            let record = file.load().await;
            let record = record.map_err(|error| error.to_string());
            Done::Inputs(vec![Input::Loaded(record)])
        };
        self.connection_jobs.push(load.boxed());
    }

    fn open(&mut self, limit: Option<Duration>, with_ospm: bool) {
        self.adopt();
        let (Some(reached), Some(leader)) = (&mut self.reached, &self.leader) else {
            return;
        };
        let Some(socket) = reached.socket.take() else {
            return;
        };
        let silence = self.silence.borrow().limits.qmp_timeout;
        let open = QmpSession::open(socket, leader.clone(), silence, with_ospm);
        let open = async move {
            let opened = match limit {
                Some(limit) => timeout(limit, open).await.unwrap_or_else(|_| {
                    let command = "all that it is asked at first";
                    let error = Closed::Timeout {
                        command,
                        after: limit,
                    };
                    Err(OpenFailed {
                        error: error.into(),
                        events: None,
                    })
                }),
                None => open.await,
            };
            match opened {
                Ok((session, opened, events)) => Done::Opened(Box::new((session, events, opened))),
                Err(OpenFailed { error, events }) => {
                    // They may report refusals that are reported only once.
                    let mut inputs = Vec::new();
                    if let Some(mut events) = events {
                        while let Ok(Ok(event)) = events.try_recv() {
                            inputs.push(Input::Event(event));
                        }
                    }
                    inputs.push(Input::ConnectFailed(error.into()));
                    Done::Inputs(inputs)
                }
            }
        };
        self.connection_jobs.push(open.boxed());
    }

    fn keep_connection(&self) {
        if let (Some(reached), Some(leader)) = (&self.reached, &self.leader)
            && let Some(connection) = &reached.duplicate
        {
            self.connector.keep(connection, leader);
        }
    }

    fn close(&mut self) {
        self.connector.release();
        self.connection_jobs.clear();
        self.reached = None;
        self.session = None;
        self.events = None;
    }

    fn exchange(&mut self, batch: Batch) {
        let Some(session) = self.session.clone() else {
            return;
        };
        let exchange = async move {
            let input = match session.run(batch).await {
                Ok(exchanged) => Input::Exchanged(Box::new(exchanged)),
                Err(closed) => Input::Disconnected(closed),
            };
            Done::Inputs(vec![input])
        };
        self.connection_jobs.push(exchange.boxed());
    }

    fn save(&mut self, id: SaveId, record: Record) {
        self.saves.push((id, record));
        self.save_next();
    }

    /// Writes the last state, with which all earlier ones are saved.
    fn save_next(&mut self) {
        if self.is_saving {
            return;
        }
        let mut saves = std::mem::take(&mut self.saves);
        let Some((last, record)) = saves.pop() else {
            return;
        };
        self.is_saving = true;
        let file = self.state_file.clone();
        let save = async move {
            let result = file.save(record).await;
            let ids = saves.into_iter().map(|(id, _)| id).chain([last]);
            Done::Saved(ids.map(|id| Input::Saved(id, result.clone())).collect())
        };
        self.process_jobs.push(save.boxed());
    }

    fn find_unit(&mut self, config: PlacementConfig) {
        let Some(leader) = self.leader.clone() else {
            return;
        };
        let found = self.worker.clone().find_unit(leader, config);
        let done = found.map(|found| Done::Inputs(vec![Input::UnitFound(found)]));
        self.process_jobs.push(done.boxed());
    }

    fn place(&mut self, tuning: Arc<Tuning>, threads: Threads) {
        let Some(leader) = self.leader.clone() else {
            return;
        };
        let placed = self.worker.clone().place(leader, tuning, threads);
        let done = placed.map(|placed| {
            Done::Inputs(match placed {
                Ok((report, cpus)) => vec![Input::Placed(report, cpus)],
                Err(error) => vec![
                    Input::Placed(Default::default(), None),
                    Input::Disconnected(closed_by(error)),
                ],
            })
        });
        self.process_jobs.push(done.boxed());
    }

    fn change_tuning(&mut self, switch: TuningSwitch) {
        let Some(leader) = self.leader.clone() else {
            return;
        };
        let changed = self.worker.clone().change(leader, switch);
        let done = changed.map(|changed| Done::Inputs(vec![Input::TuningChanged(changed)]));
        self.process_jobs.push(done.boxed());
    }

    fn restore_guest(&mut self, cpus: Vec<u32>) {
        let agent = self.handle.agent().clone();
        let (leader, limit) = (
            self.snapshot.borrow().leader(),
            self.handle.removal_timeout(),
        );
        let restore = async move {
            let restored = agent.bring_back(leader, limit, &cpus).await;
            let restored = restored.map_err(|error| error.to_string());
            Done::Inputs(vec![Input::GuestRestored(restored)])
        };
        self.connection_jobs.push(restore.boxed());
    }

    fn emit(&mut self, event: MachineEvent) {
        self.journal.event(now(), &event);
        let machine = self.name.clone();
        let message = match event {
            MachineEvent::Appeared => BusMessage::Appeared(self.handle.clone()),
            event => BusMessage::Event { machine, event },
        };
        self.outbox.send(message);
    }

    /// Forgets the process: its groups if it has exited, and its state file.
    async fn forget(&mut self) {
        self.process_jobs.clear();
        self.saves.clear();
        self.is_saving = false;
        if let Some(leader) = self.leader.take() {
            self.worker.leave(leader.clone()).await;
            self.processes.release(leader.id(), &self.name);
        }
        let (name, services) = (self.name.clone(), self.services.clone());
        self.worker = PlacementWorker::new(name, services, self.is_of_user);
        self.published_leader.send_replace(None);
        self.journal.forget_process();
        if let Err(error) = self.state_file.remove().await {
            let machine = &self.name;
            warn!(%machine, %error, "{machine}: cannot remove the persisted state: {error}");
        }
    }
}

/// The time of the runtime, which tests can control.
fn now() -> StdInstant {
    Instant::now().into_std()
}
