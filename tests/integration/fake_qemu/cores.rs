//! Machines where several vCPUs come and go together.

use std::collections::HashMap;

use serde_json::json;
use vcpud::names::error_name;

use crate::harness::*;

/// Scripted QEMU (pseries), dbus-daemon.
#[tokio::test]
async fn vcpus_that_come_and_go_together_are_counted_and_told_one_by_one() {
    let world = World::without_polkit().await;
    let peer = world.peer("power", Model::pseries(1, 4));
    let machine = world.machine("power").await;
    assert_eq!(machine.vcpus().await.unwrap(), 4);
    assert_eq!(machine.max_vcpus().await.unwrap(), 16);
    assert_eq!(machine.vcpus_per_slot().await.unwrap(), 4);
    assert_eq!(machine.architecture().await.unwrap(), "ppc64");

    let failure = machine.set(6).await.unwrap_err();
    failure.assert(
        error_name::OUT_OF_RANGE,
        &["power", "groups of 4", "4 and 8"],
    );
    let plan = async |count| dict(&machine.plan(count, HashMap::new()).await.unwrap());
    assert_eq!(plan(6).await["reason-code"], "part-of-slot");
    assert_eq!(plan(2).await["reason-code"], "boot-vcpu");
    let failure = machine.set(2).await.unwrap_err();
    assert_eq!(
        peer.count("device_add") + peer.count("device_del"),
        0,
        "{failure:?}"
    );

    let mark = world.signals.mark().await;
    let result = machine.set(8).await;
    assert_eq!(result, Ok(Outcome::added([4, 5, 6, 7])));
    assert_eq!(peer.calls("device_add")[0].arguments["core-id"], 4);
    let came = added(&world.signals.since(mark).await);
    let four = [4, 5, 6, 7].map(|id| Vcpu::by_request("power", id, "vcpu4"));
    assert_eq!(came, four);
    let rows = machine.rows().await;
    let threads = peer.model().threads_of(1);
    for (row, thread) in rows[4..8].iter().zip(threads) {
        assert_eq!(row["thread-id"], thread);
        assert_eq!(row["core-id"], 4);
    }

    let mark = world.signals.mark().await;
    let result = machine.set_patiently(4).await;
    assert_eq!(result, Ok(Outcome::removed([4, 5, 6, 7])));
    let told = world.signals.since(mark).await;
    assert_eq!(removed(&told), four);
    assert_eq!(changes_of(&told, "Vcpus"), [4]);
    assert_eq!(peer.count("device_del"), 1);
}

/// Scripted QEMU (pseries), dbus-daemon.
#[tokio::test]
async fn a_core_that_stays_is_told_for_each_of_its_vcpus() {
    let world = World::without_polkit().await;
    let mut model = Model::pseries(2, 4);
    model.removal = Removal::Held;
    let peer = world.peer("power", model);
    let machine = world.machine("power").await;

    let mark = world.signals.mark().await;
    let waiting = machine.start_set(4);
    machine
        .wait_for("PendingRemovals", vec![4u32, 5, 6, 7])
        .await;
    let data = json!({"path": peer.model().path(1)});
    peer.send(&event("DEVICE_UNPLUG_GUEST_ERROR", data));
    let failure = waiting.await.unwrap().unwrap_err();
    failure.assert(error_name::GUEST_REFUSED, &["vCPUs 4-7"]);
    let failed = removal_failed(&world.signals.since(mark).await);
    let vcpus: Vec<Vcpu> = failed.into_iter().map(|(vcpu, _)| vcpu).collect();
    let four = [4, 5, 6, 7].map(|id| Vcpu::by_request("power", id, ""));
    assert_eq!(vcpus, four);
}
