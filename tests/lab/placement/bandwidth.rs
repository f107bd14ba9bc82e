//! A limit is in force, according to the periods and the time that the kernel counts.

use super::*;

const PERIOD: u64 = 50_000;
const QUOTA: u64 = PERIOD / 5;
/// The number of periods that are measured: ten seconds, so that a short pause of an emulated CPU makes no difference.
const PERIODS: u64 = 200;

#[tokio::test]
async fn a_busy_guest_uses_its_quota_and_no_more() {
    let host = Host::enter().await;
    let mut guest = Guest::busy_in(Place::Scope, 2, "web").await;
    let machine = host.machine("web").await;
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
    guest.online("0-1").await;
    let groups = Groups::of(&machine).await;
    assert_eq!(limit(&machine, PERIOD, QUOTA as i64).await, Ok(()));

    for vcpu in [0, 1] {
        let file = format!("vcpud/vcpu{vcpu}/cpu.stat");
        // From one read, because the test can be paused between two reads.
        let sample = || groups.numbers(&file, ["nr_periods", "usage_usec"]);
        // From the start of one period to the start of another.
        let [now, _] = sample();
        let [first, before] = reaches(now + 1, sample).await;
        let [last, after] = reaches(first + PERIODS, sample).await;
        let share = (after - before) as f64 / ((last - first) * PERIOD) as f64;
        assert!(
            (0.15..=0.25).contains(&share),
            "vCPU {vcpu} used {share}: {}",
            groups.read(&file)
        );
    }

    // The limited guest is slow, and releases the vCPU nevertheless.
    let shrunk = machine.set_patiently(1).await;
    assert_eq!(shrunk, Ok(Outcome::removed([1])));
    guest.has_threads(&[0]).await;
    until(
        "the groups",
        vec!["emulator".to_owned(), "vcpu0".to_owned()],
        || groups.below("vcpud"),
    )
    .await;
    assert_placed(&groups, &guest);
    assert_eq!(
        of_all(&groups, &guest, "cpu.max"),
        [format!("{QUOTA} {PERIOD}")]
    );
}

/// Waits until a sample begins with `count` periods or more. Returns the sample.
async fn reaches(count: u64, sample: impl Fn() -> [u64; 2]) -> [u64; 2] {
    let mut last = sample();
    until(format!("{count} periods"), true, || {
        last = sample();
        last[0] >= count
    })
    .await;
    last
}
