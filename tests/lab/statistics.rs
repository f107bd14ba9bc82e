//! Statistics of guests with KVM, compared with the control groups of version 2 and the files of threads.

use std::collections::HashMap;
use std::fs;

use serde_json::Value;
use tokio::task::yield_now;
use zbus::Variant;

use crate::harness::*;

/// The time between two samples, in microseconds. An emulated CPU can be paused for more than a second.
const INTERVAL: u64 = 10_000_000;

/// The counters of the first vCPU, with the time of the sample, in microseconds.
struct Counters {
    time: u64,
    usage: u64,
    wait: u64,
    throttled: u64,
}

impl Counters {
    async fn of(machine: &Machine) -> Self {
        let (all, vcpus) = machine.statistics(&[]).await.unwrap();
        let number = |dict: &Dict, key: &str| {
            let number = dict.get(key).and_then(Value::as_u64);
            number.unwrap_or_else(|| panic!("no number {key}: {dict:?}"))
        };
        Self {
            time: number(&all, "timestamp-usec"),
            usage: number(&vcpus[0], "usage-usec"),
            wait: number(&vcpus[0], "wait-usec"),
            throttled: number(&vcpus[0], "throttled-usec"),
        }
    }

    /// Waits until the interval has passed. Returns the counters then.
    async fn later(&self, machine: &Machine) -> Self {
        let later = async {
            loop {
                let now = Self::of(machine).await;
                if now.time >= self.time + INTERVAL {
                    return now;
                }
                yield_now().await;
            }
        };
        within("the next sample", later).await
    }

    /// Returns the shares of the time since `first` in which the vCPU ran, waited and was throttled.
    fn shares_since(&self, first: &Self) -> [f64; 3] {
        let time = (self.time - first.time) as f64;
        let share = |last: u64, first: u64| (last - first) as f64 / time;
        [
            share(self.usage, first.usage),
            share(self.wait, first.wait),
            share(self.throttled, first.throttled),
        ]
    }
}

#[tokio::test]
async fn busy_guests_on_one_host_cpu_wait_for_each_other() {
    let host = Host::enter().await;
    let _guests = [
        Guest::busy_in(Place::Scope, 1, "web").await,
        Guest::busy_in(Place::Scope, 1, "db").await,
    ];
    let machines = [host.machine("web").await, host.machine("db").await];
    for machine in &machines {
        machine.wait_for("Placement", "scope").await;
        let pinned = machine.pin_vcpus(&[0], "1", HashMap::new());
        within("PinVcpus", pinned).await.unwrap();
    }
    let first = [
        Counters::of(&machines[0]).await,
        Counters::of(&machines[1]).await,
    ];
    for (machine, first) in machines.iter().zip(&first) {
        let [ran, waited, throttled] = first.later(machine).await.shares_since(first);
        assert!(ran + waited > 0.9, "ran {ran}, waited {waited}");
        // A pause of the host CPU is part of the time of the vCPU that ran.
        assert!(ran.min(waited) > 0.2, "ran {ran}, waited {waited}");
        assert!(throttled < 0.01, "throttled {throttled}");
    }
    let (_, vcpus) = machines[0].statistics(&[]).await.unwrap();
    assert_eq!(vcpus[0]["host-cpu"], 1);
}

#[tokio::test]
async fn a_quota_throttles_and_is_not_steal() {
    let host = Host::enter().await;
    let guest = Guest::busy_in(Place::Scope, 1, "web").await;
    let machine = host.machine("web").await;
    machine.wait_for("Placement", "scope").await;
    let limited = machine.set_bandwidth(50_000, 10_000, HashMap::new());
    within("SetBandwidth", limited).await.unwrap();

    let delay = || {
        let path = format!("/proc/{}/task/{}/schedstat", guest.pid(), guest.thread(0));
        let text = fs::read_to_string(path).expect("the thread runs");
        let field = text.split_whitespace().nth(1).expect("a second field");
        field.parse::<u64>().expect("a number") / 1000
    };
    let (first, first_delay) = (Counters::of(&machine).await, delay());
    let last = first.later(&machine).await;
    let delayed = delay() - first_delay;
    let [ran, waited, throttled] = last.shares_since(&first);
    assert!((0.15..=0.25).contains(&ran), "ran {ran}");
    assert!(throttled > 0.6, "throttled {throttled}");
    assert!(waited < 0.15, "waited {waited}, throttled {throttled}");
    // The kernel counts both as a delay.
    let share = delayed as f64 / INTERVAL as f64;
    assert!(share > 0.6, "delayed {share}");
}

#[tokio::test]
async fn counters_agree_with_the_control_groups_and_with_kvm() {
    let host = Host::enter().await;
    let mut guest = Guest::busy_in(Place::Scope, 2, "web").await;
    let machine = host.machine("web").await;
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
    guest.online("0-1").await;
    let groups = Groups::of(&machine).await;
    machine.wait_for("Placement", "scope").await;
    let of_group = || groups.number("vcpud/vcpu0/cpu.stat", "usage_usec");

    // The thread and the group are read at different times.
    let (from, first, since) = (of_group(), Counters::of(&machine).await, of_group());
    first.later(&machine).await;
    let (until, last, to) = (of_group(), Counters::of(&machine).await, of_group());
    let thread = (last.usage - first.usage) as f64;
    assert!(thread * 1.03 >= (until - since) as f64, "{thread}");
    assert!(thread * 0.97 <= (to - from) as f64, "{thread}");

    let kvm = [("kvm", Variant::Bool(true))];
    let (all, vcpus) = machine.statistics(&kvm).await.unwrap();
    for vcpu in &vcpus {
        assert!(vcpu["exits"].as_u64() > Some(0), "{vcpu:?}");
        assert!(vcpu["halt-exits"].is_u64(), "{vcpu:?}");
        assert!(vcpu["halt-wait-usec"].is_u64(), "{vcpu:?}");
    }
    let emulator = groups.number("vcpud/emulator/cpu.stat", "usage_usec");
    let reported = all["emulator-usage-usec"].as_u64().expect("a number");
    assert!(reported <= emulator, "{reported}, {emulator}");
    // Every user can read them.
    let call = format!(
        "busctl call org.vcpud1 {} org.vcpud1.Machine GetStatistics 'a{{sv}}' 0",
        machine.path()
    );
    let reply = User::ALICE.run(&call).await.unwrap();
    assert!(reply.contains("throttled-usec"), "{reply}");
}
