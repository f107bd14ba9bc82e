//! From two samples to the load between them. Pure.

use super::sample::{self, Sample};

/// Shares of one host CPU, in percent. A value that is not known is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    pub used: Option<f64>,
    pub stolen: Option<f64>,
    pub throttled: Option<f64>,
}

/// A machine. `used` is of all its threads; the other rates are the sums of its vCPUs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Machine {
    pub name: String,
    pub state: String,
    pub max_vcpus: Option<u64>,
    pub pending: Vec<u32>,
    pub rates: Rates,
    pub vcpus: Vec<Vcpu>,
}

/// A present vCPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Vcpu {
    pub id: u32,
    pub is_pending: bool,
    pub rates: Rates,
    pub host_cpu: Option<u64>,
}

/// Returns the machines of the sample `now`, sorted by name.
pub(crate) fn machines(before: &Sample, now: &Sample) -> Vec<Machine> {
    let compared = |(name, now): (&String, &sample::Machine)| machine(name, before.get(name), now);
    now.iter().map(compared).collect()
}

fn machine(name: &str, before: Option<&sample::Machine>, now: &sample::Machine) -> Machine {
    let time = before.map_or(0, |before| now.time.saturating_sub(before.time));
    let vcpus = now.vcpus.iter().map(|(id, vcpu)| {
        let before = before.and_then(|machine| machine.vcpus.get(id));
        Vcpu {
            id: *id,
            is_pending: now.pending.contains(id),
            rates: Rates {
                used: share(before.and_then(|v| v.usage), vcpu.usage, time),
                stolen: share(before.and_then(|v| v.wait), vcpu.wait, time),
                throttled: share(before.and_then(|v| v.throttled), vcpu.throttled, time),
            },
            host_cpu: vcpu.host_cpu,
        }
    });
    let vcpus: Vec<Vcpu> = vcpus.collect();
    Machine {
        name: name.to_owned(),
        state: now.state.clone(),
        max_vcpus: now.max_vcpus,
        pending: now.pending.clone(),
        rates: Rates {
            used: share(before.and_then(|machine| machine.usage), now.usage, time),
            stolen: sum(vcpus.iter().map(|vcpu| vcpu.rates.stolen)),
            throttled: sum(vcpus.iter().map(|vcpu| vcpu.rates.throttled)),
        },
        vcpus,
    }
}

/// Returns the growth of a counter in percent of `time`. A counter that began again at 0 has none.
#[expect(
    clippy::cast_precision_loss,
    reason = "more digits than a percentage shows"
)]
fn share(before: Option<u64>, now: Option<u64>, time: u64) -> Option<f64> {
    let growth = now?.checked_sub(before?)?;
    (time > 0).then(|| growth as f64 / time as f64 * 100.0)
}

/// Returns the sum of the known values.
fn sum(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    values.flatten().reduce(|sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(time: u64, usage: u64, vcpus: &[(u32, u64, u64)]) -> Sample {
        let vcpus = vcpus.iter().map(|&(id, usage, wait)| {
            let vcpu = sample::Vcpu {
                usage: Some(usage),
                wait: Some(wait),
                ..Default::default()
            };
            (id, vcpu)
        });
        let machine = sample::Machine {
            time,
            usage: Some(usage),
            pending: vec![1],
            vcpus: vcpus.collect(),
            ..Default::default()
        };
        Sample::from([("web".to_owned(), machine)])
    }

    #[test]
    fn rates_are_shares_of_one_host_cpu_in_the_time_between_the_samples() {
        let before = sample(1_000, 500, &[(0, 100, 10), (1, 200, 20)]);
        let now = sample(3_000, 3_500, &[(0, 2_100, 10), (1, 700, 1_520)]);
        let [machine] = &machines(&before, &now)[..] else {
            panic!("one machine")
        };
        assert_eq!(machine.rates.used, Some(150.0));
        assert_eq!(machine.rates.stolen, Some(75.0));
        assert_eq!(machine.rates.throttled, None);
        let rates = machine
            .vcpus
            .iter()
            .map(|vcpu| (vcpu.rates.used, vcpu.rates.stolen));
        let expected = [(Some(100.0), Some(0.0)), (Some(25.0), Some(75.0))];
        assert_eq!(rates.collect::<Vec<_>>(), expected);
        let pending = machine.vcpus.iter().map(|vcpu| vcpu.is_pending);
        assert_eq!(pending.collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn a_new_machine_vcpu_or_thread_has_no_rates() {
        let now = sample(3_000, 3_500, &[(0, 2_100, 10), (1, 700, 1_520)]);
        assert_eq!(machines(&Sample::new(), &now)[0].rates, Rates::default());
        assert_eq!(machines(&now, &now)[0].rates.used, None);
        let before = sample(1_000, 500, &[(0, 4_000, 10)]);
        let machine = &machines(&before, &now)[0];
        assert_eq!(machine.rates.used, Some(150.0));
        let used = machine.vcpus.iter().map(|vcpu| vcpu.rates.used);
        assert_eq!(used.collect::<Vec<_>>(), [None, None]);
        assert!(machines(&now, &Sample::new()).is_empty());
    }
}
