//! POWER servers: QEMU plugs cores, of one vCPU or of several.

use serde_json::json;
use vcpud::names::error_name;

use crate::harness::*;

const SMT1: Boot = Boot {
    hardware: Hardware::PSERIES,
    vcpus: 1,
    accelerator: "tcg,thread=multi",
    linux: false,
    paused: false,
    agent: false,
};

const SMT4: Boot = Boot {
    hardware: Hardware::PSERIES_SMT4,
    vcpus: 4,
    ..SMT1
};

/// Real QEMU (pseries) with firmware only, dbus-daemon.
#[tokio::test]
async fn a_pseries_grows_and_shrinks_by_single_vcpus_where_cores_have_one_thread() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start(&world, "power", &SMT1).await;
    let machine = world.machine("power").await;
    assert_eq!(machine.architecture().await.unwrap(), "ppc64");
    assert_eq!(machine.hotplug_method().await.unwrap(), "device-add");
    assert_eq!(machine.vcpus_per_slot().await.unwrap(), 1);
    assert_eq!(machine.max_vcpus().await.unwrap(), 64);

    let mark = world.signals.mark().await;
    assert_eq!(machine.set(4).await, Ok(Outcome::added([1, 2, 3])));
    let three = [1, 2, 3].map(|id| Vcpu::by_request("power", id, &format!("vcpu{id}")));
    assert_eq!(added(&world.signals.since(mark).await), three);
    assert_eq!(qemu.threads().await.len(), 4);

    // The firmware gives up every core at once: none is ever pending.
    let mark = world.signals.mark().await;
    let result = machine.set_these(&[1, 3], false).await;
    assert_eq!(result, Ok(Outcome::removed([1, 3])));
    let told = world.signals.since(mark).await;
    assert_eq!(ids(&removed(&told)), [1, 3]);
    assert_eq!(changes_of(&told, "Vcpus"), [2]);
    assert_eq!(changes_of(&told, "PendingRemovals"), [] as [u32; 0]);
    assert_eq!(machine.present().await, [0, 2]);

    // The gap is filled first.
    assert_eq!(machine.set(3).await, Ok(Outcome::added([1])));
    assert_eq!(machine.set(1).await, Ok(Outcome::removed([1, 2])));
    assert_eq!(qemu.threads().await.len(), 1);
}

/// Real QEMU (pseries) with firmware only, dbus-daemon.
#[tokio::test]
async fn a_pseries_grows_and_shrinks_by_whole_cores() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start(&world, "power", &SMT4).await;
    let machine = world.machine("power").await;
    assert_eq!(machine.vcpus().await.unwrap(), 4);
    assert_eq!(machine.max_vcpus().await.unwrap(), 64);
    assert_eq!(machine.vcpus_per_slot().await.unwrap(), 4);

    let mark = world.signals.mark().await;
    let eight: Vec<u32> = (4..12).collect();
    assert_eq!(machine.set(12).await, Ok(Outcome::added(eight.clone())));
    let told = world.signals.since(mark).await;
    let expected: Vec<Vcpu> = (4..12)
        .map(|id| Vcpu::by_request("power", id, &format!("vcpu{}", id / 4 * 4)))
        .collect();
    assert_eq!(added(&told), expected);
    assert_eq!(changes_of(&told, "Vcpus"), [12]);
    assert_eq!(qemu.count("device_add"), 2);

    // One thread a vCPU, as QEMU lists them.
    let rows = machine.rows().await;
    let threads = rows.iter().filter_map(|row| row.get("thread-id")?.as_u64());
    assert_eq!(threads.collect::<Vec<_>>(), qemu.threads().await);
    assert_eq!(rows[11]["core-id"], 8);
    assert_eq!(rows[11]["qom-path"], "/machine/peripheral/vcpu8");

    let mark = world.signals.mark().await;
    let result = machine.set(4).await;
    assert_eq!(result, Ok(Outcome::removed(eight.clone())));
    let told = world.signals.since(mark).await;
    let mut gone = removed(&told);
    gone.sort_by_key(|vcpu| vcpu.id);
    assert_eq!(gone, expected);
    assert_eq!(changes_of(&told, "Vcpus"), [4]);
    assert_eq!(changes_of(&told, "PendingRemovals"), [] as [u32; 0]);
    assert_eq!(qemu.count("device_del"), 2);
    assert_eq!(machine.present().await, [0, 1, 2, 3]);
    assert_eq!(qemu.threads().await.len(), 4);
}

/// Real QEMU (pseries) with firmware only, dbus-daemon.
#[tokio::test]
async fn a_part_of_a_pseries_core_is_denied() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start(&world, "power", &SMT4).await;
    let machine = world.machine("power").await;
    machine.set(8).await.unwrap();

    let mark = world.signals.mark().await;
    for (count, nearest) in [(6, "4 and 8"), (9, "8 and 12"), (63, "60 and 64")] {
        let failure = machine.set(count).await.unwrap_err();
        failure.assert(error_name::OUT_OF_RANGE, &["power", "groups of 4", nearest]);
    }
    let failure = machine.set(65).await.unwrap_err();
    failure.assert(error_name::OUT_OF_RANGE, &["power", "1 to 64"]);
    let together = "vCPUs 4-7 can only be added";
    let failure = machine.set_these(&[4, 6], false).await.unwrap_err();
    failure.assert(error_name::INVALID_VCPU, &["power", together]);
    let together = "vCPUs 8-11 can only be added";
    let failure = machine.set_these(&[11], true).await.unwrap_err();
    failure.assert(error_name::INVALID_VCPU, &["power", together]);
    assert_eq!(world.signals.since(mark).await, []);
    assert_eq!(qemu.count("device_add"), 1);
    assert_eq!(qemu.count("device_del"), 0);

    let result = machine.set_these(&[4, 5, 6, 7], false).await;
    assert_eq!(result, Ok(Outcome::removed([4, 5, 6, 7])));
    let gap = machine.set_these(&[12, 13, 14, 15], true).await;
    assert_eq!(gap, Ok(Outcome::added([12, 13, 14, 15])));
    assert_eq!(qemu.threads().await.len(), 8);
}

/// Real QEMU (pseries) with a Linux guest, dbus-daemon.
#[tokio::test]
async fn a_linux_on_a_pseries_takes_and_gives_up_whole_cores() {
    let world = World::without_polkit().await;
    let boot = Boot {
        hardware: Hardware::PSERIES_SMT4_LINUX,
        linux: true,
        ..SMT4
    };
    let mut qemu = Qemu::start(&world, "power", &boot).await;
    let machine = world.machine("power").await;
    qemu.online("0-3").await;

    let mark = world.signals.mark().await;
    let four = vec![4, 5, 6, 7];
    assert_eq!(machine.set(8).await, Ok(Outcome::added(four.clone())));
    qemu.online("0-7").await;
    let result = machine.set_patiently(4).await;
    assert_eq!(result, Ok(Outcome::removed(four.clone())));
    qemu.online("0-3").await;
    let told = world.signals.since(mark).await;
    assert_eq!(ids(&added(&told)), four);
    assert_eq!(ids(&removed(&told)), four);
    let pending = [json!(four), json!([])];
    assert_eq!(changes_of(&told, "PendingRemovals"), pending);
}

/// Real QEMU (pseries) with a Linux guest, dbus-daemon.
#[tokio::test]
async fn a_linux_on_a_pseries_keeps_a_core_that_it_needs() {
    let world = World::without_polkit().await;
    let boot = Boot {
        hardware: Hardware::PSERIES_LINUX,
        linux: true,
        ..SMT1
    };
    let mut qemu = Qemu::start(&world, "power", &boot).await;
    let machine = world.machine("power").await;
    qemu.online("0").await;
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
    qemu.online("0-1").await;
    qemu.order("offline 0").await;
    qemu.online("1").await;

    let mark = world.signals.mark().await;
    let failure = machine.set_patiently(1).await.unwrap_err();
    let reason = "the guest refused to give up the CPU";
    failure.assert(error_name::GUEST_REFUSED, &["power", "vCPU 1", reason]);
    let told = world.signals.since(mark).await;
    let expected = (Vcpu::by_request("power", 1, "vcpu1"), reason.to_owned());
    assert_eq!(removal_failed(&told), [expected]);
    assert_eq!(machine.pending().await, [] as [u32; 0]);
    assert_eq!(machine.present().await, [0, 1]);

    qemu.order("online 0").await;
    qemu.online("0-1").await;
    let result = machine.set_patiently(1).await;
    assert_eq!(result, Ok(Outcome::removed([1])));
    qemu.online("0").await;
}

/// Real QEMU (pseries) with a Linux guest, dbus-daemon. A PC's reset completes none.
#[tokio::test]
async fn a_reset_of_a_pseries_completes_a_removal() {
    let world = World::without_polkit().await;
    let boot = Boot {
        hardware: Hardware::PSERIES_SMT4_LINUX,
        linux: true,
        ..SMT4
    };
    let mut qemu = Qemu::start(&world, "power", &boot).await;
    let machine = world.machine("power").await;
    qemu.online("0-3").await;
    machine.set(8).await.unwrap();
    qemu.online("0-7").await;

    // A guest that stands still gives up nothing.
    qemu.execute("stop", json!({})).await;
    let four = vec![4, 5, 6, 7];
    assert_eq!(
        machine.set_async(4).await,
        Ok(Outcome::pending(four.clone()))
    );
    assert_eq!(machine.pending().await, four);
    let mark = world.signals.mark().await;
    qemu.execute("system_reset", json!({})).await;
    machine.wait_for("Vcpus", 4u32).await;
    let told = world
        .signals
        .wait("VcpuRemoved", mark, |told| removed(told).len() == 4);
    let expected = [4, 5, 6, 7].map(|id| Vcpu {
        uid: Some(0),
        ..Vcpu::by_cause("power", id, "vcpu4", "reset")
    });
    assert_eq!(removed(&told.await), expected);
    assert_eq!(machine.pending().await, [] as [u32; 0]);
    assert_eq!(machine.present().await, [0, 1, 2, 3]);
}

/// Real QEMU (pseries) with firmware only, dbus-daemon.
#[tokio::test]
async fn the_boot_core_of_a_pseries_stays() {
    let world = World::without_polkit().await;
    let mut qemu = Qemu::start(&world, "power", &SMT4).await;
    let machine = world.machine("power").await;
    machine.set(8).await.unwrap();

    let boot_core = [0, 1, 2, 3];
    let failure = machine.set_these(&boot_core, false).await.unwrap_err();
    failure.assert(error_name::NOT_REMOVABLE, &["power", "boot CPU"]);
    let failure = machine.set(2).await.unwrap_err();
    failure.assert(error_name::NOT_REMOVABLE, &["power", "is 4"]);
    assert_eq!(machine.rows().await[3]["removable"], false);
    assert_eq!(qemu.count("device_del"), 0);

    // It is as QEMU says.
    let path = machine.rows().await[0]["qom-path"].clone();
    let text = qemu.refusal("device_del", json!({"id": path})).await;
    assert_eq!(text, "Boot CPU core may not be unplugged");
}
