//! The service is killed again and again at random moments, with guests that have true vCPUs.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::sleep;

use crate::harness::*;

/// How often it is killed, unless `LAB_KILLS` says otherwise.
const KILLS: u64 = 20;
/// More vCPUs than this are too much for an emulated host.
const MOST: u64 = 4;
/// In an emulated host two guests grow and shrink within this many milliseconds.
const LONGEST: u64 = 1000;

/// Numbers that look random and follow from the seed (SplitMix64).
struct Dice(u64);

impl Dice {
    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (number ^ (number >> 31)) % end
    }
}

/// The number that a variable of the environment has.
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// What a vCPU did, by what was told and by what QEMU was asked.
#[derive(Debug, Default)]
struct Story {
    /// Whether it came or went, in the order that was told.
    told: Vec<bool>,
    refused: usize,
    /// Whether QEMU was asked to plug or unplug it, in order.
    asked: Vec<bool>,
}

/// The stories of the vCPUs of a guest.
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
            Signal::RemovalFailed(vcpu, _) if vcpu.machine == name => {
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
#[expect(clippy::print_stderr, reason = "so that it can be done again")]
async fn a_service_that_is_killed_at_any_moment_tells_the_whole_truth() {
    let kills = number("LAB_KILLS").unwrap_or(KILLS);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("it is after 1970").as_micros() as u64;
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
        // Else it is killed while it starts, more often than not.
        if dice.below(4) > 0 {
            host.answers().await;
        }
        let request = |machine: &Machine| machine.start_set(1 + dice.below(MOST) as u32);
        let requests = machines.each_ref().map(request);
        // This waits for nothing: any moment is to be tried.
        sleep(Duration::from_millis(dice.below(LONGEST))).await;
        killed += u64::from(host.kill_service().await);
        for request in requests {
            request.abort();
        }
    }
    host.answers().await;
    for ((machine, guest), name) in machines.iter().zip(&mut guests).zip(names) {
        // A vCPU that is leaving cannot come again before it is gone.
        machine.wait_for("PendingRemovals", Vec::<u32>::new()).await;
        machine.set_patiently(1).await.unwrap();
        guest.online("0").await;
        machine.set(2).await.unwrap();
        guest.online("0-1").await;
        assert_eq!(guest.vcpu_threads(), [0, 1], "{name}");
    }

    let signals = host.signals.since(mark).await;
    let mut changes = 0;
    for (guest, name) in guests.iter().zip(names) {
        let all = stories(name, guest, &signals);
        for (vcpu, mut story) in all {
            let what = format!("LAB_SEED={seed}: vCPU {vcpu} of {name}: {story:?}");
            // What was told just before the end may be told again after it.
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
    eprintln!("{kills} kills, {changes} vCPUs came or went");
}
