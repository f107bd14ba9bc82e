//! The kernel's audit log: records of what callers asked for and of what changed. See `audit(8)`.

mod log;
mod record;

pub use log::Audit;
pub use record::{AuditRecord, CallRecord};
