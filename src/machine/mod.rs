//! A machine: one QEMU process after another at one QMP endpoint, its vCPUs and their placement.
//!
//! ```text
//!               requests                 inputs               effects
//!   Handle ──────────────▶ MachineTask ─────────▶ Model ──────────────────▶ MachineTask
//!     ▲                      │      ▲            (pure)                        │
//!     │ snapshots            │      │                                          ▼
//!     └──────────────────────┘      └── results of jobs ◀── QmpSession, PlacementWorker, StateFile
//! ```
//!
//! The model decides, the task waits, and the performer does. A job borrows nothing of the model:
//! deadlines, events, requests and configuration changes are served while QEMU owes a reply. Events and
//! replies leave in one ordered queue, so that a reply follows its signals.
//!
//! # Phases, as clients see them
//!
//! ```text
//!             ┌────────── dormant ◀──────────────────┐  hidden: nothing listens
//!             ▼                                      │
//!         handshake ── 2 s ──▶ unresponsive ──┐      │ the process exits, and the
//!    (hidden; a registration     (visible)    │      │ machine has a socket or a file
//!     must answer here)              │        ▼      │
//!             │ QEMU answers         └──▶ connected ⇄ disconnected
//!             │                               │          │
//!             │ a registration fails          └────┬─────┘
//!             ▼                                    ▼
//!           gone ◀───────────────────────────────────  the process of a registered machine exits
//! ```
//!
//! `model::phase::Phase` has the phases of the model. In the phase `Paused`, a machine is dormant, or
//! disconnected if clients can see it. An unresponsive machine is in the phase `Handshake`. A machine whose
//! connection was lost is in the phase `Lost` first, for 250 ms, because its process may exit. Clients still
//! see it as connected then.
//!
//! Everything that is known about one QEMU process is one struct (`model::process::Process`), which is
//! dropped when the process exits. `model::operation::Operation` is what a connected machine does, and
//! `model::removals` has the removals, which outlive operations:
//!
//! ```text
//!   requested ──▶ pending ──▶ removed     the inventory shows it
//!                    └──────▶ refused     the guest or QEMU reports it
//! ```
//!
//! Nothing here knows D-Bus.

mod agent;
mod callers;
mod connect;
mod events;
mod guest_assist;
mod handle;
mod jobs;
mod journal;
mod look;
/// For the tests of the model only; the interface may change at any time.
#[doc(hidden)]
pub mod model;
mod outbox;
mod performer;
mod placement;
mod processes;
mod qmp_session;
mod qmp_state;
mod quota;
mod running;
mod saver;
mod spec;
mod state_file;
mod statistics;
mod tally;
mod task;

pub use events::{BusMessage, Completion, EventSender};
pub use guest_assist::{online, set_vcpus};
pub use handle::Handle;
pub use model::error::{Error, Report, TuningError};
pub use model::event::{Cause, MachineEvent, VcpuChange};
pub use model::plan_code::{PlanCode, Warning, WarningCode};
pub use model::refusal::{Refusal, RefusalCode, RefusalReason};
pub use model::request::{Outcome, Request, Until, Wait};
pub use model::snapshot::{DISCONNECTED, Snapshot, Subject};
pub use model::tuning::{TuningChange, TuningKind};
pub use processes::{Processes, SecondNames};
pub use running::Running;
pub use spec::{
    ConnectError, HostServices, Lifetime, MachineConfig, MachineSpec, Origin, PlacementConfig,
    QmpEndpoint, StopReason,
};
pub use state_file::forget_others;
pub use task::create;
