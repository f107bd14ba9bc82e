//! The service is killed in the middle of its work, and started again.

use super::*;

#[tokio::test]
async fn a_killed_service_ends_what_it_began() {
    let host = Host::enter().await;
    let mut guest = Guest::boot_in(Place::Scope, "web").await;
    let machine = host.machine("web").await;
    let groups = Groups::of(&machine).await;
    assert_eq!(pin(&machine, &[2], "2").await, Ok(()));
    assert_eq!(pin(&machine, &[], "0-1").await, Ok(()));
    assert_eq!(limit(&machine, 50_000, 40_000).await, Ok(()));
    assert_eq!(schedule(&machine, &[3], "rr", 7).await, Ok(()));

    let growth = machine.start_set(5);
    until("a new vCPU", true, || guest.vcpu_threads().len() > 1).await;
    output("systemctl", &["kill", "--signal=KILL", "vcpud.service"]).await;
    let lost = within("the end of the call", growth).await;
    drop(lost);
    guest.online("0-4").await;

    // The next instance finds the machine unchanged.
    let machine = host.machine("web").await;
    machine.wait_for("Vcpus", 5u32).await;
    machine.wait_for("Placement", "scope").await;
    assert_eq!(machine.unit().await.as_deref(), Ok("vcpud-web.scope"));
    // If systemd answers late, the machine is served before its threads are moved.
    until("misplaced threads", BTreeMap::new(), || {
        groups.misplaced(&guest)
    })
    .await;
    // The vCPUs get their settings one after the other, and a vCPU gets its limit after its host CPUs.
    let limits = vec!["40000 50000".to_owned(); 5];
    until("all limits", limits, || of_all(&groups, &guest, "cpu.max")).await;
    assert_placed(&groups, &guest);
    let pinned = ["0-1", "0-1", "2", "0-1", "0-1"];
    assert_eq!(affinities(&machine, &groups, &guest).await, pinned);
    assert_eq!(scheduling_of(guest.thread(3)).await, "SCHED_RR 7");
    assert_eq!(machine.bandwidth_quota_usec().await, Ok(40_000));

    // Killed while no call is in progress. The settings are kept.
    host.stop_service().await;
    assert_eq!(machine.affinity().await.as_deref(), Ok("0-1"));
    assert_eq!(
        machine.set_patiently(2).await,
        Ok(Outcome::removed([2, 3, 4]))
    );
    guest.has_threads(&[0, 1]).await;
    let kept = ["emulator", "vcpu0", "vcpu1"].map(str::to_owned).to_vec();
    until("the groups", kept, || groups.below("vcpud")).await;
    assert_eq!(machine.set(4).await, Ok(Outcome::added([2, 3])));
    assert_placed(&groups, &guest);
    assert_eq!(
        affinities(&machine, &groups, &guest).await,
        ["0-1", "0-1", "2", "0-1"]
    );
    assert_eq!(scheduling_of(guest.thread(3)).await, "SCHED_RR 7");
    assert_eq!(of_all(&groups, &guest, "cpu.max"), ["40000 50000"; 4]);

    // Without the service, systemd removes everything.
    host.stop_service().await;
    guest.kill().await;
    until("the groups", false, || groups.exist()).await;
}
