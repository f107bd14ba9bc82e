//! The policy of the autoscaler: from samples of a machine to the number of vCPUs that it needs. Pure: no
//! clock, no files and no bus.
//!
//! A caller adds one [`Sample`] a second to the [`History`] of a machine, asks [`decide`], and reports its requests
//! and their results back to the history. All times are since one origin that the caller chooses, except those of
//! the samples, which can be those of another clock.

mod backoff;
mod budget;
mod decision;
mod history;
mod limits;
mod policy;
mod requests;
mod sample;
pub mod simulation;
mod slots;

pub use budget::{Claim, share};
pub use decision::{Decision, Details, Direction, Reason};
pub use history::History;
pub use limits::{Limits, LimitsError};
pub use policy::{Bounds, claim, decide};
pub use requests::Outcome;
pub use sample::{Load, MachineState, Sample};

#[cfg(test)]
mod tests;
