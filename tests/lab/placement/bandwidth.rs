//! A limit is in force, according to the periods and the time that the kernel counts.

use super::*;

const PERIOD: u64 = 50_000;
const QUOTA: u64 = PERIOD / 5;
/// The number of periods that are measured.
const PERIODS: u64 = 50;

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
        let periods = || groups.number(&file, "nr_periods");
        let used = || groups.number(&file, "usage_usec");
        // From the start of one period to the start of another.
        let first = next(periods).await;
        let before = used();
        until(format!("{PERIODS} periods of {file}"), true, || {
            periods() >= first + PERIODS
        })
        .await;
        let (after, last) = (used(), periods());
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

/// Waits until a count increases. Returns the count.
async fn next(count: impl Fn() -> u64) -> u64 {
    let before = count();
    until("the next period", true, || count() > before).await;
    count()
}
