//! Divides the CPUs of the host between machines. Pure. It must not know why a machine wants CPUs.

/// The demand of one machine, and its limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claim {
    /// The number of host CPUs that the machine wants.
    pub demand: f64,
    /// The number of vCPUs that the machine gets in any case.
    pub min: u32,
    /// The maximum number of vCPUs.
    pub max: u32,
    /// The share of the machine.
    pub weight: u32,
}

/// Returns the maximum number of vCPUs of each machine.
///
/// If the host has enough CPUs for all demands, this is the maximum of the claim. Otherwise, each machine gets
/// its minimum, and the other CPUs of the host are divided by weight. A machine does not get more than it
/// wants, and the others share the rest. A machine whose demand is met has no further limit.
#[must_use]
pub fn share(capacity: f64, claims: &[Claim]) -> Vec<u32> {
    let demands: f64 = claims.iter().map(|claim| claim.demand).sum();
    if demands <= capacity {
        return claims.iter().map(|claim| claim.max).collect();
    }
    let mut shares: Vec<Share<'_>> = claims.iter().map(Share::new).collect();
    let mut left = capacity - shares.iter().map(Share::used).sum::<f64>();
    let open = |share: &&mut Share<'_>| share.is_open;
    let lowest = |a: &&mut Share<'_>, b: &&mut Share<'_>| a.level().total_cmp(&b.level());
    while let Some(next) = shares.iter_mut().filter(open).min_by(lowest) {
        let cost = (next.claim.demand - f64::from(next.cap)).min(1.0);
        if next.cap >= next.claim.max || cost <= 0.0 || cost > left {
            next.is_open = false;
        } else {
            next.cap += 1;
            left -= cost;
        }
    }
    let cap = |share: &Share<'_>| {
        let is_met = share.claim.demand <= f64::from(share.cap);
        if is_met { share.claim.max } else { share.cap }
    };
    shares.iter().map(cap).collect()
}

/// The part of one machine so far.
struct Share<'a> {
    claim: &'a Claim,
    cap: u32,
    is_open: bool,
}

impl<'a> Share<'a> {
    fn new(claim: &'a Claim) -> Self {
        Self {
            claim,
            cap: claim.min,
            is_open: true,
        }
    }

    /// Returns the number of host CPUs that the machine uses with its part.
    fn used(&self) -> f64 {
        self.claim.demand.min(f64::from(self.cap))
    }

    /// Returns how much the machine would have with one more vCPU, in relation to its weight.
    fn level(&self) -> f64 {
        (f64::from(self.cap) + 1.0) / f64::from(self.claim.weight)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(demand: f64, min: u32, max: u32, weight: u32) -> Claim {
        Claim {
            demand,
            min,
            max,
            weight,
        }
    }

    #[test]
    fn no_limit_while_the_host_has_enough() {
        let claims = [claim(4.0, 1, 16, 100), claim(4.0, 1, 12, 100)];
        assert_eq!(share(8.0, &claims), [16, 12]);
    }

    #[test]
    fn equal_machines_share_equally() {
        let claims = [claim(8.0, 1, 16, 100), claim(8.0, 1, 16, 100)];
        assert_eq!(share(8.0, &claims), [4, 4]);
    }

    #[test]
    fn the_weight_decides() {
        let claims = [claim(16.0, 1, 16, 300), claim(16.0, 1, 16, 100)];
        assert_eq!(share(8.0, &claims), [6, 2]);
    }

    #[test]
    fn a_machine_that_wants_little_has_no_limit_and_others_get_the_rest() {
        let claims = [claim(1.5, 1, 16, 100), claim(20.0, 1, 16, 100)];
        assert_eq!(share(8.0, &claims), [16, 6]);
    }

    #[test]
    fn no_machine_is_below_its_minimum() {
        let claims = [claim(6.0, 6, 8, 1), claim(8.0, 4, 8, 1000)];
        assert_eq!(share(8.0, &claims), [8, 4]);
    }

    fn claims() -> impl Strategy<Value = Vec<Claim>> {
        let one = (0.0..20.0, 1u32..6, 0u32..16, 1u32..1000);
        let one =
            one.prop_map(|(demand, min, more, weight)| claim(demand, min, min + more, weight));
        prop::collection::vec(one, 0..8)
    }

    /// Any number, often an extreme one.
    fn number() -> impl Strategy<Value = u32> {
        prop_oneof![
            Just(0),
            Just(1),
            Just(u32::MAX - 1),
            Just(u32::MAX),
            any::<u32>()
        ]
    }

    proptest! {
        #[test]
        fn no_limit_is_too_extreme(
            claims in prop::collection::vec((0.0..10.0, number(), number(), number()), 0..4),
            capacity in 0.0..4.0,
        ) {
            let claims: Vec<Claim> = claims
                .into_iter()
                .map(|(demand, a, b, weight)| claim(demand, a.min(b), a.max(b), weight))
                .collect();
            for (claim, cap) in claims.iter().zip(share(capacity, &claims)) {
                prop_assert!((claim.min..=claim.max).contains(&cap));
            }
        }

        #[test]
        fn the_shares_fit(claims in claims(), capacity in 0.0..40.0) {
            let caps = share(capacity, &claims);
            let used = |cap: fn(&Claim, u32) -> u32| -> f64 {
                let pairs = claims.iter().zip(&caps);
                pairs.map(|(claim, have)| claim.demand.min(cap(claim, *have).into())).sum()
            };
            let minima = used(|claim, _| claim.min);
            prop_assert!(used(|_, cap| cap) <= f64::max(capacity, minima) + 1e-9);
            for (claim, cap) in claims.iter().zip(caps) {
                prop_assert!((claim.min..=claim.max).contains(&cap));
            }
        }

        #[test]
        fn a_higher_weight_gets_no_less(
            claims in claims(), capacity in 0.0..40.0, index in 0usize..8, more in 1u32..1000
        ) {
            prop_assume!(index < claims.len());
            let before = share(capacity, &claims);
            let mut heavier = claims;
            heavier[index].weight += more;
            prop_assert!(share(capacity, &heavier)[index] >= before[index]);
        }
    }
}
