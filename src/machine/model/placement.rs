//! The placement of the vCPUs, as far as the model knows it: the unit, the desired tuning, and the
//! result of the last pass.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::effect::{Threads, TuningSwitch};
use super::error::TuningError;
use super::input::UnitFound;
use super::snapshot::{Effective, Snapshot};
use super::tuning::TuningChange;
use crate::ids::VcpuId;
use crate::inventory::{HostThread, Inventory, Thread, Vcpu};
use crate::placement::{CpuList, Report, StepError, Tuning, UnitPlacement};

/// The time between two passes that nothing else causes. They undo drift, and the refresh before them
/// finds vCPUs that were added without an event.
const INTERVAL: Duration = Duration::from_secs(5);
/// The first pause before another search for a unit, if systemd failed for a time. Each next one is
/// twice as long.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest such pause.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// The placement of one QEMU process.
#[derive(Debug)]
pub(super) struct PlacementState {
    search: Search,
    unit: Option<UnitPlacement>,
    tuning: Arc<Tuning>,
    /// What of it the configuration wants.
    configured: Tuning,
    threads: Threads,
    /// The result of the last pass.
    report: Report,
    default_cpus: Option<CpuList>,
    /// When the next pass is due; `None` is at the next refresh.
    due: Option<Instant>,
}

/// The search for the unit.
#[derive(Debug)]
enum Search {
    /// It is due. The second is the pause after it.
    Due(Option<Instant>, Duration),
    /// It goes on.
    UnderWay(Duration),
    /// It has ended.
    Ended,
}

impl PlacementState {
    /// Returns the state of a process for which `configured` is wanted.
    pub(super) fn new(configured: Tuning) -> Self {
        Self {
            search: Search::Due(None, FIRST_RETRY),
            unit: None,
            tuning: Arc::new(configured.clone()),
            configured,
            threads: Threads::new(),
            report: Report::default(),
            default_cpus: None,
            due: None,
        }
    }

    /// Returns whether a search for the unit begins now.
    pub(super) fn begin_search(&mut self, now: Instant) -> bool {
        match self.search {
            Search::Due(at, pause) if at.is_none_or(|at| at <= now) => {
                self.search = Search::UnderWay(pause);
                true
            }
            _ => false,
        }
    }

    /// Returns whether the first search for the unit has not ended.
    pub(super) fn is_unknown(&self) -> bool {
        match self.search {
            Search::Due(at, _) => at.is_none(),
            Search::UnderWay(pause) => pause == FIRST_RETRY,
            Search::Ended => false,
        }
    }

    /// Notes the result of a search. Returns whether the unit is another one, so that a pass is needed.
    pub(super) fn found(&mut self, now: Instant, found: UnitFound) -> bool {
        let pause = match self.search {
            Search::UnderWay(pause) => pause,
            _ => FIRST_RETRY,
        };
        self.search = if found.is_transient {
            Search::Due(Some(now + pause), (pause * 2).min(LONGEST_RETRY))
        } else {
            Search::Ended
        };
        let is_other = self.unit != found.unit;
        if is_other {
            self.due = None;
        }
        self.unit = found.unit;
        self.default_cpus = found.default_cpus.or(self.default_cpus.take());
        is_other
    }

    /// Returns when the next search is due, if one is.
    pub(super) fn search_due(&self) -> Option<Instant> {
        match self.search {
            Search::Due(at, _) => at,
            Search::UnderWay(_) | Search::Ended => None,
        }
    }

    /// Returns when the next pass is due without another cause.
    pub(super) fn pass_due(&self) -> Option<Instant> {
        self.due.filter(|_| self.unit.is_some())
    }

    /// Begins a placement pass for `inventory` if threads differ from those of the last pass, or a pass is
    /// due.
    pub(super) fn begin_pass(&mut self, now: Instant, inventory: &Inventory) -> Option<Threads> {
        self.unit.as_ref()?;
        let threads = inventory.vcpus();
        let threads = threads.filter_map(|vcpu| Some((vcpu.id, vcpu.thread?)));
        let threads: Threads = threads.collect();
        let is_due = self.due.is_none_or(|due| due <= now);
        if !is_due && threads == self.threads {
            return None;
        }
        self.threads.clone_from(&threads);
        self.due = Some(now + INTERVAL);
        Some(threads)
    }

    /// Notes the result of a pass.
    pub(super) fn placed(&mut self, report: &Report, default_cpus: Option<CpuList>) {
        self.report = report.clone();
        self.default_cpus = default_cpus.or(self.default_cpus.take());
    }

    /// Returns the steps that failed for `vcpus` in the last pass, except those that the host or the unit
    /// does not support.
    pub(super) fn failures(&self, vcpus: &[VcpuId]) -> Vec<(VcpuId, StepError)> {
        let failed = self.report.failures();
        let failed = failed.filter(|(vcpu, error)| vcpus.contains(vcpu) && !error.is_unsupported());
        failed.map(|(vcpu, error)| (vcpu, error.clone())).collect()
    }

    /// Returns the desired tuning.
    pub(super) fn tuning(&self) -> &Arc<Tuning> {
        &self.tuning
    }

    /// Returns what the configuration wants.
    pub(super) fn configured(&self) -> &Tuning {
        &self.configured
    }

    /// Restores the tuning of a previous instance, which had the configuration `before`. The
    /// configuration may have changed in the meantime.
    pub(super) fn restore(&mut self, tuning: &Tuning, before: Option<&Tuning>) {
        let before = before.unwrap_or(&self.configured);
        self.tuning = Arc::new(tuning.rebased(before, &self.configured));
    }

    /// Applies what the configuration wants now: it takes precedence over earlier changes of the same
    /// values, and leaves the others. Returns whether anything changed.
    pub(super) fn configure(&mut self, wanted: &Tuning) -> bool {
        if *wanted == self.configured {
            return false;
        }
        self.tuning = Arc::new(self.tuning.rebased(&self.configured, wanted));
        self.configured = wanted.clone();
        self.due = None;
        true
    }

    /// Returns the tuning that results from `change`.
    ///
    /// # Errors
    /// Fails if the machine cannot have it. Whether the host can is not checked.
    pub(super) fn check(
        &self,
        change: &TuningChange,
        inventory: &Inventory,
    ) -> Result<Arc<Tuning>, TuningError> {
        let max = inventory.max_vcpus();
        let vcpus = change.vcpus();
        let last = vcpus.and_then(|vcpus| vcpus.last()).copied();
        if let Some(vcpu) = last.filter(|vcpu| vcpu.get() >= max) {
            return Err(TuningError::NoSuchVcpu { vcpu, max });
        }
        if self.unit.is_none() {
            return Err(TuningError::NoUnit);
        }
        let has_no_thread = |vcpu: &Vcpu<'_>| {
            let is_named = vcpus.is_none_or(|v| v.is_empty() || v.contains(&vcpu.id));
            is_named && vcpu.slot.presence.is_some() && vcpu.thread.is_none()
        };
        if let Some(vcpu) = inventory.vcpus().find(has_no_thread) {
            return Err(no_thread(&vcpu));
        }
        Ok(Arc::new(change.of(&self.tuning, max)))
    }

    /// Replaces the desired tuning. Returns the previous one.
    pub(super) fn replace(&mut self, tuning: Arc<Tuning>) -> Arc<Tuning> {
        std::mem::replace(&mut self.tuning, tuning)
    }

    /// Returns the switch from the tuning `old` to the desired one, which `change` made.
    pub(super) fn switch_from(&self, old: Arc<Tuning>, change: TuningChange) -> TuningSwitch {
        TuningSwitch {
            old,
            new: self.tuning.clone(),
            threads: self.threads.clone(),
            change,
        }
    }

    /// Completes `snapshot` with the placement.
    pub(super) fn describe(&self, snapshot: &mut Snapshot) {
        snapshot.unit.clone_from(&self.unit);
        snapshot.tuning.clone_from(&self.tuning);
        let affinity = self.tuning.affinity.as_ref();
        let affinity = affinity.or(self.default_cpus.as_ref());
        snapshot.affinity = affinity.map(CpuList::to_string).unwrap_or_default();
        let has_no_pin = |vcpu| !self.tuning.pins.contains_key(&vcpu);
        snapshot.effective = Effective {
            affinity: self.report.affinity(has_no_pin).to_string(),
            bandwidth: self.report.bandwidth(),
        };
    }
}

/// Returns why `vcpu` has no thread of its own.
fn no_thread(vcpu: &Vcpu<'_>) -> TuningError {
    let id = vcpu.id;
    match vcpu.reported {
        Some(Thread {
            host: HostThread::Shared,
            ..
        }) => TuningError::SharedThread { vcpu: id },
        Some(Thread { id: thread, .. }) => TuningError::MissingThread { vcpu: id, thread },
        None => TuningError::NoThread { vcpu: id },
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::inventory;
    use super::*;
    use crate::placement::Kind;

    fn unit(kind: Kind) -> Option<UnitPlacement> {
        Some(UnitPlacement {
            kind,
            unit: "web.scope".into(),
            control_group: String::new(),
        })
    }

    fn found(kind: Kind, is_transient: bool) -> UnitFound {
        UnitFound {
            unit: unit(kind),
            is_transient,
            default_cpus: None,
        }
    }

    #[test]
    fn searches_the_unit_again_while_systemd_fails_for_a_time() {
        let (mut state, now) = (PlacementState::new(Tuning::default()), Instant::now());
        assert!(state.is_unknown() && state.begin_search(now));
        assert!(!state.begin_search(now), "one search at a time");
        assert!(state.found(now, found(Kind::None, true)));
        assert!(!state.is_unknown() && !state.begin_search(now));
        let mut pauses = Vec::new();
        let mut at = now;
        for _ in 0..8 {
            let Search::Due(Some(next), _) = state.search else {
                panic!("{state:?}");
            };
            pauses.push((next - at).as_secs());
            at = next;
            assert!(state.begin_search(at));
            let is_other = state.found(at, found(Kind::None, true));
            assert!(!is_other, "QEMU is not queried for nothing");
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);

        let later = at + LONGEST_RETRY;
        assert!(state.begin_search(later));
        assert!(state.found(later, found(Kind::Scope, false)));
        assert!(!state.begin_search(later + LONGEST_RETRY));
        let mut snapshot = Snapshot::default();
        state.describe(&mut snapshot);
        assert_eq!(snapshot.unit, unit(Kind::Scope));
    }

    #[test]
    fn a_pass_is_needed_for_other_threads_another_unit_and_from_time_to_time() {
        let (mut state, now) = (PlacementState::new(Tuning::default()), Instant::now());
        let mut one = inventory(4, &[(0, 10)]);
        let _ = one.trust_threads(crate::ids::Pid(1), Some);
        assert_eq!(state.begin_pass(now, &one), None, "there is no placer");
        assert!(state.begin_search(now));
        state.found(now, found(Kind::None, true));
        assert!(state.begin_pass(now, &one).is_some());
        assert_eq!(state.begin_pass(now, &one), None);
        let mut two = inventory(4, &[(0, 10), (1, 11)]);
        let _ = two.trust_threads(crate::ids::Pid(1), Some);
        assert_eq!(state.begin_pass(now, &two).map(|t| t.len()), Some(2));
        assert_eq!(state.begin_pass(now, &two), None);
        state.found(now, found(Kind::Scope, false));
        assert!(state.begin_pass(now, &two).is_some());
        assert!(state.begin_pass(now + INTERVAL, &two).is_some());
    }
}
