//! The rules of the policy, one test each, and its properties.

use std::time::Duration;

use proptest::prelude::*;

use super::simulation::{Policy, Trace, simulate};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A machine with 1 to 16 vCPUs, and a target of 0.8.
struct Machine {
    history: History,
    limits: Limits,
    bounds: Bounds,
    next: Sample,
    /// How far the clock of the samples is behind.
    behind: Duration,
}

impl Machine {
    fn new(present: u32) -> Self {
        let mut machine = Self {
            history: History::new(),
            limits: Limits {
                target: 0.8,
                ..Limits::new(1, 16)
            },
            bounds: Bounds::default(),
            next: Sample {
                at: 1000 * SECOND,
                present,
                started: Some(present),
                pending: 0,
                state: MachineState::Running,
                load: None,
            },
            behind: Duration::ZERO,
        };
        machine.push();
        machine
    }

    fn push(&mut self) {
        let at = self.next.at - self.behind;
        self.history
            .observe(Sample { at, ..self.next }, self.next.at);
        self.next.at += SECOND;
    }

    fn now(&self) -> Duration {
        self.next.at - SECOND
    }

    /// Adds samples with this use for a number of seconds.
    fn used(&mut self, used: f64, seconds: u32) -> &mut Self {
        self.load(used, 0.0, seconds)
    }

    fn load(&mut self, used: f64, stolen: f64, seconds: u32) -> &mut Self {
        self.next.load = Some(Load {
            used,
            stolen,
            throttled: 0.0,
        });
        (0..seconds).for_each(|_| self.push());
        self
    }

    /// Sets the number of present vCPUs from the next sample on.
    fn present(&mut self, present: u32) -> &mut Self {
        self.next.present = present;
        self.next.started = Some(present);
        self
    }

    fn decide(&self) -> Decision {
        decide(&self.history, &self.limits, self.bounds, self.now())
    }

    /// Returns the goal and the code of the reason.
    fn goal(&self) -> (u32, &'static str) {
        let decision = self.decide();
        (decision.goal, decision.reason.code())
    }

    /// Makes the request of the decision.
    fn request(&mut self) -> Decision {
        let decision = self.decide();
        let now = self.now();
        self.history.note_request(&decision, &self.limits, now);
        decision
    }

    fn result(&mut self, outcome: Outcome) -> &mut Self {
        let now = self.now();
        self.history.note_result(outcome, now);
        self
    }

    /// Makes the request of the decision, with success.
    fn apply(&mut self) -> u32 {
        let goal = self.request().goal;
        self.result(Outcome::Done).present(goal);
        goal
    }
}

#[test]
fn a_saturated_machine_doubles() {
    let mut machine = Machine::new(4);
    assert_eq!(machine.used(4.0, 3).goal(), (8, "saturated"));
}

#[test]
fn a_busy_machine_gets_what_its_load_needs() {
    let mut machine = Machine::new(8);
    assert_eq!(machine.used(7.3, 3).goal(), (10, "busy"));
    assert_eq!(
        machine.decide().reason.to_string(),
        "the vCPUs are 91 % busy; the load needs 9.1 vCPUs"
    );
}

#[test]
fn the_up_window_must_be_complete() {
    let mut machine = Machine::new(4);
    assert_eq!(machine.used(4.0, 2).goal(), (4, "no-data"));
    machine.used(4.0, 1);
    assert_eq!(machine.goal(), (8, "saturated"));
    machine.next.load = None;
    machine.push();
    assert_eq!(machine.used(4.0, 2).goal(), (4, "no-data"));
    assert_eq!(machine.used(4.0, 1).goal(), (8, "saturated"));
}

#[test]
fn the_texts_have_no_times_that_contradict_themselves() {
    let mut machine = Machine::new(4);
    let used = Some(Load::default());
    for _ in 0..2 {
        machine.next.load = used;
        machine.next.at += Duration::from_millis(480);
        machine.push();
    }
    assert_eq!(
        machine.decide().reason.to_string(),
        "complete data is needed for 3 s, and there is only 2 s"
    );
    let remaining = Duration::from_millis(300);
    let text = Reason::Hold { remaining }.to_string();
    assert!(text.ends_with("stays for 1 s"), "{text}");
}

#[test]
fn a_step_has_a_maximum() {
    let mut machine = Machine::new(4);
    machine.limits.step_up = 2;
    assert_eq!(machine.used(4.0, 3).goal(), (6, "saturated"));
    let mut machine = Machine::new(16);
    machine.limits.step_down = 3;
    assert_eq!(machine.used(1.0, 60).goal(), (13, "idle"));
}

#[test]
fn the_limits_hold() {
    let mut machine = Machine::new(12);
    assert_eq!(machine.used(12.0, 3).goal(), (16, "saturated"));
    let mut machine = Machine::new(16);
    assert_eq!(machine.used(16.0, 3).goal(), (16, "at-max"));
    let mut machine = Machine::new(4);
    machine.limits.min = 4;
    assert_eq!(machine.used(0.1, 60).goal(), (4, "at-min"));
    let mut machine = Machine::new(6);
    machine.bounds.floor = 5;
    assert_eq!(machine.used(0.1, 60).goal(), (5, "idle"));
    let mut machine = Machine::new(5);
    machine.bounds.floor = 5;
    assert_eq!(machine.used(0.1, 60).goal(), (5, "pinned"));
}

#[test]
fn changes_have_whole_slots() {
    let slots = |present, min, max| {
        let mut machine = Machine::new(present);
        machine.limits = Limits {
            min,
            max,
            slot: 2,
            ..machine.limits
        };
        machine
    };
    // A step of less than a slot is a slot.
    let mut machine = slots(8, 1, 16);
    (machine.limits.step_up, machine.limits.step_down) = (1, 1);
    assert_eq!(machine.used(8.0, 3).goal(), (10, "saturated"));
    assert_eq!(machine.used(1.0, 45).goal(), (6, "idle"));
    // An odd limit is not crossed.
    assert_eq!(slots(4, 1, 7).used(4.0, 3).goal(), (6, "saturated"));
    assert_eq!(slots(8, 1, 5).used(4.0, 3).goal(), (4, "above-max"));
    assert_eq!(slots(2, 3, 8).used(0.1, 3).goal(), (4, "below-min"));
    assert_eq!(slots(8, 3, 8).used(0.1, 45).goal(), (4, "idle"));
    let mut machine = slots(4, 1, 16);
    machine.bounds.cap = Some(5);
    assert_eq!(machine.used(4.0, 3).goal(), (4, "at-cap"));
    // A part of a slot is no gain.
    assert_eq!(slots(4, 1, 8).used(2.3, 180).goal(), (4, "in-band"));
    assert_eq!(slots(4, 1, 8).load(2.9, 1.1, 20).goal(), (4, "steal"));
}

#[test]
fn limits_without_room_for_a_slot_are_the_reason() {
    let machine = |present, min, max, used| {
        let mut machine = Machine::new(present);
        machine.limits = Limits {
            min,
            max,
            slot: 2,
            ..machine.limits
        };
        machine.used(used, 45);
        assert_eq!(machine.goal(), (present, "slot-size"));
        machine.decide().reason.to_string()
    };
    assert_eq!(
        machine(4, 1, 5, 4.0),
        "the vCPUs are added in slots of 2, and one more slot exceeds the maximum of 5"
    );
    assert_eq!(
        machine(4, 3, 8, 0.1),
        "the vCPUs are removed in slots of 2, and one slot fewer is below the minimum of 3"
    );
    machine(2, 3, 3, 0.1);
    machine(4, 3, 3, 0.1);
}

#[test]
fn a_machine_outside_its_limits_moves_there() {
    let mut machine = Machine::new(2);
    machine.limits.min = 4;
    assert_eq!(machine.used(0.1, 3).goal(), (4, "below-min"));
    let mut machine = Machine::new(16);
    machine.limits.max = 8;
    assert_eq!(machine.used(16.0, 3).goal(), (8, "above-max"));
    machine.bounds.floor = 10;
    assert_eq!(machine.goal(), (10, "above-max"));
}

#[test]
fn the_highest_load_of_the_down_window_decides() {
    let mut machine = Machine::new(8);
    machine.used(1.0, 10).used(3.9, 1).used(1.0, 44);
    assert_eq!(machine.goal(), (5, "idle"));
    assert_eq!(machine.used(1.0, 1).goal(), (2, "idle"));
    let mut machine = Machine::new(8);
    assert_eq!(machine.used(1.0, 44).goal(), (8, "no-data"));
    assert_eq!(machine.used(1.0, 1).goal(), (2, "idle"));
}

#[test]
fn a_small_gain_needs_a_longer_window() {
    let mut machine = Machine::new(8);
    assert_eq!(machine.used(5.5, 179).goal(), (8, "in-band"));
    assert_eq!(machine.used(5.5, 1).goal(), (7, "idle"));
}

#[test]
fn no_window_is_longer_than_8_minutes() {
    let mut machine = Machine::new(8);
    machine.limits.down_window = 300 * SECOND;
    machine.used(1.0, 300);
    machine.apply();
    machine.used(2.0, 4);
    machine.apply();
    machine.used(1.0, 1).used(0.1, 479);
    assert_eq!(machine.goal(), (2, "idle"));
    machine.used(0.1, 1);
    assert_eq!(machine.goal(), (1, "idle"));
}

#[test]
fn after_an_addition_the_down_window_begins_again() {
    let mut machine = Machine::new(4);
    machine.used(4.0, 100);
    machine.apply();
    machine.used(1.0, 45);
    assert_eq!(
        machine.decide().reason.to_string(),
        "complete data is needed for 45 s, and there is only 44 s"
    );
    machine.used(1.0, 1);
    assert_eq!(machine.goal(), (2, "idle"));
}

#[test]
fn a_removal_that_was_a_mistake_makes_the_window_longer() {
    let mut machine = Machine::new(8);
    machine.used(1.0, 45);
    assert_eq!(machine.apply(), 2);
    machine.used(2.0, 4);
    assert_eq!(machine.apply(), 4);
    machine.used(1.0, 89);
    assert_eq!(machine.goal(), (3, "idle"));
    machine.used(1.0, 1);
    let decision = machine.decide();
    assert_eq!((decision.goal, decision.reason.code()), (2, "idle"));
    assert_eq!(
        decision.reason.to_string(),
        "the highest load of the last 90 s needs 1.2 vCPUs"
    );
}

#[test]
fn no_addition_on_a_contended_host() {
    let mut machine = Machine::new(8);
    assert_eq!(machine.load(6.0, 2.0, 3).goal(), (8, "steal"));
    machine.load(8.0, 0.0, 2);
    assert_eq!(machine.goal(), (8, "steal"));
    machine.load(8.0, 0.0, 1);
    assert_eq!(machine.goal(), (16, "saturated"));
    // An administrator has set the minimum whatever the host supplies.
    let mut machine = Machine::new(2);
    machine.limits.min = 4;
    assert_eq!(machine.load(0.1, 0.1, 3).goal(), (4, "below-min"));
}

#[test]
fn lasting_contention_leads_to_what_the_host_supplies() {
    let mut machine = Machine::new(8);
    assert_eq!(machine.load(4.5, 3.5, 19).goal(), (8, "steal"));
    assert_eq!(machine.load(4.5, 3.5, 1).goal(), (5, "contended"));
    let mut machine = Machine::new(8);
    machine
        .load(4.5, 3.5, 10)
        .load(7.5, 0.5, 1)
        .load(4.5, 3.5, 18);
    assert_eq!(machine.goal(), (8, "steal"));
}

#[test]
fn a_machine_keeps_its_share_of_a_contended_host_for_longer() {
    let mut machine = Machine::new(8);
    machine.bounds.cap = Some(6);
    assert_eq!(machine.load(4.0, 4.0, 20).goal(), (6, "contended"));
    machine.bounds.cap = Some(8);
    assert_eq!(machine.load(4.0, 4.0, 39).goal(), (8, "steal"));
    assert_eq!(machine.load(4.0, 4.0, 1).goal(), (4, "contended"));
}

#[test]
fn a_cap_that_is_the_maximum_is_no_share() {
    let mut machine = Machine::new(8);
    machine.bounds.cap = Some(16);
    assert_eq!(machine.load(4.0, 4.0, 20).goal(), (4, "contended"));
}

#[test]
fn after_a_removal_because_of_contention_the_next_one_waits() {
    let mut machine = Machine::new(8);
    machine.load(6.0, 2.0, 20);
    assert_eq!(machine.apply(), 6);
    machine.load(3.0, 3.0, 29);
    assert_eq!(machine.goal(), (6, "contention-backoff"));
    machine.load(3.0, 3.0, 1);
    assert_eq!(machine.goal(), (3, "contended"));
    // The time begins with the change.
    let mut machine = Machine::new(8);
    machine.bounds.cap = Some(8);
    machine.load(4.0, 4.0, 60);
    assert_eq!(machine.apply(), 4);
    machine.load(2.0, 2.0, 60);
    assert_eq!(machine.goal(), (4, "steal"));
    machine.load(2.0, 2.0, 1);
    assert_eq!(machine.goal(), (2, "contended"));
}

#[test]
fn throttling_prevents_additions_and_removes_nothing() {
    let mut machine = Machine::new(8);
    machine.next.load = Some(Load {
        used: 4.0,
        stolen: 0.0,
        throttled: 4.0,
    });
    (0..100).for_each(|_| machine.push());
    assert_eq!(machine.goal(), (8, "steal"));
}

#[test]
fn after_contention_a_few_vcpus_are_a_probe() {
    let mut machine = Machine::new(12);
    machine.load(8.0, 4.0, 20);
    assert_eq!(machine.apply(), 8);
    machine.used(8.0, 29);
    assert_eq!(machine.goal(), (8, "contention-backoff"));
    machine.used(8.0, 1);
    assert_eq!(machine.goal(), (9, "probe"));
    // The host is still full.
    machine.apply();
    machine.load(8.0, 1.0, 21);
    assert_eq!(machine.goal(), (8, "contended"));
    machine.apply();
    machine.used(8.0, 59);
    assert_eq!(machine.goal(), (8, "contention-backoff"));
    machine.used(8.0, 1);
    assert_eq!(machine.goal(), (9, "probe"));
    // The host has free CPUs: each good addition takes one failure back.
    machine.apply();
    machine.used(9.0, 11);
    assert_eq!(machine.decide().reason, Reason::Probe { failures: 1 });
    machine.apply();
    machine.used(11.0, 11);
    assert_eq!(machine.goal(), (16, "saturated"));
}

#[test]
fn the_cap_limits_additions_only() {
    let mut machine = Machine::new(4);
    machine.bounds.cap = Some(5);
    assert_eq!(machine.used(4.0, 3).goal(), (5, "saturated"));
    machine.bounds.cap = Some(3);
    assert_eq!(machine.goal(), (4, "at-cap"));
    machine.bounds.cap = Some(8);
    machine.limits.max = 6;
    assert_eq!(machine.goal(), (6, "saturated"));
}

#[test]
fn nothing_changes_while_the_guest_is_not_ready() {
    let mut machine = Machine::new(4);
    machine.used(4.0, 3);
    machine.next.started = Some(3);
    assert_eq!(machine.used(4.0, 1).goal(), (4, "not-started"));
    machine.next.started = None;
    assert_eq!(machine.used(4.0, 1).goal(), (8, "saturated"));
    machine.next.pending = 1;
    assert_eq!(machine.used(4.0, 1).goal(), (4, "removal-pending"));
    machine.next.pending = 0;
    for state in [
        MachineState::Starting,
        MachineState::Paused,
        MachineState::Migrating,
        MachineState::Disconnected,
    ] {
        machine.next.state = state;
        assert_eq!(machine.used(4.0, 1).goal(), (4, "not-running"));
    }
    // The load of that time does not count.
    machine.next.state = MachineState::Running;
    assert_eq!(machine.used(4.0, 2).goal(), (4, "no-data"));
}

#[test]
fn vcpus_that_never_start_are_given_back() {
    let mut machine = Machine::new(4);
    machine.used(4.0, 3);
    assert_eq!(machine.apply(), 8);
    machine.next.started = Some(4);
    machine.used(4.0, 200);
    // A start is progress.
    machine.next.started = Some(5);
    assert_eq!(machine.used(5.0, 300).goal(), (8, "not-started"));
    // So is a pause of the guest, which starts nothing.
    machine.next.state = MachineState::Paused;
    machine.used(0.0, 1);
    machine.next.state = MachineState::Running;
    assert_eq!(machine.used(5.0, 300).goal(), (8, "not-started"));
    assert_eq!(machine.used(5.0, 1).goal(), (5, "never-started"));
    assert_eq!(
        machine.decide().reason.to_string(),
        "the guest has not started 3 vCPUs for 300 s"
    );
    machine.apply();
    assert_eq!(machine.used(5.0, 29).goal(), (5, "failure-backoff"));
    assert_eq!(machine.used(5.0, 1).goal(), (10, "saturated"));
}

#[test]
fn vcpus_that_never_start_stay_within_the_limits() {
    let mut machine = Machine::new(8);
    machine.limits.min = 6;
    machine.next.started = Some(4);
    assert_eq!(machine.used(1.0, 301).goal(), (6, "never-started"));
    machine.next.present = 6;
    assert_eq!(machine.used(1.0, 5).goal(), (6, "not-started"));
    machine.limits.hold = Duration::ZERO;
    assert_eq!(machine.used(1.0, 400).goal(), (6, "not-started"));
}

#[test]
fn one_request_at_a_time() {
    let mut machine = Machine::new(4);
    machine.used(4.0, 3).request();
    assert_eq!(machine.used(4.0, 1).goal(), (4, "requested"));
    machine.result(Outcome::Done);
    assert_eq!(machine.goal(), (8, "saturated"));
}

#[test]
fn failures_lead_to_pauses_of_their_direction() {
    let mut machine = Machine::new(8);
    machine.used(1.0, 45).request();
    machine.result(Outcome::Refused);
    assert_eq!(machine.used(1.0, 29).goal(), (8, "failure-backoff"));
    assert_eq!(machine.used(1.0, 1).goal(), (2, "idle"));
    machine.request();
    machine.result(Outcome::TimedOut);
    assert_eq!(machine.used(1.0, 59).goal(), (8, "failure-backoff"));
    // The other direction is free.
    assert_eq!(machine.used(8.0, 3).goal(), (16, "saturated"));
    machine.request();
    machine.result(Outcome::Refused);
    assert_eq!(machine.used(8.0, 1).goal(), (8, "failure-backoff"));
}

#[test]
fn a_change_by_another_caller_stays() {
    let mut machine = Machine::new(4);
    machine.used(1.0, 60).present(12).used(1.0, 300);
    assert_eq!(machine.goal(), (12, "hold"));
    assert_eq!(machine.used(1.0, 1).goal(), (2, "idle"));
}

#[test]
fn a_change_between_two_samples_stays() {
    let mut machine = Machine::new(4);
    machine.used(4.0, 3);
    let now = machine.now();
    machine.history.note_counts(&[4], now);
    assert_eq!(machine.request().goal, 8);
    // Numbers on the way of a request, also after the sample that has a later one.
    machine.history.note_counts(&[5, 6, 7, 8, 5], now);
    machine.result(Outcome::Done).present(8).used(8.0, 4);
    assert_eq!(machine.goal(), (16, "saturated"));
    let now = machine.now();
    machine.history.note_counts(&[3, 8], now);
    assert_eq!(machine.used(8.0, 1).goal(), (8, "hold"));
}

#[test]
fn a_late_removal_is_explained_by_its_request() {
    let mut machine = Machine::new(8);
    machine.used(1.0, 45).request();
    machine.next.pending = 6;
    machine.used(1.0, 60);
    machine.result(Outcome::TimedOut).used(1.0, 60);
    machine.next.pending = 0;
    machine.present(2).used(1.0, 4);
    assert_eq!(machine.goal(), (2, "in-band"));
    // A further change is not.
    machine.present(1).used(1.0, 4);
    assert_eq!(machine.goal(), (1, "hold"));
}

#[test]
fn a_gap_begins_the_windows_again() {
    let mut machine = Machine::new(8);
    machine.used(1.0, 60);
    machine.next.at += 4 * SECOND;
    assert_eq!(machine.used(1.0, 1).goal(), (2, "idle"));
    machine.next.at += 5 * SECOND;
    assert_eq!(machine.used(1.0, 1).goal(), (8, "no-data"));
    assert_eq!(machine.used(8.0, 2).goal(), (8, "no-data"));
    assert_eq!(machine.used(8.0, 1).goal(), (16, "saturated"));
}

#[test]
fn an_old_sample_leads_to_no_change() {
    let mut machine = Machine::new(4);
    machine.used(4.0, 3);
    let later = machine.now() + 6 * SECOND;
    let decision = decide(&machine.history, &machine.limits, machine.bounds, later);
    assert_eq!((decision.goal, decision.reason.code()), (4, "stale"));
}

#[test]
fn a_clock_that_goes_back_begins_the_history_again() {
    let mut machine = Machine::new(4);
    machine.used(4.0, 3);
    let last = *machine.history.last().unwrap();
    // The same time again.
    let present = 8;
    machine.history.push(Sample { present, ..last });
    assert_eq!(machine.history.last(), Some(&last));
    assert_eq!(machine.goal(), (8, "saturated"));
    machine.next.at = SECOND;
    assert_eq!(machine.used(4.0, 3).goal(), (4, "no-data"));
    assert_eq!(machine.used(4.0, 1).goal(), (8, "saturated"));
}

#[test]
fn pauses_survive_a_clock_that_goes_back() {
    // A refused removal.
    let mut machine = Machine::new(8);
    machine.used(1.0, 45).request();
    machine.result(Outcome::Refused);
    machine.request();
    machine.result(Outcome::Refused);
    machine.behind = 500 * SECOND;
    assert_eq!(machine.used(1.0, 46).goal(), (8, "failure-backoff"));
    assert_eq!(machine.used(1.0, 14).goal(), (2, "idle"));
    // A number that another caller set, also while the clock goes back.
    let mut machine = Machine::new(4);
    machine.used(1.0, 60).present(12).used(1.0, 10);
    machine.behind = 500 * SECOND;
    assert_eq!(machine.used(1.0, 290).goal(), (12, "hold"));
    assert_eq!(machine.used(1.0, 1).goal(), (2, "idle"));
    machine.behind = 600 * SECOND;
    assert_eq!(machine.present(8).used(1.0, 60).goal(), (8, "hold"));
}

#[test]
fn the_clock_of_the_samples_can_be_another_one() {
    for behind in [0, 900] {
        let mut machine = Machine::new(8);
        machine.history = History::new();
        machine.behind = behind * SECOND;
        machine.used(4.5, 1).load(4.5, 3.5, 20);
        assert_eq!(machine.apply(), 5);
        assert_eq!(machine.used(5.0, 4).goal(), (5, "contention-backoff"));
    }
}

#[test]
fn an_empty_history_leads_to_no_change() {
    let decision = decide(
        &History::new(),
        &Limits::new(1, 4),
        Bounds::default(),
        SECOND,
    );
    assert_eq!(decision.direction(), None);
    assert_eq!(decision.reason.code(), "no-data");
}

#[test]
fn the_claim_of_a_saturated_machine_is_higher_than_its_use() {
    let mut machine = Machine::new(4);
    machine.used(2.0, 3);
    assert_eq!(
        claim(&machine.history, &machine.limits).unwrap().demand,
        2.0
    );
    machine.load(3.0, 1.0, 3);
    assert_eq!(
        claim(&machine.history, &machine.limits).unwrap().demand,
        8.0
    );
    machine.limits.max = 6;
    assert_eq!(
        claim(&machine.history, &machine.limits).unwrap().demand,
        6.0
    );
}

/// Any load of a machine with up to 16 vCPUs, as a list of used and stolen CPU time.
fn loads() -> impl Strategy<Value = Vec<(f64, f64)>> {
    prop::collection::vec((0.0..=1.0, 0.0..=0.5), 1..120)
}

fn run_loads(machine: &mut Machine, loads: &[(f64, f64)]) {
    let present = f64::from(machine.next.present);
    for &(wanted, stolen) in loads {
        let wanted = wanted * present;
        machine.load(wanted * (1.0 - stolen), wanted * stolen, 1);
    }
}

/// Any number, often an extreme one.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(2),
        Just(u32::MAX - 1),
        Just(u32::MAX),
        any::<u32>()
    ]
}

proptest! {
    #[test]
    fn no_limit_is_too_extreme(
        present in number(), a in number(), b in number(), steps in (number(), number()),
        slot in number(), floor in number(), cap in prop::option::of(number()), use_of_each in 0.0..1.2,
        is_probe: bool,
    ) {
        let mut machine = Machine::new(present);
        let (min, max) = (a.min(b), a.max(b));
        let (step_up, step_down) = steps;
        machine.limits = Limits { step_up, step_down, slot, ..Limits::new(min, max) };
        machine.bounds = Bounds { floor, cap };
        let all = f64::from(present);
        if is_probe {
            machine.load(all * 0.7, all * 0.3, 60);
            machine.request();
            machine.result(Outcome::Done);
        }
        machine.used(all * use_of_each, 60);
        let goal = machine.decide().goal;
        prop_assert!((min.min(present)..=max.max(present)).contains(&goal));
        prop_assert_eq!(goal.abs_diff(present) % slot.max(1), 0);
        prop_assert!(claim(&machine.history, &machine.limits).is_some());
    }

    #[test]
    fn the_goal_is_within_the_limits(
        present in 1u32..20, min in 1u32..8, more in 0u32..12, loads in loads(),
        cap in prop::option::of(1u32..20), floor in 0u32..20,
    ) {
        let mut machine = Machine::new(present);
        machine.limits = Limits::new(min, min + more);
        machine.bounds = Bounds { floor, cap };
        run_loads(&mut machine, &loads);
        let goal = machine.decide().goal;
        prop_assert!((min.min(present)..=(min + more).max(present)).contains(&goal));
        prop_assert!(goal >= floor.min(present));
    }

    #[test]
    fn never_an_addition_while_contended(
        present in 1u32..16, loads in loads(), stolen in 0.11f64..1.0, min in 1u32..8,
    ) {
        let mut machine = Machine::new(present);
        machine.limits.min = min.min(present);
        run_loads(&mut machine, &loads);
        let all = f64::from(present);
        machine.load(all * (1.0 - stolen), all * stolen, 1);
        prop_assert!(machine.decide().goal <= present);
    }

    #[test]
    fn no_change_within_the_dead_band(
        present in 1u32..16, parts in prop::collection::vec(0.001f64..0.999, 60..400),
    ) {
        let mut machine = Machine::new(present);
        let low = 0.8 * f64::from(present - 1);
        let high = 0.9 * f64::from(present);
        for part in parts {
            machine.used(low + part * (high - low), 1);
            prop_assert_eq!(machine.decide().goal, present);
        }
    }

    #[test]
    fn a_higher_load_never_leads_to_fewer_vcpus(
        present in 1u32..16, loads in loads(), more in 1.0f64..3.0, is_probe: bool,
    ) {
        let goal = |factor: f64| {
            let mut machine = Machine::new(12);
            if is_probe {
                machine.load(8.0, 4.0, 20);
                machine.apply();
                machine.used(1.0, 60);
            }
            machine.limits.hold = Duration::ZERO;
            machine.present(present);
            for (used, _) in &loads {
                machine.used((used * factor).min(1.0) * f64::from(present), 1);
            }
            machine.decide().goal
        };
        prop_assert!(goal(more) >= goal(1.0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The changes of a constant load end. On a full host, probes go on, and become rare.
    #[test]
    fn a_constant_load_leads_to_a_constant_number(
        demands in prop::collection::vec(0.0f64..20.0, 1..4), host in 2.0f64..40.0,
        min in 1u32..4, more in 0u32..16, target in 0.5f64..0.95,
    ) {
        let columns: String = (0..demands.len()).map(|index| format!(",m{index}")).collect();
        let values: String = demands.iter().map(|demand| format!(",{demand}")).collect();
        let text = format!("time,host{columns}\n0,{host}{values}\n7200,{host}{values}\n");
        let trace = Trace::parse(text.as_bytes()).unwrap();
        let limits = Limits { target, ..Limits::new(min, min + more) };
        let report = simulate(&trace, Policy::Vcpud, &limits);
        let changes = report.decisions.iter().filter(|choice| choice.from != choice.to);
        let last: Vec<_> = changes.filter(|choice| choice.at > 3600).collect();
        let most = if demands.iter().sum::<f64>() < host { 0 } else { 30 * demands.len() };
        prop_assert!(last.len() <= most, "{last:#?}");
        prop_assert_eq!(report.score.contended, 0);
    }
}
