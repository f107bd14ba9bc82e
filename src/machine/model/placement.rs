//! The placement of the vCPUs, as far as the model knows it: the unit, the desired tuning, and the
//! result of the last pass.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::effect::{Threads, TuningSwitch};
use super::error::TuningError;
use super::error_text::group_reasons;
use super::input::{Missing, UnitFound};
use super::search::Search;
use super::snapshot::{Effective, Snapshot};
use super::tuning::TuningChange;
use crate::ids::VcpuId;
use crate::inventory::{HostThread, Inventory, Thread, Vcpu};
use crate::placement::{
    ChangedThreads, Controller, CpuList, Kind, Reason, Report, Retry, StepError, Tuning,
    UnitPlacement,
};

/// The first pause before another pass, if one failed in part. Each next one is twice as long.
const FIRST_REPEAT: Duration = Duration::from_secs(5);
/// The longest such pause.
const LONGEST_REPEAT: Duration = Duration::from_secs(60);
/// Why the groups are not used until the next search.
const ELSEWHERE: &str =
    "another program moved QEMU to another unit, and its unit is searched again";
/// Why the groups of a unit that was found are not in force.
const MOVING: &str = "its threads are being moved to its unit";

/// The placement of one QEMU process.
#[derive(Debug)]
pub(super) struct PlacementState {
    search: Search,
    /// Whether a search for the unit has ended.
    is_known: bool,
    unit: Option<UnitPlacement>,
    /// The unit at the begin of the last pass for a refresh.
    placing: Option<UnitPlacement>,
    /// The unit in which that pass has placed the threads.
    in_force: Option<UnitPlacement>,
    /// Why it has no control groups, if that is not as configured.
    missing: Option<Missing>,
    /// The controllers that its control groups do not have.
    missing_controllers: Vec<Controller>,
    tuning: Arc<Tuning>,
    /// What of it the configuration wants.
    configured: Tuning,
    threads: Threads,
    /// The threads with values to restore later.
    changed: ChangedThreads,
    /// The result of the last pass.
    report: Report,
    default_cpus: Option<CpuList>,
    pass: Pass,
    /// The pause before another pass, if the next one fails in part.
    repeat: Duration,
}

/// The next pass for the same threads.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pass {
    /// It is part of the next refresh.
    AtRefresh,
    /// It is due then, with a refresh.
    At(Instant),
    /// No pass is due until something changes.
    None,
}

/// The consequences of a search.
#[derive(Debug, PartialEq)]
pub(super) struct Found {
    /// The unit or its groups are others, so that a pass is needed.
    pub(super) is_other: bool,
    /// The next search begins when systemd is there.
    pub(super) awaits_units: bool,
    /// Why there are no control groups, if the reason is another one.
    pub(super) missing: Option<Missing>,
}

impl PlacementState {
    /// Returns the state of a process for which `configured` is wanted.
    pub(super) fn new(configured: Tuning) -> Self {
        Self {
            search: Search::default(),
            is_known: false,
            unit: None,
            placing: None,
            in_force: None,
            missing: None,
            missing_controllers: Vec::new(),
            tuning: Arc::new(configured.clone()),
            configured,
            threads: Threads::new(),
            changed: ChangedThreads::new(),
            report: Report::default(),
            default_cpus: None,
            pass: Pass::AtRefresh,
            repeat: FIRST_REPEAT,
        }
    }

    /// Returns whether a search for the unit begins now.
    pub(super) fn begin_search(&mut self, now: Instant) -> bool {
        self.search.begin(now)
    }

    /// Returns whether the first search for the unit has not ended.
    pub(super) fn is_unknown(&self) -> bool {
        !self.is_known
    }

    /// Notes the result of a search.
    pub(super) fn found(&mut self, now: Instant, found: UnitFound) -> Found {
        self.search.end(now, found.retry);
        let is_other = self.unit != found.unit || self.report.is_elsewhere;
        if is_other || !self.is_known {
            self.pass = Pass::AtRefresh;
        }
        let result = Found {
            is_other,
            awaits_units: found.retry == Retry::WhenPresent,
            missing: found
                .missing
                .clone()
                .filter(|_| self.missing != found.missing),
        };
        self.is_known = true;
        self.unit = found.unit;
        if self.unit.is_none() {
            // There is no pass without a unit.
            self.in_force = None;
        }
        self.missing = found.missing;
        self.missing_controllers = found.missing_controllers;
        self.default_cpus = found.default_cpus.or(self.default_cpus.take());
        result
    }

    /// Notes that systemd is there, after it was absent.
    pub(super) fn units_appeared(&mut self, now: Instant) {
        self.search.units_appeared(now);
    }

    /// Returns when the next search is due, if one is.
    pub(super) fn search_due(&self) -> Option<Instant> {
        self.search.due()
    }

    /// Makes a pass part of the next refresh.
    pub(super) fn check_at_refresh(&mut self) {
        self.pass = Pass::AtRefresh;
    }

    /// Returns when the next pass is due without another cause.
    pub(super) fn pass_due(&self) -> Option<Instant> {
        match self.pass {
            Pass::At(at) if self.can_place() => Some(at),
            _ => None,
        }
    }

    /// Returns whether vCPUs can be placed. While the unit is not known, they can be without control
    /// groups.
    fn can_place(&self) -> bool {
        self.unit.is_some() || !self.is_known
    }

    /// Begins a placement pass for `inventory` if threads differ from those of the last pass, or a pass is
    /// due.
    pub(super) fn begin_pass(&mut self, now: Instant, inventory: &Inventory) -> Option<Threads> {
        if !self.can_place() {
            return None;
        }
        let threads = inventory.vcpus();
        let threads = threads.filter_map(|vcpu| Some((vcpu.id, vcpu.thread?)));
        let threads: Threads = threads.collect();
        let is_due = match self.pass {
            Pass::AtRefresh => true,
            Pass::At(at) => at <= now,
            Pass::None => false,
        };
        if !is_due && threads == self.threads {
            return None;
        }
        self.threads.clone_from(&threads);
        self.placing.clone_from(&self.unit);
        self.pass = Pass::None;
        Some(threads)
    }

    /// Notes the result of a pass. Returns whether other values are to be restored later.
    pub(super) fn placed(&mut self, now: Instant, report: &Report) -> bool {
        if report.may_improve() {
            // The configuration may have changed during the pass.
            if self.pass != Pass::AtRefresh {
                self.pass = Pass::At(now + self.repeat);
            }
            self.repeat = (self.repeat * 2).min(LONGEST_REPEAT);
        } else {
            self.repeat = FIRST_REPEAT;
        }
        self.search.note_elsewhere(now, report.is_elsewhere);
        // An empty report is that of a pass that was not made.
        if report.is_elsewhere {
            self.in_force = None;
        } else if self.threads.is_empty() || !report.vcpus.is_empty() {
            self.in_force.clone_from(&self.placing);
        }
        self.report = report.clone();
        if report.default_cpus.is_some() {
            self.default_cpus.clone_from(&report.default_cpus);
        }
        self.note_changed(report)
    }

    /// Follows which threads have values to restore later, and returns whether that changed. An empty report is
    /// that of a pass that was not made.
    fn note_changed(&mut self, report: &Report) -> bool {
        let before = self.changed.clone();
        let threads = &self.threads;
        self.changed.retain(|vcpu, changed| {
            !report.vcpus.contains_key(vcpu) && threads.get(vcpu) == Some(&changed.thread)
        });
        let passed = report.vcpus.iter();
        let passed = passed.filter_map(|(vcpu, outcome)| Some((*vcpu, outcome.changed.clone()?)));
        self.changed.extend(passed);
        self.changed != before
    }

    /// Returns the threads with values to restore later.
    pub(super) fn changed(&self) -> &ChangedThreads {
        &self.changed
    }

    /// Restores the changed threads of a previous instance.
    pub(super) fn restore_changed(&mut self, changed: ChangedThreads) {
        self.changed = changed;
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
        self.pass = Pass::AtRefresh;
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
        if !self.can_place() {
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
            changed: self.changed.clone(),
            change,
        }
    }

    /// Completes `snapshot` with the missing parts of the placement, and the changes that are possible without them.
    pub(super) fn describe_errors(&self, snapshot: &mut Snapshot) {
        snapshot.can_place = self.can_place();
        snapshot.can_limit = self.has_groups()
            && !self.is_moving()
            && !self.missing_controllers.contains(&Controller::Cpu);
        let reason = match &self.missing {
            _ if self.is_unknown() => Some("systemd has not answered yet"),
            None if self.report.is_elsewhere => Some(ELSEWHERE),
            None if self.is_moving() => Some(MOVING),
            missing => missing.as_ref().map(|missing| missing.reason.as_str()),
        };
        let unit = self.unit.as_ref().map_or("", |unit| unit.unit.as_str());
        let no_groups = reason.map(|reason| format!("no control groups: {reason}"));
        let controllers = self.missing_controllers.iter();
        let controllers =
            controllers.map(|it| format!("the {it} controller is not available in {unit}"));
        let errors = no_groups.into_iter().chain(controllers);
        let failures = self.failed_steps(reason.is_some());
        snapshot.placement_errors = errors.chain(failures).collect();
    }

    /// Returns whether the unit has groups, and no pass has moved the threads there.
    fn is_moving(&self) -> bool {
        self.has_groups() && self.in_force != self.unit
    }

    /// Returns whether the unit has control groups for the vCPUs.
    fn has_groups(&self) -> bool {
        let unit = self.unit.as_ref();
        unit.is_some_and(|unit| unit.kind != Kind::None)
    }

    /// Returns the steps that failed in the last pass, except those that `has_reason` or the missing
    /// controllers explain.
    fn failed_steps(&self, has_reason: bool) -> Vec<String> {
        let is_explained = |error: &StepError| match error.reason {
            Reason::NoGroups => has_reason,
            Reason::NoController(_) => !self.missing_controllers.is_empty(),
            _ => error.is_of_thread(),
        };
        let failures = self.report.failures();
        let failures = failures.filter(|(_, error)| !is_explained(error));
        // Without the paths, which differ, so that vCPUs with the same failure share a line.
        let lines =
            failures.map(|(vcpu, error)| (vcpu, format!("{}: {}", error.step, error.reason)));
        group_reasons(lines)
    }

    /// Completes `snapshot` with the placement.
    pub(super) fn describe(&self, snapshot: &mut Snapshot) {
        snapshot.unit.clone_from(&self.in_force);
        self.describe_errors(snapshot);
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
    use crate::ids::Tid;
    use crate::placement::{ChangedThread, Outcome, Step};

    fn unit(kind: Kind) -> Option<UnitPlacement> {
        Some(UnitPlacement {
            kind,
            unit: "web.scope".into(),
            control_group: String::new(),
        })
    }

    fn found(kind: Kind, retry: Retry) -> UnitFound {
        let missing = Missing {
            reason: "systemd refused: no".to_owned(),
            is_error: true,
        };
        UnitFound {
            unit: unit(kind),
            missing: (kind == Kind::None).then_some(missing),
            retry,
            ..UnitFound::default()
        }
    }

    fn errors(state: &PlacementState) -> Vec<String> {
        let mut snapshot = Snapshot::default();
        state.describe(&mut snapshot);
        snapshot.placement_errors
    }

    fn shown_unit(state: &PlacementState) -> Option<UnitPlacement> {
        let mut snapshot = Snapshot::default();
        state.describe(&mut snapshot);
        snapshot.unit
    }

    /// Makes a pass with the result `report`.
    fn pass(state: &mut PlacementState, now: Instant, report: &Report) {
        state.begin_pass(now, &inventory(4, &[]));
        state.placed(now, report);
    }

    #[test]
    fn searches_the_unit_again_while_systemd_fails() {
        let (mut state, now) = (PlacementState::new(Tuning::default()), Instant::now());
        assert!(state.is_unknown() && state.begin_search(now));
        assert!(!state.begin_search(now), "one search at a time");
        assert_eq!(
            errors(&state),
            ["no control groups: systemd has not answered yet"]
        );
        let first = state.found(now, found(Kind::None, Retry::Later));
        assert!(first.is_other && first.missing.is_some() && !first.awaits_units);
        assert!(!state.is_unknown() && !state.begin_search(now));
        let mut pauses = Vec::new();
        let mut at = now;
        for _ in 0..8 {
            let next = state.search_due().unwrap();
            pauses.push((next - at).as_secs());
            at = next;
            assert!(state.begin_search(at));
            let again = state.found(at, found(Kind::None, Retry::Later));
            assert!(!again.is_other, "QEMU is not queried for nothing");
            assert_eq!(again.missing, None, "it is logged once");
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(errors(&state), ["no control groups: systemd refused: no"]);

        let later = at + LONGEST_REPEAT;
        assert!(state.begin_search(later));
        assert!(
            state
                .found(later, found(Kind::Scope, Retry::Never))
                .is_other
        );
        assert!(!state.begin_search(later + LONGEST_REPEAT));
        pass(&mut state, later, &Report::default());
        assert_eq!(shown_unit(&state), unit(Kind::Scope));
        assert_eq!(errors(&state), Vec::<String>::new());
    }

    #[test]
    fn the_unit_is_shown_when_its_pass_has_ended() {
        let (mut state, now) = (PlacementState::new(Tuning::default()), Instant::now());
        // systemd answers during a pass without the unit.
        assert!(state.begin_search(now));
        state.begin_pass(now, &inventory(4, &[]));
        state.found(now, found(Kind::Scope, Retry::Never));
        let moving = [format!("no control groups: {MOVING}")];
        for _ in 0..2 {
            assert_eq!(shown_unit(&state), None);
            assert_eq!(errors(&state), moving);
            state.placed(now, &Report::default());
        }
        pass(&mut state, now, &Report::default());
        assert_eq!(shown_unit(&state), unit(Kind::Scope));
        assert_eq!(errors(&state), Vec::<String>::new());
    }

    /// Returns a report in which these steps of vCPUs failed.
    fn failed(steps: &[(u32, Step, Reason)]) -> Report {
        let mut report = Report::default();
        for (vcpu, step, reason) in steps {
            let outcome = report.vcpus.entry(VcpuId(*vcpu)).or_default();
            let path = format!("/x/vcpu{vcpu}");
            outcome.failed.push(step.failed(path, reason.clone()));
        }
        report
    }

    #[test]
    fn the_errors_are_the_missing_parts_of_the_last_pass() {
        let (mut state, now) = (PlacementState::new(Tuning::default()), Instant::now());
        let offline = || Reason::Offline("9".parse().unwrap());
        let in_groups = failed(&[
            (0, Step::Cpus, offline()),
            (0, Step::Nodes, Reason::NoController(Controller::Cpuset)),
            (1, Step::Cpus, offline()),
            (2, Step::Thread, Reason::Ended),
            (3, Step::Cache, Reason::NoResctrl),
        ]);
        let mut with_groups = found(Kind::Scope, Retry::Never);
        with_groups.missing_controllers = vec![Controller::Cpuset];
        state.found(now, with_groups);
        pass(&mut state, now, &in_groups);
        let lines = errors(&state);
        let wanted = [
            "the cpuset controller is not available in web.scope",
            "vCPUs 0-1: setting the group's host CPUs: the host CPU list 9 has no CPU that is online",
        ];
        assert_eq!(lines[..2], wanted);
        let cache = "vCPU 3: setting the thread's cache allocation: resctrl is not mounted";
        assert!(lines.len() == 3 && lines[2].starts_with(cache), "{lines:?}");

        let limit = failed(&[(0, Step::Bandwidth, Reason::NoGroups)]);
        pass(&mut state, now, &limit);
        state.found(now, found(Kind::None, Retry::Never));
        assert_eq!(errors(&state), ["no control groups: systemd refused: no"]);
        // `placement = "none"` is as configured, and a limit is not possible.
        let as_configured = UnitFound {
            missing: None,
            ..found(Kind::None, Retry::Never)
        };
        state.found(now, as_configured);
        let lines = errors(&state);
        let none =
            "vCPU 0: setting the group's period and quota: the machine has no control groups";
        assert!(lines.len() == 1 && lines[0].starts_with(none), "{lines:?}");
        pass(&mut state, now, &Report::default());
        assert_eq!(errors(&state), Vec::<String>::new());
    }

    #[test]
    fn a_limit_is_possible_while_the_threads_are_in_groups_of_the_cpu_controller() {
        let (mut state, now) = (PlacementState::new(Tuning::default()), Instant::now());
        let possible = |state: &PlacementState| {
            let mut snapshot = Snapshot::default();
            state.describe(&mut snapshot);
            (snapshot.can_place, snapshot.can_limit)
        };
        assert_eq!(possible(&state), (true, false), "the unit is not known");
        state.found(now, found(Kind::Scope, Retry::Never));
        assert_eq!(possible(&state), (true, false), "the threads are moved");
        pass(&mut state, now, &Report::default());
        assert_eq!(possible(&state), (true, true));
        let mut without_cpu = found(Kind::Scope, Retry::Never);
        without_cpu.missing_controllers = vec![Controller::Cpu];
        state.found(now, without_cpu);
        assert_eq!(possible(&state), (true, false));
        state.found(now, found(Kind::None, Retry::Never));
        pass(&mut state, now, &Report::default());
        assert_eq!(possible(&state), (true, false));
        state.found(now, UnitFound::default());
        assert_eq!(possible(&state), (false, false), "there is no placer");
    }

    #[test]
    fn searches_the_unit_again_after_the_process_was_moved() {
        let (mut state, now) = (PlacementState::new(Tuning::default()), Instant::now());
        assert!(state.begin_search(now));
        state.found(now, found(Kind::Scope, Retry::Never));
        pass(&mut state, now, &Report::default());
        assert!(!state.begin_search(now + LONGEST_REPEAT));
        let elsewhere = Report {
            is_elsewhere: true,
            ..Report::default()
        };
        let mut pauses = Vec::new();
        for _ in 0..4 {
            pass(&mut state, now, &elsewhere);
            assert_eq!(errors(&state), [format!("no control groups: {ELSEWHERE}")]);
            assert_eq!(shown_unit(&state), None);
            let due = state.search_due().unwrap();
            pauses.push((due - now).as_secs());
            assert!(state.begin_search(due));
            let again = state.found(due, found(Kind::Scope, Retry::Never));
            assert!(again.is_other, "the pass without groups is repeated");
        }
        assert_eq!(pauses, [0, 1, 2, 4]);
        pass(&mut state, now, &Report::default());
        assert_eq!(errors(&state), Vec::<String>::new());
        pass(&mut state, now, &elsewhere);
        assert_eq!(state.search_due(), Some(now));
    }

    #[test]
    fn waits_for_an_absent_systemd_without_a_timer() {
        let (mut state, now) = (PlacementState::new(Tuning::default()), Instant::now());
        assert!(state.begin_search(now));
        let absent = state.found(now, found(Kind::None, Retry::WhenPresent));
        assert!(absent.awaits_units);
        assert_eq!(state.search_due(), None);
        assert!(!state.begin_search(now + LONGEST_REPEAT * 100));
        state.units_appeared(now);
        assert_eq!(state.search_due(), Some(now));
        assert!(state.begin_search(now));
        state.found(now, found(Kind::Scope, Retry::Never));
        state.units_appeared(now);
        assert!(!state.begin_search(now), "the unit is known");
    }

    #[test]
    fn a_pass_is_needed_for_other_threads_another_unit_and_a_review() {
        let (mut state, now) = (PlacementState::new(Tuning::default()), Instant::now());
        let mut one = inventory(4, &[(0, 10)]);
        let _ = one.trust_threads(crate::ids::Pid(1), Some);
        assert!(
            state.begin_pass(now, &one).is_some(),
            "pins do not wait for systemd"
        );
        assert_eq!(state.begin_pass(now, &one), None);
        assert!(state.begin_search(now));
        state.found(now, found(Kind::None, Retry::Later));
        assert!(state.begin_pass(now, &one).is_some());
        assert_eq!(state.begin_pass(now, &one), None);
        let mut two = inventory(4, &[(0, 10), (1, 11)]);
        let _ = two.trust_threads(crate::ids::Pid(1), Some);
        assert_eq!(state.begin_pass(now, &two).map(|t| t.len()), Some(2));
        assert_eq!(state.begin_pass(now, &two), None);
        state.found(now, found(Kind::Scope, Retry::Never));
        assert!(state.begin_pass(now, &two).is_some());
        let later = now + LONGEST_REPEAT * 100;
        assert_eq!(state.begin_pass(later, &two), None, "there is no timer");
        state.check_at_refresh();
        assert!(state.begin_pass(later, &two).is_some());

        state.found(now, UnitFound::default());
        assert_eq!(state.begin_pass(now, &two), None, "there is no placer");
    }

    #[test]
    fn the_values_to_restore_are_those_of_the_last_pass_of_a_thread() {
        let (mut state, now) = (PlacementState::new(Tuning::default()), Instant::now());
        let changed = |thread| ChangedThread {
            thread: Tid(thread),
            affinity: true,
            ..ChangedThread::default()
        };
        let of = |changed: Option<ChangedThread>| {
            let outcome = Outcome {
                changed,
                ..Outcome::default()
            };
            Report {
                vcpus: [(VcpuId(1), Box::new(outcome))].into(),
                ..Report::default()
            }
        };
        let mut two = inventory(4, &[(0, 10), (1, 11)]);
        let _ = two.trust_threads(crate::ids::Pid(1), Some);
        state.restore_changed([(VcpuId(0), changed(10)), (VcpuId(1), changed(99))].into());
        assert!(state.begin_pass(now, &two).is_some());
        // The pass failed. Thread 99 is not there any more.
        assert!(state.placed(now, &Report::default()));
        assert_eq!(*state.changed(), [(VcpuId(0), changed(10))].into());
        assert!(state.placed(now, &of(Some(changed(11)))));
        assert_eq!(state.changed().len(), 2);
        assert!(!state.placed(now, &of(Some(changed(11)))));
        assert!(state.placed(now, &of(None)));
        assert_eq!(*state.changed(), [(VcpuId(0), changed(10))].into());
    }

    #[test]
    fn a_pass_that_failed_in_part_is_repeated_with_growing_pauses() {
        let (mut state, now) = (PlacementState::new(Tuning::default()), Instant::now());
        let lingering = Report {
            lingering: vec![VcpuId(1)],
            ..Report::default()
        };
        let mut pauses = Vec::new();
        assert!(state.begin_pass(now, &inventory(4, &[])).is_some());
        for _ in 0..6 {
            state.placed(now, &lingering);
            let due = state.pass_due().unwrap();
            pauses.push((due - now).as_secs());
        }
        assert_eq!(pauses, [5, 10, 20, 40, 60, 60]);
        state.placed(now, &Report::default());
        state.begin_pass(now + LONGEST_REPEAT, &inventory(4, &[]));
        assert_eq!(state.pass_due(), None);
        state.placed(now, &lingering);
        assert_eq!(state.pass_due(), Some(now + FIRST_REPEAT));
    }
}
