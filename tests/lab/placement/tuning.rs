//! Each setting applies to all vCPUs, present and future.

use super::*;

const NOT_SUPPORTED: &str = "org.vcpud1.Error.NotSupported";
const CPU_UNAVAILABLE: &str = "org.vcpud1.Error.CpuUnavailable";

#[tokio::test]
async fn every_user_reads_the_statistics_of_a_vcpu() {
    let host = Host::enter().await;
    let _guest = Guest::paused_in(Place::Scope, "web").await;
    let machine = host.machine("web").await;
    machine.wait_for("Placement", "scope").await;
    let groups = Groups::of(&machine).await;
    for file in ["cpu.stat", "cpu.pressure"] {
        let path = groups.path(&format!("vcpud/vcpu0/{file}"));
        let read = User::ALICE.run(&format!("cat {}", path.display())).await;
        assert_ne!(read, Ok(String::new()), "{file}");
        read.unwrap();
    }
}

#[tokio::test]
async fn pins_are_kept_when_vcpus_are_removed_and_added_again() {
    let host = Host::enter().await;
    let mut guest = Guest::boot_in(Place::Scope, "web").await;
    let machine = host.machine("web").await;
    let groups = Groups::of(&machine).await;
    let all = online();

    // For one present vCPU, and for two that are added later.
    assert_eq!(pin(&machine, &[0], "1").await, Ok(()));
    assert_eq!(pin(&machine, &[2, 3], "2-3").await, Ok(()));
    assert_eq!(affinities(&machine, &groups, &guest).await, ["1"]);
    assert_eq!(machine.set(4).await, Ok(Outcome::added([1, 2, 3])));
    let pinned = ["1", &all, "2-3", "2-3"];
    assert_eq!(affinities(&machine, &groups, &guest).await, pinned);
    assert_placed(&groups, &guest);
    guest.online("0-3").await;

    let unavailable = pin(&machine, &[0, 1], "0,999").await.unwrap_err();
    unavailable.assert(CPU_UNAVAILABLE, &["999"]);
    assert_eq!(affinities(&machine, &groups, &guest).await, pinned);

    // The groups are removed with the vCPUs.
    machine.set_patiently(1).await.unwrap();
    guest.has_threads(&[0]).await;
    until("the groups", vec!["emulator", "vcpu0"], || {
        let below = groups.below("vcpud");
        ["emulator", "vcpu0", "vcpu1", "vcpu2", "vcpu3"]
            .into_iter()
            .filter(|group| below.iter().any(|b| b == group))
            .collect()
    })
    .await;
    guest.online("0").await;
    assert_eq!(machine.set(4).await, Ok(Outcome::added([1, 2, 3])));
    assert_eq!(affinities(&machine, &groups, &guest).await, pinned);
    assert_placed(&groups, &guest);

    // The default applies to vCPUs without a pin, and again after a pin is removed.
    assert_eq!(pin(&machine, &[], "0").await, Ok(()));
    assert_eq!(machine.affinity().await.as_deref(), Ok("0"));
    assert_eq!(
        affinities(&machine, &groups, &guest).await,
        ["1", "0", "2-3", "2-3"]
    );
    assert_eq!(pin(&machine, &[0, 2], "").await, Ok(()));
    assert_eq!(
        affinities(&machine, &groups, &guest).await,
        ["0", "0", "0", "2-3"]
    );
    assert_eq!(pin(&machine, &[], "").await, Ok(()));
    assert_eq!(
        affinities(&machine, &groups, &guest).await,
        [&all, &all, &all, "2-3"]
    );
    assert_eq!(machine.affinity().await, Ok(all));
}

#[tokio::test]
async fn limits_and_schedulers_apply_to_every_vcpu() {
    let host = Host::enter().await;
    let mut guest = Guest::boot_in(Place::Scope, "web").await;
    let machine = host.machine("web").await;
    let groups = Groups::of(&machine).await;
    assert_eq!(of_all(&groups, &guest, "cpu.max"), ["max 100000"]);
    assert_eq!(limit(&machine, 50_000, 40_000).await, Ok(()));
    assert_eq!(schedule(&machine, &[], "batch", 0).await, Ok(()));
    assert_eq!(schedule(&machine, &[2], "fifo", 5).await, Ok(()));
    assert_eq!(schedule(&machine, &[3], "rr", 7).await, Ok(()));

    assert_eq!(machine.set(4).await, Ok(Outcome::added([1, 2, 3])));
    guest.online("0-3").await;
    assert_eq!(of_all(&groups, &guest, "cpu.max"), ["40000 50000"; 4]);
    assert_eq!(machine.bandwidth_period_usec().await, Ok(50_000));
    assert_eq!(machine.bandwidth_quota_usec().await, Ok(40_000));
    assert_eq!(
        schedulings(&machine, &guest).await,
        [
            "SCHED_BATCH 0",
            "SCHED_BATCH 0",
            "SCHED_FIFO 5",
            "SCHED_RR 7"
        ]
    );

    assert_eq!(schedule(&machine, &[0], "idle", 0).await, Ok(()));
    assert_eq!(schedule(&machine, &[2, 3], "other", 0).await, Ok(()));
    assert_eq!(limit(&machine, 100_000, UNLIMITED).await, Ok(()));
    assert_eq!(of_all(&groups, &guest, "cpu.max"), ["max 100000"; 4]);
    assert_eq!(
        schedulings(&machine, &guest).await,
        [
            "SCHED_IDLE 0",
            "SCHED_BATCH 0",
            "SCHED_OTHER 0",
            "SCHED_OTHER 0"
        ]
    );
    // The emulator has no limit, and keeps its scheduler.
    assert_eq!(groups.read("vcpud/emulator/cpu.max"), "max 100000");
    assert_eq!(scheduling_of(guest.pid()).await, "SCHED_OTHER 0");
    assert_eq!(guest.vcpu_threads(), [0, 1, 2, 3]);
    assert_placed(&groups, &guest);

    let cache = machine.set_cache_allocation(&[0], "L3:0=f", HashMap::new());
    let refused = within("SetCacheAllocation", cache)
        .await
        .map_err(Failure::of);
    refused.unwrap_err().assert(NOT_SUPPORTED, &["resctrl"]);
}

/// Returns the scheduler of each vCPU with a thread in the kernel. Asserts that the service reports the same.
async fn schedulings(machine: &Machine, guest: &Guest) -> Vec<String> {
    let rows = machine.rows().await;
    let mut schedulings = Vec::new();
    for vcpu in guest.vcpu_threads() {
        let row = &rows[vcpu as usize];
        let name = row["scheduler"].as_str().expect("a word").to_uppercase();
        let said = format!("SCHED_{name} {}", row["priority"]);
        let is = scheduling_of(guest.thread(vcpu)).await;
        assert_eq!(said, is, "vCPU {vcpu}");
        schedulings.push(is);
    }
    schedulings
}

#[tokio::test]
async fn threads_that_the_kernel_creates_for_a_running_guest_are_not_vcpus() {
    let host = Host::enter().await;
    let mut guest = Guest::paused_in(Place::Scope, "web").await;
    let machine = host.machine("web").await;
    let groups = Groups::of(&machine).await;
    assert_eq!(pin(&machine, &[0], "1").await, Ok(()));
    let before = guest.tasks().len();

    // KVM creates one, with the name of the vCPU that runs first.
    guest.monitor.execute("cont", serde_json::json!({})).await;
    guest.online("0").await;
    let made = |tasks: BTreeMap<u32, String>| tasks.values().any(|name| name.starts_with("kvm-nx"));
    assert!(
        made(guest.tasks()),
        "{before} before, now {:?}",
        guest.tasks()
    );
    until("misplaced threads", BTreeMap::new(), || {
        groups.misplaced(&guest)
    })
    .await;
    assert_placed(&groups, &guest);
}
