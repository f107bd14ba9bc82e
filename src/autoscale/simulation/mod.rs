//! A simulated host with machines, on which policies can be compared. Pure: it gets the text of a trace, and
//! the same trace always leads to the same result.

mod rivals;
mod run;
mod trace;
mod vcpud;
mod world;

pub use rivals::{LoadAverage, Threshold};
pub use run::{Choice, Policy, Report, Score, simulate};
pub use trace::{Trace, TraceError};

#[cfg(test)]
mod tests;
