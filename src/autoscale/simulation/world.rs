//! The simulated host and machines. It must not know the policies.

use super::super::sample::Load;

/// How many seconds the guest takes to start added vCPUs.
const START_TIME: u64 = 1;
/// How many seconds the guest takes to release vCPUs, or to refuse.
const REMOVAL_TIME: u64 = 2;
/// The kernel updates the load average at this interval in seconds, and weights it for one minute.
const LOAD_INTERVAL: u64 = 5;
const LOAD_MINUTE: f64 = 60.0;

/// A machine.
#[derive(Clone, Debug)]
pub(super) struct Virtual {
    /// The number of present vCPUs.
    pub(super) present: u32,
    /// The number of vCPUs that the guest has started.
    pub(super) started: u32,
    /// The number of host CPUs that the guest wants.
    pub(super) demand: f64,
    /// The CPU time of the last second.
    pub(super) load: Load,
    /// The load average of the guest over one minute.
    pub(super) load_average: f64,
    starts_at: u64,
    removal: Option<(u32, u64)>,
}

impl Virtual {
    pub(super) fn new(present: u32) -> Self {
        Self {
            present,
            started: present,
            demand: 0.0,
            load: Load::default(),
            load_average: 0.0,
            starts_at: 0,
            removal: None,
        }
    }

    /// Returns the number of vCPUs whose removal is pending.
    pub(super) fn pending(&self) -> u32 {
        self.removal.map_or(0, |(goal, _)| self.present - goal)
    }

    /// Begins to set the number of vCPUs.
    pub(super) fn request(&mut self, goal: u32, now: u64) {
        if goal >= self.present {
            self.present = goal;
            self.starts_at = now + START_TIME;
        } else {
            self.removal = Some((goal, now + REMOVAL_TIME));
        }
    }

    /// Returns whether a removal that ends now is successful.
    pub(super) fn end_removal(&mut self, refuses: bool, now: u64) -> Option<bool> {
        let (goal, _) = self.removal.filter(|(_, end)| *end <= now)?;
        self.removal = None;
        if !refuses {
            self.present = goal;
            self.started = self.started.min(goal);
        }
        Some(!refuses)
    }

    /// Starts vCPUs, and returns how many CPUs the guest can use at most now.
    fn start(&mut self, boots: bool, now: u64) -> f64 {
        if boots {
            self.started = 1;
        } else if now >= self.starts_at {
            self.started = self.present;
        }
        self.demand.min(f64::from(self.started))
    }
}

/// Runs all machines for one second. Each busy vCPU gets the same part of the host.
pub(super) fn run(machines: &mut [Virtual], host: f64, boots: bool, now: u64) {
    let wanted = machines.iter_mut().map(|machine| machine.start(boots, now));
    let wanted: Vec<f64> = wanted.collect();
    let all: f64 = wanted.iter().sum();
    let part = if all > host { host / all } else { 1.0 };
    for (machine, wanted) in machines.iter_mut().zip(wanted) {
        let used = wanted * part;
        machine.load = Load {
            used,
            stolen: wanted - used,
            throttled: 0.0,
        };
        if now.is_multiple_of(LOAD_INTERVAL) {
            #[expect(clippy::cast_precision_loss, reason = "a few seconds")]
            let keep = (-(LOAD_INTERVAL as f64) / LOAD_MINUTE).exp();
            machine.load_average = machine.load_average * keep + machine.demand * (1.0 - keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(present: u32, demand: f64) -> Virtual {
        let mut machine = Virtual::new(present);
        machine.demand = demand;
        machine
    }

    #[test]
    fn each_busy_vcpu_gets_the_same_part_of_the_host() {
        let mut machines = [machine(6, 9.0), machine(4, 2.0)];
        run(&mut machines, 4.0, false, 1);
        assert_eq!(machines.each_ref().map(|one| one.load.used), [3.0, 1.0]);
        assert_eq!(machines.each_ref().map(|one| one.load.stolen), [3.0, 1.0]);
        run(&mut machines, 16.0, false, 2);
        assert_eq!(machines.each_ref().map(|one| one.load.used), [6.0, 2.0]);
    }

    #[test]
    fn added_vcpus_start_later() {
        let mut machines = [machine(1, 4.0)];
        machines[0].request(3, 10);
        run(&mut machines, 8.0, false, 10);
        assert_eq!((machines[0].present, machines[0].started), (3, 1));
        run(&mut machines, 8.0, false, 11);
        assert_eq!((machines[0].started, machines[0].load.used), (3, 3.0));
    }

    #[test]
    fn a_removal_takes_time_and_can_be_refused() {
        let mut machine = machine(4, 1.0);
        machine.request(2, 10);
        assert_eq!((machine.present, machine.pending()), (4, 2));
        assert_eq!(machine.end_removal(false, 11), None);
        assert_eq!(machine.end_removal(true, 12), Some(false));
        assert_eq!((machine.present, machine.pending()), (4, 0));
        machine.request(2, 13);
        assert_eq!(machine.end_removal(false, 15), Some(true));
        assert_eq!((machine.present, machine.started), (2, 2));
    }

    #[test]
    fn the_load_average_has_63_percent_after_a_minute() {
        let mut machines = [machine(1, 10.0)];
        for now in 1..=60 {
            run(&mut machines, 8.0, false, now);
        }
        assert!((machines[0].load_average - 6.32).abs() < 0.01);
    }
}
