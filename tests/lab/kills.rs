//! The service is killed repeatedly at random moments, with guests on KVM.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::sleep;

use crate::harness::*;

/// The number of kills, unless `LAB_KILLS` is set.
const KILLS: u64 = 10;
/// The maximum number of vCPUs that an emulated host can run.
const MOST: u64 = 4;
/// The time, in milliseconds, in which two guests in an emulated host get and release vCPUs.
const LONGEST: u64 = 1000;

/// Pseudo-random numbers from a seed (SplitMix64).
struct Dice(u64);

impl Dice {
    /// Returns a number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (number ^ (number >> 31)) % end
    }
}

/// Returns the number in an environment variable.
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// The history of a vCPU: the reported events, and the commands to QEMU.
#[derive(Debug, Default)]
struct Story {
    /// Whether it was added or removed, in the order of the events.
    told: Vec<bool>,
    refused: usize,
    /// Whether QEMU was asked to plug or unplug it, in order.
    asked: Vec<bool>,
}

/// Returns the histories of the vCPUs of a guest.
fn stories(name: &str, guest: &Guest, signals: &[Signal]) -> BTreeMap<u32, Story> {
    let mut stories: BTreeMap<u32, Story> = BTreeMap::new();
    for signal in signals {
        match signal {
            Signal::Added(vcpu) | Signal::Removed(vcpu) if vcpu.machine == name => {
                let alias = format!("vcpu{}", vcpu.id);
                assert_eq!(*vcpu, Vcpu::by_request(name, vcpu.id, &alias), "{signal:?}");
                let came = matches!(signal, Signal::Added(_));
                stories.entry(vcpu.id).or_default().told.push(came);
            }
            Signal::RemovalFailed(vcpu, ..) if vcpu.machine == name => {
                stories.entry(vcpu.id).or_default().refused += 1;
            }
            _ => {}
        }
    }
    for (command, arguments) in guest.asked(&["device_add", "device_del"]) {
        let id = arguments["id"].as_str().expect("vcpud names its devices");
        let vcpu = id.rsplit("vcpu").next().expect("there is a last part");
        let vcpu = vcpu.parse().expect("a number");
        let story = stories.entry(vcpu).or_default();
        story.asked.push(command == "device_add");
    }
    stories
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "the seed is needed to repeat the test")]
async fn a_service_that_is_killed_at_any_moment_reports_every_change() {
    let kills = number("LAB_KILLS").unwrap_or(KILLS);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("the clock is after 1970").as_micros() as u64;
    let seed = number("LAB_SEED").unwrap_or(now);
    eprintln!("LAB_SEED={seed} LAB_KILLS={kills}");
    let mut dice = Dice(seed);

    let host = Host::enter().await;
    let names = ["one", "two"];
    let mut guests = [Guest::boot("one").await, Guest::boot("two").await];
    let machines = [host.machine("one").await, host.machine("two").await];
    let mark = host.signals.mark().await;
    let mut killed = 0;
    while killed < kills {
        // Otherwise most kills would hit the start of the service.
        if dice.below(4) > 0 {
            host.answers().await;
        }
        let request = |machine: &Machine| machine.start_set(1 + dice.below(MOST) as u32);
        let requests = machines.each_ref().map(request);
        // The moment is random, so the test does not wait for a state.
        sleep(Duration::from_millis(dice.below(LONGEST))).await;
        killed += u64::from(host.kill_service().await);
        for request in requests {
            request.abort();
        }
    }
    host.answers().await;
    for (machine, guest) in machines.iter().zip(&mut guests) {
        // A vCPU with a pending removal cannot be added before it is removed.
        machine.wait_for("PendingRemovals", Vec::<u32>::new()).await;
        machine.set_patiently(1).await.unwrap();
        guest.online("0").await;
        machine.set(2).await.unwrap();
        guest.online("0-1").await;
        guest.has_threads(&[0, 1]).await;
    }

    let signals = host.signals.since(mark).await;
    let mut changes = 0;
    for (guest, name) in guests.iter().zip(names) {
        let all = stories(name, guest, &signals);
        for (vcpu, mut story) in all {
            let what = format!("LAB_SEED={seed}: vCPU {vcpu} of {name}: {story:?}");
            // An event just before a kill may be reported twice.
            story.told.dedup();
            changes += story.told.len();
            assert!(story.told.first() == Some(&true), "{what}");
            assert_eq!(story.told.last(), Some(&(vcpu == 1)), "{what}");
            let twice = story.asked.windows(2).filter(|two| two[0] == two[1]);
            assert!(twice.clone().all(|two| !two[0]), "plugged twice: {what}");
            assert!(twice.count() <= story.refused, "unplugged twice: {what}");
            story.asked.dedup();
            assert_eq!(story.told, story.asked, "{what}");
        }
    }
    host.has("NFileDescriptorStore", "4").await;
    eprintln!("{kills} kills, {changes} vCPUs were added or removed");
}
