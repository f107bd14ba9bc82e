//! The jobs of a machine: what its effects start, and what becomes of them. A job owns all that it needs.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::timeout;

use super::agent::Agent;
use super::connect::{Connector, Reached};
use super::model::effect::{Batch, Threads, TuningSwitch};
use super::model::error::TuningError;
use super::model::input::{Input, Opened};
use super::model::tuning::TuningChange;
use super::placement::PlacementWorker;
use super::qmp_session::{OpenFailed, QmpSession, Socket, closed_by};
use super::state_file::StateFile;
use crate::ids::Pid;
use crate::placement::{ChangedThreads, Report, Tuning};
use crate::process::{Leader, LeaderError};
use crate::qmp::{Closed, Events};

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

impl From<Input> for Done {
    fn from(input: Input) -> Self {
        Self::Inputs(vec![input])
    }
}

/// Connects to QEMU.
pub(super) async fn connect(connector: Connector) -> Done {
    match connector.connect().await {
        Ok(reached) => Done::Reached(reached),
        Err(error) => Input::ConnectFailed(error).into(),
    }
}

/// Reads the state file.
pub(super) async fn load(file: StateFile) -> Done {
    let state = file.load().await.map_err(|error| error.to_string());
    Input::Loaded(state.map(|state| state.map(Box::new))).into()
}

/// Queries QEMU for the first time, within `limit` if there is one. A leader that a caller has named must have a thread
/// that QEMU reports.
pub(super) async fn open(
    socket: Socket,
    (leader, is_named): (Arc<Leader>, bool),
    silence: Duration,
    limit: Option<Duration>,
    with_ospm: bool,
) -> Done {
    let pid = leader.pid();
    let open = QmpSession::open(socket, leader, silence, with_ospm);
    let opened = match limit {
        Some(limit) => timeout(limit, open).await.unwrap_or_else(|_| {
            let closed = Closed::Timeout {
                command: "all that it is asked at first",
                after: limit,
            };
            Err(OpenFailed {
                error: closed.into(),
                events: None,
            })
        }),
        None => open.await,
    };
    if let Ok((session, opened, _)) = &opened
        && is_named
        && !session.is_of_leader(&opened.state.inventory).await
    {
        return Input::ConnectFailed(LeaderError::NoThread { pid }.into()).into();
    }
    match opened {
        Ok((session, opened, events)) => Done::Opened(Box::new((session, events, opened))),
        Err(OpenFailed { error, events }) => {
            // QEMU reports some refusals only once.
            let mut inputs = Vec::new();
            if let Some(mut events) = events {
                while let Some(Ok(event)) = events.try_recv() {
                    inputs.push(Input::Event(event));
                }
            }
            inputs.push(Input::ConnectFailed(error.into()));
            Done::Inputs(inputs)
        }
    }
}

/// Runs a batch.
pub(super) async fn exchange(session: Arc<QmpSession>, batch: Batch) -> Done {
    match session.run(batch).await {
        Ok(exchanged) => Input::Exchanged(Box::new(exchanged)).into(),
        Err(closed) => Input::Disconnected(closed).into(),
    }
}

/// Makes a placement pass.
pub(super) async fn place(
    worker: PlacementWorker,
    leader: Arc<Leader>,
    tuning: Arc<Tuning>,
    threads: Threads,
    changed: ChangedThreads,
) -> Done {
    match worker.place(leader, tuning, threads, changed).await {
        Ok(report) => Input::Placed(report).into(),
        Err(error) => Done::Inputs(vec![
            Input::Placed(Report::default()),
            Input::Disconnected(closed_by(error)),
        ]),
    }
}

/// Checks whether the host supports a change of the tuning.
pub(super) async fn check_tuning(
    worker: PlacementWorker,
    leader: Arc<Leader>,
    change: TuningChange,
) -> Done {
    match leader.verify().await {
        Ok(()) => Input::TuningChecked(worker.check(change).await).into(),
        Err(error) => Done::Inputs(vec![
            Input::TuningChecked(Err(TuningError::NoUnit)),
            Input::Disconnected(closed_by(error)),
        ]),
    }
}

/// Enforces another tuning.
pub(super) async fn change_tuning(
    worker: PlacementWorker,
    leader: Arc<Leader>,
    switch: TuningSwitch,
) -> Done {
    Input::TuningChanged(worker.change(leader, switch).await).into()
}

/// Brings guest CPUs online again.
pub(super) async fn restore_guest(
    agent: Agent,
    leader: Pid,
    limit: Duration,
    cpus: Vec<u32>,
) -> Done {
    let restored = agent.bring_back(leader, limit, &cpus).await;
    Input::GuestRestored(restored.map_err(|error| error.to_string())).into()
}
