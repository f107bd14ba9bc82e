//! One machine: an actor that alone speaks with its QEMU and alone changes what is known of it.
//!
//! ```text
//!   Handle ── Command ──▶ ┌───────┐ ── QMP commands ──▶ QEMU
//!     ▲                   │ Actor │ ◀── replies, events ──
//!     └── watch Snapshot ─┤       ├── BusMessage ──▶ EventSender (signals, in order)
//!                         └───────┘
//!
//!   connecting ──▶ connected ──▶ disconnected ──▶ connecting …      as long as its `Lifetime`
//!       │              │              │
//!       └── 2 s ──▶ appeared      leader exits ──▶ vanished
//!
//!   a removal:   device_del ──▶ open ──▶ gone      (the inventory says so)
//!                                 └────▶ refused   (the guest or QEMU says so)
//! ```
//!
//! A request is carried out in one step: plan, ask QEMU, look again, tell. Steps come one after
//! the other and last as long as QEMU takes to reply. What lasts longer, a guest that gives up a
//! CPU, is bookkeeping in `removal` and holds nothing up. Nothing here knows D-Bus.

mod actor;
mod backoff;
mod changes;
mod chronicle;
mod connect;
mod error;
mod guest;
mod handle;
mod keeping;
mod link;
mod notice;
mod placing;
mod processes;
mod quota;
mod record;
mod record_file;
mod removal;
mod request;
mod running;
mod session;
mod snapshot;
mod source;
mod tuning;
mod worker;

pub use actor::create;
pub use error::{Error, Refusal, Report, TuningError};
pub use handle::{Handle, Outcome, Request, Wait};
pub use notice::{BusMessage, Cause, EventSender, MachineEvent, Reply, Vcpu};
pub use placing::{HostServices, PlacementConfig};
pub use processes::Processes;
pub use record_file::forget_others;
pub use running::Running;
pub use snapshot::{DISCONNECTED, Snapshot, Subject};
pub use source::{ConnectError, Lifetime, MachineConfig, MachineSpec, QmpEndpoint};
pub use tuning::TuningChange;
