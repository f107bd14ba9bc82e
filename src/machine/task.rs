//! The task of a machine: it waits for inputs, and performs the effects of the model. It decides
//! nothing.

use std::sync::Arc;

use futures_util::StreamExt;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::callers::Callers;
use super::events::EventSender;
use super::handle::{Call, Handle};
use super::jobs::Done;
use super::model::input::Input;
use super::model::request::Command;
use super::model::{Facts, Model};
use super::performer::{Outlets, Performer, now};
use super::running::Running;
use super::spec::{HostServices, MachineConfig, MachineSpec, QmpEndpoint, StopReason};
use super::state_file::StateFile;
use super::statistics::Meter;
use crate::process::Leader;
use crate::qmp::{Closed, Event};

/// How many requests may wait for the task.
const COMMANDS: usize = 64;

/// Creates the machine that `spec` defines, on the host of `services`. It sends its events to `events`.
///
/// Returns the machine, and the future that drives it. The caller spawns the future and awaits its end;
/// the future ends when the machine does, and after [`Running::stop`]. Its last event is sent before.
pub fn create(
    spec: MachineSpec,
    services: HostServices,
    events: EventSender,
) -> (Running, impl Future<Output = ()> + Send + 'static) {
    let (sender, commands) = mpsc::channel(COMMANDS);
    let (snapshot, snapshots) = watch::channel(Arc::default());
    let (leader, leaders) = watch::channel(None);
    let (session, meter) = Meter::new();
    let (config_sender, configs) = watch::channel(spec.config.clone());
    let (ready_sender, ready) = oneshot::channel();
    let host = services.host.clone();
    let handle = Handle::new(&spec, sender, snapshots, leaders, meter, configs, host);
    let (stop, stops) = watch::channel(None);
    let over = CancellationToken::new();
    let review = Arc::new(Notify::new());
    let state_file = StateFile::new(spec.state_file.clone());
    let outlets = Outlets {
        handle: handle.clone(),
        snapshot,
        leader,
        session,
        events,
        ready: ready_sender,
        over: over.clone(),
        review: review.clone(),
    };
    let mut task = MachineTask {
        model: Model::new(facts(&spec), spec.config.clone(), now()),
        commands,
        configs: config_sender.subscribe(),
        stops,
        review: review.clone(),
        callers: Callers::default(),
        performer: Performer::new(spec, services, state_file.clone(), outlets),
    };
    let running = Running {
        handle,
        configs: config_sender,
        stop,
        review,
        over,
        state_file,
        ready: Some(ready),
    };
    // Not `run(self)`: such a future has room for the task twice.
    (running, async move { task.run().await })
}

/// Returns what the model needs to know about the machine.
fn facts(spec: &MachineSpec) -> Facts {
    Facts {
        lifetime: spec.lifetime,
        is_reconnectable: matches!(spec.endpoint, QmpEndpoint::Socket(_)),
        uuid: spec.uuid.clone(),
    }
}

/// The driver of one machine.
struct MachineTask {
    model: Model,
    commands: mpsc::Receiver<Box<Call>>,
    configs: watch::Receiver<MachineConfig>,
    stops: watch::Receiver<Option<StopReason>>,
    /// Notified when it is the turn of the machine to be reviewed.
    review: Arc<Notify>,
    callers: Callers,
    performer: Performer,
}

/// The event that ends a wait of the task.
enum Woken {
    Command(Box<Call>),
    Config,
    Event(Option<Result<Event, Closed>>),
    Done(Done),
    Inputs(Vec<Input>),
}

impl MachineTask {
    async fn run(&mut self) {
        loop {
            while let Some(effect) = self.model.next_effect() {
                self.performer.perform(effect, &mut self.callers).await;
            }
            if self.model.is_gone() {
                break;
            }
            let woken = self.wait().await;
            self.handle(woken);
        }
        self.performer.finish().await;
    }

    /// Waits for the next thing that happens.
    async fn wait(&mut self) -> Woken {
        let performer = &mut self.performer;
        let leader = performer.leader().cloned();
        let is_clogged = performer.outbox.is_clogged();
        let deadline = self.model.next_deadline(now()).map(Instant::from_std);
        loop {
            tokio::select! {
                reason = stopped(&mut self.stops) => return Woken::Inputs(vec![Input::Stop(reason)]),
                Some(call) = self.commands.recv(), if !is_clogged && !self.model.is_busy() => {
                    return Woken::Command(call);
                }
                Ok(()) = self.configs.changed() => return Woken::Config,
                () = self.review.notified() => return Woken::Inputs(vec![Input::ReviewDue]),
                event = next_event(&mut performer.events), if !is_clogged => return Woken::Event(event),
                Some(done) = performer.connection_jobs.next() => return Woken::Done(done),
                Some(done) = performer.process_jobs.next() => return Woken::Done(done),
                () = performer.outbox.send_next() => if is_clogged { return Woken::Inputs(Vec::new()) },
                () = exited(leader.as_deref()) => return Woken::Inputs(vec![Input::ProcessExited]),
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    return Woken::Inputs(vec![Input::Tick]);
                }
            }
        }
    }

    fn handle(&mut self, woken: Woken) {
        match woken {
            Woken::Command(call) => {
                let Call { command, answer } = *call;
                if let Command::ApplyConfig = command {
                    self.reconfigure();
                }
                let id = self.callers.add(answer);
                self.input(Input::Command(id, command));
            }
            Woken::Config => self.reconfigure(),
            Woken::Event(event) => self.event(event),
            Woken::Inputs(inputs) => inputs.into_iter().for_each(|input| self.input(input)),
            Woken::Done(done) => {
                for input in self.performer.done(done) {
                    self.input(input);
                }
            }
        }
    }

    fn reconfigure(&mut self) {
        let config = self.configs.borrow_and_update().clone();
        self.input(Input::ConfigChanged(config));
    }

    fn event(&mut self, event: Option<Result<Event, Closed>>) {
        match event {
            Some(Ok(event)) => self.input(Input::Event(event)),
            Some(Err(closed)) => self.input(Input::Disconnected(closed)),
            None => self.input(Input::Disconnected(Closed::Hangup)),
        }
    }

    fn input(&mut self, input: Input) {
        let ends_connection = matches!(input, Input::Disconnected(_) | Input::ConnectFailed(_));
        let explains = matches!(input, Input::Exchanged(_)) || ends_connection;
        let mut closed = None;
        if explains {
            // Events that came before explain it.
            while let Some(event) = self.performer.try_event() {
                match event {
                    Ok(event) => self.model.handle(now(), Input::Event(event)),
                    Err(error) => closed = Some(error),
                }
            }
        }
        let has_exited = self.performer.leader().is_some_and(|l| l.has_exited());
        let input = match (input, closed.take_if(|_| ends_connection)) {
            // QEMU closes QMP a moment before it exits.
            _ if ends_connection && has_exited => Input::ProcessExited,
            // A command whose request came too late does not know the reason.
            (Input::Disconnected(_), Some(reason)) => Input::Disconnected(reason),
            (input, _) => input,
        };
        self.model.handle(now(), input);
        if let Some(closed) = closed {
            self.model.handle(now(), Input::Disconnected(closed));
        }
    }
}

async fn next_event(events: &mut Option<crate::qmp::Events>) -> Option<Result<Event, Closed>> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

/// Waits until the owner of the machine stops it, and returns the reason.
async fn stopped(stops: &mut watch::Receiver<Option<StopReason>>) -> StopReason {
    loop {
        if let Some(reason) = *stops.borrow_and_update() {
            return reason;
        }
        if stops.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

async fn exited(leader: Option<&Leader>) {
    match leader {
        Some(leader) => leader.exited().await,
        None => std::future::pending().await,
    }
}
