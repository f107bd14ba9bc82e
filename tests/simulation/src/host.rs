//! A simulated host: the placer, and the search for the unit.

use std::collections::{BTreeSet, VecDeque};

use vcpud::ids::VcpuId;
use vcpud::machine::TuningError;
use vcpud::machine::model::effect::Threads;
use vcpud::machine::model::input::{Input, UnitFound};
use vcpud::placement::{Kind, Outcome, Reason, Report, Retry, Step, StepError, UnitPlacement};

use crate::step::{Fault, Part};

/// What fails or stalls.
#[derive(Default)]
pub(crate) struct Trouble {
    pub faults: BTreeSet<Fault>,
    pub stalled: BTreeSet<Part>,
}

/// The jobs of the placer, which end in their order, and the search for the unit.
#[derive(Default)]
pub(crate) struct Host {
    pub placing: VecDeque<Placing>,
    pub is_searching: bool,
    /// Whether the model waits for an absent systemd.
    pub is_awaiting: bool,
    /// The searches that failed.
    failed: u32,
}

/// A job of the placer.
pub(crate) enum Placing {
    Prepare,
    Place(Threads),
    Check,
    Change(Threads),
}

impl Trouble {
    /// Returns whether `fault` was to happen, and happens now.
    pub(crate) fn takes(&mut self, fault: Fault) -> bool {
        self.faults.remove(&fault)
    }

    pub(crate) fn is_stalled(&self, part: Part) -> bool {
        self.stalled.contains(&part)
    }
}

impl Host {
    /// Ends the first job of the placer.
    pub(crate) fn end_placing(&mut self, trouble: &mut Trouble) -> Option<Input> {
        Some(match self.placing.pop_front()? {
            Placing::Prepare => return None,
            Placing::Place(threads) => {
                let fails = trouble.takes(Fault::Place);
                Input::Placed(report(&threads, fails))
            }
            Placing::Check if trouble.takes(Fault::Check) => {
                Input::TuningChecked(Err(TuningError::NoUnit))
            }
            Placing::Check => Input::TuningChecked(Ok(())),
            Placing::Change(threads) if trouble.takes(Fault::Change) => {
                let failed = threads.keys().map(|vcpu| (*vcpu, failure()));
                Input::TuningChanged(Err(failed.collect()))
            }
            Placing::Change(threads) => Input::TuningChanged(Ok(report(&threads, false))),
        })
    }

    /// Ends the search for the unit.
    pub(crate) fn end_search(&mut self, has_unit: bool, trouble: &mut Trouble) -> Input {
        self.is_searching = false;
        let retry = if trouble.takes(Fault::Units) {
            self.failed += 1;
            [Retry::WhenPresent, Retry::Later][self.failed as usize % 2]
        } else {
            Retry::Never
        };
        let unit = UnitPlacement {
            kind: match retry {
                Retry::Never => Kind::Scope,
                _ => Kind::None,
            },
            unit: "story.scope".into(),
            control_group: String::new(),
        };
        Input::UnitFound(UnitFound {
            unit: has_unit.then_some(unit),
            retry,
            ..UnitFound::default()
        })
    }
}

fn report(threads: &Threads, fails: bool) -> Report {
    let row = |vcpu: &VcpuId| {
        let outcome = Outcome {
            failed: fails.then(failure).into_iter().collect(),
            ..Outcome::default()
        };
        (*vcpu, Box::new(outcome))
    };
    Report {
        vcpus: threads.keys().map(row).collect(),
        ..Report::default()
    }
}

fn failure() -> StepError {
    Step::Affinity.failed("/simulated", Reason::Foreign)
}
