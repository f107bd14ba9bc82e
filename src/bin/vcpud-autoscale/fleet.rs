//! All machines that are scaled: their settings, histories and decisions. Pure: it must not call the service, and the
//! time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use vcpud::autoscale::{Bounds, Claim, Decision, History, Limits, Outcome, claim, decide, share};
use vcpud::names::MachineName;

use crate::counters::Reading;
use crate::holds::{Held, Holds};
use crate::settings::{Mode, Settings};
use crate::store::{Configuration, Origin};

/// The maximum number of requests at a time. A bus daemon lets a connection wait for 128 replies, and samples need some.
const MAX_REQUESTS: usize = 32;

/// The longest hold.
const MAX_HOLD: Duration = Duration::from_secs(24 * 60 * 60);

/// The properties of a machine that matter beside its counters.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Facts {
    pub(crate) state: vcpud::autoscale::MachineState,
    pub(crate) slot: u32,
    /// The PID of QEMU; 0 if it is not known.
    pub(crate) leader: u32,
    /// The numbers of vCPUs that signals reported since the last reading.
    pub(crate) counts: Vec<u32>,
    /// The highest vCPU with a pin of its own.
    pub(crate) highest_pinned: Option<u32>,
}

/// An action after a sample.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// The decision about a machine is another one.
    Tell(MachineName, Decision),
    /// The number of vCPUs is to be changed.
    Request {
        name: MachineName,
        from: u32,
        goal: u32,
        /// The option `until` of the request.
        until: &'static str,
    },
}

/// A machine that has settings.
#[derive(Debug)]
pub(crate) struct Scaled {
    pub(crate) settings: Settings,
    pub(crate) origin: Origin,
    history: History,
    /// The PID of the QEMU that the history is about; 0 if it is not known.
    leader: u32,
    /// A reading has told whether the service has the machine.
    pub(crate) is_sampled: bool,
    reading: Option<Reading>,
    facts: Option<Facts>,
    /// The limits, or what is wrong with them.
    pub(crate) limits: Option<Result<Limits, String>>,
    pub(crate) bounds: Bounds,
    pub(crate) decision: Option<Decision>,
    /// The error of the last request, if it failed.
    pub(crate) failure: Option<String>,
}

impl Scaled {
    fn new(settings: Settings, origin: Origin) -> Self {
        Self {
            settings,
            origin,
            history: History::new(),
            leader: 0,
            is_sampled: false,
            reading: None,
            facts: None,
            limits: None,
            bounds: Bounds::default(),
            decision: None,
            failure: None,
        }
    }

    fn mode(&self, defaults: &Settings) -> Mode {
        self.settings.over(defaults).mode()
    }

    /// Notes that the service does not have the machine. The pauses in its history stay, because it can come back.
    fn vanish(&mut self) {
        self.reading = None;
        self.facts = None;
        self.limits = None;
        self.bounds = Bounds::default();
        self.decision = None;
    }

    /// Returns the share of the machine on the host, if that limits it.
    pub(crate) fn cap(&self) -> Option<u32> {
        let max = self.limits()?.max;
        self.bounds.cap.filter(|cap| *cap < max)
    }

    /// Returns whether the service has the machine.
    pub(crate) fn is_known(&self) -> bool {
        self.facts.is_some()
    }

    /// Takes a reading that came at `now`.
    fn observe(&mut self, reading: Reading, facts: Facts, defaults: &Settings, now: Duration) {
        self.follow(facts.leader);
        if reading.max == 0 {
            // QEMU has not answered yet.
            self.vanish();
            self.facts = Some(facts);
            return;
        }
        self.history.note_counts(&facts.counts, now);
        let sample = reading.sample(self.reading.as_ref(), facts.state);
        self.history.observe(sample, now);
        self.limit(reading.max, facts.slot, defaults);
        let keeps_pinned = self.settings.over(defaults).keeps_pinned();
        let pinned = facts.highest_pinned.filter(|_| keeps_pinned);
        let floor = pinned.map_or(0, |vcpu| vcpu.saturating_add(1));
        self.bounds.floor = floor.min(reading.present);
        self.reading = Some(reading);
        self.facts = Some(facts);
    }

    /// Computes the limits of a machine that can have `max` vCPUs, in slots of `slot`.
    fn limit(&mut self, max: u32, slot: u32, defaults: &Settings) {
        let limits = self.settings.over(defaults).limits(max);
        let limits = limits.map(|limits| Limits { slot, ..limits });
        self.limits = Some(limits.map_err(|error| error.to_string()));
    }

    /// Begins a new history if the machine is another QEMU process.
    fn follow(&mut self, leader: u32) {
        if leader == 0 {
            return;
        }
        if self.leader != 0 && self.leader != leader {
            self.history = History::new();
            self.reading = None;
            self.failure = None;
        }
        self.leader = leader;
    }

    /// Returns the end of an addition: without evidence, the start cannot be awaited.
    fn until(&self) -> &'static str {
        let started = self.reading.as_ref().and_then(|reading| reading.started);
        started.map_or("present", |_| "started")
    }

    fn limits(&self) -> Option<&Limits> {
        self.limits.as_ref()?.as_ref().ok()
    }

    fn decide(&mut self, now: Duration) -> Option<Decision> {
        let limits = self.limits()?;
        Some(decide(&self.history, limits, self.bounds, now))
    }
}

/// The machines.
#[derive(Debug)]
pub(crate) struct Fleet {
    defaults: Settings,
    /// The number of host CPUs for all machines together.
    capacity: f64,
    /// The goals of the requests that the service has not answered. A machine that is disabled, or ends, and comes
    /// back has no second request in the meantime.
    pub(crate) requested: BTreeMap<MachineName, u32>,
    pub(crate) machines: BTreeMap<MachineName, Scaled>,
}

impl Fleet {
    pub(crate) fn new(capacity: f64) -> Self {
        Self {
            defaults: Settings::default(),
            capacity,
            requested: BTreeMap::new(),
            machines: BTreeMap::new(),
        }
    }

    /// Takes the configuration. A machine whose settings stay keeps its history.
    pub(crate) fn configure(&mut self, configuration: &Configuration, host_cpus: f64) {
        self.defaults = configuration.defaults.clone();
        self.capacity = configuration.host_cpus.unwrap_or(host_cpus);
        let known = |name: &MachineName| configuration.machines.contains_key(name);
        self.machines.retain(|name, _| known(name));
        for (name, (settings, origin)) in &configuration.machines {
            self.enable(name.clone(), settings.clone(), *origin);
        }
    }

    /// Sets the settings of a machine. Its history stays.
    pub(crate) fn enable(&mut self, name: MachineName, settings: Settings, origin: Origin) {
        match self.machines.get_mut(&name) {
            Some(machine) => {
                machine.settings = settings;
                machine.origin = origin;
            }
            None => {
                self.machines.insert(name, Scaled::new(settings, origin));
            }
        }
    }

    /// Returns the settings of a machine after a call that changes some of them.
    pub(crate) fn updated(&self, name: &MachineName, changed: &Settings) -> Settings {
        let none = Settings::default();
        let machine = self.machines.get(name);
        let present = machine.map_or(&none, |machine| &machine.settings);
        changed.updating(present, &self.defaults)
    }

    /// Takes the maximum number of vCPUs of a machine, so that its limits are known before the next reading.
    pub(crate) fn limit(&mut self, name: &MachineName, max: u32) {
        if let Some(machine) = self.machines.get_mut(name) {
            let slot = machine.facts.as_ref().map_or(1, |facts| facts.slot);
            machine.limit(max, slot, &self.defaults);
        }
    }

    /// Forgets a machine.
    pub(crate) fn disable(&mut self, name: &MachineName) {
        self.machines.remove(name);
    }

    /// Checks the settings of a call, together with the defaults. `max_vcpus` is the maximum of the machine, if it is
    /// known.
    ///
    /// # Errors
    /// The key and the reason.
    pub(crate) fn check(&self, settings: &Settings, max_vcpus: Option<u32>) -> Result<(), String> {
        if let Some(max) = max_vcpus {
            settings.fit(max)?;
        }
        settings.check_over(&self.defaults, max_vcpus.unwrap_or(u32::MAX))
    }

    /// Returns the last changes of the machines by other callers, as far as they can matter.
    pub(crate) fn holds(&self, now: Duration) -> Holds {
        let held = |(name, machine): (&MachineName, &Scaled)| {
            let at = machine.history.foreign_at()?;
            let leader = machine.leader;
            (now.saturating_sub(at) < MAX_HOLD).then(|| (name.clone(), Held { leader, at }))
        };
        self.machines.iter().filter_map(held).collect()
    }

    /// Takes the changes that a previous instance saw. They count for the same QEMU processes.
    pub(crate) fn restore(&mut self, holds: &Holds) {
        for (name, held) in holds {
            if let Some(machine) = self.machines.get_mut(name) {
                machine.leader = held.leader;
                machine.history.note_foreign_change(held.at);
            }
        }
    }

    /// Returns the mode of a machine.
    pub(crate) fn mode(&self, machine: &Scaled) -> Mode {
        machine.mode(&self.defaults)
    }

    /// Returns the machines whose mode is not "off".
    pub(crate) fn active(&self) -> impl Iterator<Item = &MachineName> {
        let is_active = |(_, machine): &(&MachineName, &Scaled)| self.mode(machine) != Mode::Off;
        self.machines.iter().filter(is_active).map(|(name, _)| name)
    }

    /// Takes the readings of all machines of the service, and decides.
    pub(crate) fn step(
        &mut self,
        now: Duration,
        mut readings: BTreeMap<MachineName, (Reading, Facts)>,
    ) -> Vec<Action> {
        for (name, machine) in &mut self.machines {
            machine.is_sampled = true;
            match readings.remove(name) {
                Some((reading, facts)) => machine.observe(reading, facts, &self.defaults, now),
                None => machine.vanish(),
            }
        }
        self.share();
        self.decide(now)
    }

    /// Divides the host CPUs between the machines.
    fn share(&mut self) {
        let defaults = &self.defaults;
        let is_active = |machine: &&mut Scaled| machine.mode(defaults) != Mode::Off;
        let machines = self.machines.values_mut().filter(is_active);
        let mut claims: Vec<Claim> = Vec::new();
        let mut claimants: Vec<&mut Scaled> = Vec::new();
        for machine in machines {
            machine.bounds.cap = None;
            let wanted = machine
                .limits()
                .and_then(|limits| claim(&machine.history, limits));
            if let Some(wanted) = wanted {
                claims.push(wanted);
                claimants.push(machine);
            }
        }
        let caps = share(self.capacity, &claims);
        for (machine, cap) in claimants.into_iter().zip(caps) {
            machine.bounds.cap = Some(cap);
        }
    }

    fn decide(&mut self, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        for (name, machine) in &mut self.machines {
            let mode = machine.mode(&self.defaults);
            if mode == Mode::Off {
                machine.decision = None;
                continue;
            }
            let Some(decision) = machine.decide(now) else {
                machine.decision = None;
                continue;
            };
            let told = machine.decision.replace(decision.clone());
            let is_same = told.is_some_and(|told| {
                told.goal == decision.goal && told.reason.code() == decision.reason.code()
            });
            if !is_same {
                actions.push(Action::Tell(name.clone(), decision.clone()));
            }
            let is_change = decision.direction().is_some();
            if mode == Mode::On
                && is_change
                && !self.requested.contains_key(name)
                && self.requested.len() < MAX_REQUESTS
            {
                if let Some(Ok(limits)) = &machine.limits {
                    machine.history.note_request(&decision, limits, now);
                }
                self.requested.insert(name.clone(), decision.goal);
                actions.push(Action::Request {
                    name: name.clone(),
                    from: decision.details.present,
                    goal: decision.goal,
                    until: machine.until(),
                });
            }
        }
        actions
    }

    /// Notes how a request ended.
    pub(crate) fn note_result(
        &mut self,
        name: &MachineName,
        result: Result<(), (Outcome, String)>,
        now: Duration,
    ) {
        self.requested.remove(name);
        let Some(machine) = self.machines.get_mut(name) else {
            return;
        };
        let outcome = match result {
            Ok(()) => {
                machine.failure = None;
                Outcome::Done
            }
            Err((outcome, text)) => {
                machine.failure = Some(text);
                outcome
            }
        };
        machine.history.note_result(outcome, now);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use vcpud::autoscale::MachineState;
    use zbus::{OwnedVariant, Variant};

    use super::*;

    /// Returns what the service says of a machine with one of four vCPUs.
    fn readings(seconds: u64) -> BTreeMap<MachineName, (Reading, Facts)> {
        let owned = |(key, value): (&str, Variant<'static>)| {
            (key.to_owned(), OwnedVariant::try_from(value).unwrap())
        };
        let machine = HashMap::from(
            [
                ("timestamp-usec", (seconds * 1_000_000).into()),
                ("vcpus", 1_u32.into()),
                ("max-vcpus", 4_u32.into()),
                ("started", 1_u32.into()),
            ]
            .map(owned),
        );
        let facts = Facts {
            state: MachineState::Running,
            slot: 1,
            leader: 1000,
            counts: Vec::new(),
            highest_pinned: None,
        };
        let reading = Reading::new(&(machine, Vec::new()));
        BTreeMap::from([("web".parse().unwrap(), (reading, facts))])
    }

    fn requests(actions: &[Action]) -> usize {
        let is_request = |action: &&Action| matches!(action, Action::Request { .. });
        actions.iter().filter(is_request).count()
    }

    #[test]
    fn pauses_end_with_the_qemu_process_and_not_with_a_missing_sample() {
        let mut fleet = Fleet::new(8.0);
        let name: MachineName = "web".parse().unwrap();
        let settings = Settings::parse("min = 2").unwrap();
        fleet.enable(name.clone(), settings, Origin::Call);
        let second = Duration::from_secs;
        assert_eq!(requests(&fleet.step(second(1), readings(1))), 1);
        let refused = Err((Outcome::Refused, "no memory".to_owned()));
        fleet.note_result(&name, refused, second(2));
        fleet.step(second(2), BTreeMap::new());
        assert_eq!(fleet.machines[&name].decision, None);
        assert_eq!(requests(&fleet.step(second(3), readings(3))), 0);
        let decision = fleet.machines[&name].decision.as_ref().unwrap();
        assert_eq!(decision.reason.code(), "failure-backoff");
        let mut other = readings(4);
        other.get_mut(&name).unwrap().1.leader = 1001;
        assert_eq!(requests(&fleet.step(second(4), other)), 1);
    }

    #[test]
    fn a_machine_whose_qemu_has_not_answered_has_no_decision_and_then_no_hold() {
        let mut fleet = Fleet::new(8.0);
        let name: MachineName = "web".parse().unwrap();
        fleet.enable(name.clone(), Settings::default(), Origin::Call);
        let mut unknown = readings(1);
        let (reading, _) = unknown.get_mut(&name).unwrap();
        (reading.max, reading.present) = (0, 0);
        fleet.step(Duration::from_secs(1), unknown);
        let row = crate::describe::row(&fleet, &fleet.machines[&name], None);
        let reason = "QEMU has not answered vcpud yet";
        assert_eq!(
            (&row["reason-code"], &row["reason"]),
            (&"no-data".into(), &reason.into())
        );
        fleet.step(Duration::from_secs(2), readings(2));
        assert_eq!(fleet.holds(Duration::from_secs(2)), Holds::new());
    }

    #[test]
    fn settings_of_a_call_fit_the_defaults_and_the_machine() {
        let mut fleet = Fleet::new(8.0);
        fleet.defaults = Settings::parse("max = 4").unwrap();
        let check = |text, max| fleet.check(&Settings::parse(text).unwrap(), max);
        assert_eq!(check("min = 4", None), Ok(()));
        assert_eq!(
            check("min = 5", Some(8)).unwrap_err(),
            "max must be at least min, with the keys of autoscale.toml"
        );
        assert_eq!(check("min = 5\nmax = 6", Some(8)), Ok(()));
        assert_eq!(
            check("max = 6", Some(5)).unwrap_err(),
            "max is 6, and the machine has at most 5 vCPUs"
        );
        assert_eq!(
            check("min = 6\nmax = 7", Some(1)).unwrap_err(),
            "min is 6, and the machine has at most 1 vCPU"
        );
        // The defaults are for machines of all sizes.
        assert_eq!(check("min = 1", Some(2)), Ok(()));
    }

    #[test]
    fn a_hold_survives_a_restart_and_not_another_qemu_process() {
        let name: MachineName = "web".parse().unwrap();
        let settings = Settings::parse("hold = \"1h\"").unwrap();
        let second = Duration::from_secs;
        let mut fleet = Fleet::new(8.0);
        fleet.enable(name.clone(), settings.clone(), Origin::Call);
        let mut changed = readings(1);
        changed.get_mut(&name).unwrap().1.counts = vec![3];
        fleet.step(second(1), readings(0));
        assert_eq!(fleet.holds(second(1)), Holds::new());
        fleet.step(second(2), changed);
        let holds = fleet.holds(second(2));
        for (leader, code) in [(1000, "hold"), (1001, "no-data")] {
            let mut fleet = Fleet::new(8.0);
            fleet.enable(name.clone(), settings.clone(), Origin::Call);
            fleet.restore(&holds);
            assert_eq!(fleet.holds(second(2)), holds);
            let mut readings = readings(9);
            readings.get_mut(&name).unwrap().1.leader = leader;
            fleet.step(second(9), readings);
            let decision = fleet.machines[&name].decision.as_ref().unwrap();
            assert_eq!(decision.reason.code(), code);
        }
        assert_eq!(fleet.holds(second(2) + MAX_HOLD), Holds::new());
    }

    #[test]
    fn a_machine_has_one_request_at_a_time_whatever_callers_do() {
        let mut fleet = Fleet::new(8.0);
        let name: MachineName = "web".parse().unwrap();
        let settings = Settings::parse("min = 2").unwrap();
        let step = |fleet: &mut Fleet, seconds| {
            fleet.step(Duration::from_secs(seconds), readings(seconds))
        };
        fleet.enable(name.clone(), settings.clone(), Origin::Call);
        assert_eq!(requests(&step(&mut fleet, 1)), 1);
        assert_eq!(requests(&step(&mut fleet, 2)), 0);
        // It is disabled and enabled again.
        fleet.configure(&Configuration::default(), 8.0);
        fleet.enable(name.clone(), settings, Origin::Call);
        assert_eq!(requests(&step(&mut fleet, 3)), 0);
        fleet.note_result(&name, Ok(()), Duration::from_secs(4));
        assert_eq!(requests(&step(&mut fleet, 5)), 1);
    }
}
