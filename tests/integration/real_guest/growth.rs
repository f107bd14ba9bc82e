//! A guest grows and shrinks.

use std::path::PathBuf;

use vcpud::names::error_name;

use crate::harness::*;

/// Real QEMU with a Linux guest, dbus-daemon and polkitd.
#[tokio::test]
async fn a_guest_grows_and_shrinks() {
    let world = World::with_polkit("").await;
    let mut qemu = Qemu::start(&world, "web", &Boot::default()).await;
    let machine = world.machine("web").await;
    qemu.online("0").await;

    grows(&world, &machine, &mut qemu).await;
    lists_what_qemu_has(&machine, &mut qemu).await;
    does_not_grow_too_far(&world, &machine, &mut qemu).await;
    shrinks(&world, &machine, &mut qemu).await;
}

async fn grows(world: &World, machine: &Machine, qemu: &mut Qemu) {
    let mark = world.signals.mark().await;
    assert_eq!(machine.set(4).await, Ok(Outcome::added([1, 2, 3])));

    let told = world.signals.since(mark).await;
    let expected: Vec<Vcpu> = (1..4)
        .map(|id| Vcpu::by_request("web", id, &format!("vcpu{id}")))
        .collect();
    assert_eq!(added(&told), expected);
    assert_eq!(changes_of(&told, "Vcpus"), [4]);
    assert_eq!(told.len(), 4, "{told:?}");
    qemu.online("0-3").await;
}

async fn lists_what_qemu_has(machine: &Machine, qemu: &mut Qemu) {
    let leader = machine.leader().await.unwrap();
    assert_eq!(leader, qemu.pid());
    assert_eq!(machine.state().await.unwrap(), "running");
    assert_eq!(machine.accelerator().await.unwrap(), "tcg");
    assert_eq!(machine.architecture().await.unwrap(), "x86_64");
    assert_eq!(machine.hotplug_method().await.unwrap(), "device-add");
    assert_eq!(machine.max_vcpus().await.unwrap(), MAX_VCPUS);

    let rows = machine.rows().await;
    assert_eq!(rows.len(), MAX_VCPUS as usize);
    assert_eq!(machine.present().await, [0, 1, 2, 3]);
    assert_eq!(rows[0]["removable"], false);
    assert_eq!(rows[3]["removable"], true);
    assert_eq!(rows[3]["alias"], "vcpu3");
    assert_eq!(rows[3]["order"], 4);
    assert_eq!(rows[3]["qom-path"], "/machine/peripheral/vcpu3");

    let threads = rows.iter().filter_map(|row| row.get("thread-id"));
    let threads: Vec<u64> = threads.map(|thread| thread.as_u64().unwrap()).collect();
    assert_eq!(threads, qemu.threads().await);
    for thread in threads {
        let task = PathBuf::from(format!("/proc/{leader}/task/{thread}"));
        assert!(task.exists(), "{} is no task of QEMU", task.display());
    }
}

async fn does_not_grow_too_far(world: &World, machine: &Machine, qemu: &mut Qemu) {
    let mark = world.signals.mark().await;
    for count in [0, MAX_VCPUS + 1] {
        let failure = machine.set(count).await.unwrap_err();
        failure.assert(error_name::OUT_OF_RANGE, &["web", "1 to 64"]);
    }
    assert_eq!(world.signals.since(mark).await, []);
    assert_eq!(qemu.threads().await.len(), 4);
}

async fn shrinks(world: &World, machine: &Machine, qemu: &mut Qemu) {
    let mark = world.signals.mark().await;
    let removals = machine.set_patiently(1).await;
    assert_eq!(removals, Ok(Outcome::removed([1, 2, 3])));

    let told = world.signals.since(mark).await;
    let mut gone = removed(&told);
    gone.sort_by_key(|vcpu| vcpu.id);
    let expected: Vec<Vcpu> = (1..4)
        .map(|id| Vcpu::by_request("web", id, &format!("vcpu{id}")))
        .collect();
    assert_eq!(gone, expected);
    assert_eq!(changes_of(&told, "Vcpus").last(), Some(&1.into()));
    assert_eq!(machine.pending().await, [] as [u32; 0]);
    assert_eq!(machine.present().await, [0]);
    assert_eq!(qemu.threads().await.len(), 1);
    qemu.online("0").await;
}
