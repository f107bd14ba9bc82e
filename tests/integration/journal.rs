//! The fields of the entries of the journal.

use std::collections::HashMap;

use vcpud::proxy::AutoscaleProxy;

use crate::harness::*;

/// Checks that the entries about the machine `web`, and no others, have `VM_NAME`.
fn assert_names(entries: &[Entry]) {
    for entry in entries {
        let is_about = entry["MESSAGE"].starts_with("web: ");
        let name = entry.get("VM_NAME").map(String::as_str);
        assert_eq!(name, is_about.then_some("web"), "{entry:?}");
        assert!(!entry.contains_key("MACHINE"), "{entry:?}");
    }
}

/// Scripted QEMU and journald, dbus-daemon, busctl as nobody.
#[tokio::test]
async fn each_entry_about_a_machine_names_it() {
    let world = World::without_service().await;
    let mut journal = Journal::start(&world.bus);
    let mut command = journal.command(env!("CARGO_BIN_EXE_vcpud"));
    command
        .env("DBUS_SYSTEM_BUS_ADDRESS", world.bus.address())
        .env("RUNTIME_DIRECTORY", world.bus.runtime_directory())
        .env(
            "CONFIGURATION_DIRECTORY",
            world.bus.configuration_directory(),
        );
    let _service = Process::spawn("vcpud", &mut command);
    owned(&world.connection, "org.vcpud1").await;
    let peer = world.peer("web", Model::x86(1, 4));
    journal.has("web: connected to QEMU").await;
    let machine = world.machine("web").await;
    machine.set(2).await.unwrap();
    let added = journal.has("web: vCPU 1 added").await;
    assert_eq!(
        (added["VCPU"].as_str(), added["REQUEST_UID"].as_str()),
        ("1", "0")
    );
    assert!(added.contains_key("MESSAGE_ID"), "{added:?}");
    let denied = world.set_as_nobody(Interaction::Forbidden, &machine, 3);
    denied.await.unwrap_err();
    let denied = journal.has("\"add\" denied for uid 65534").await;
    assert_eq!(denied["OPERATION"], "add");
    peer.hang_up();
    journal.has("web: disconnected").await;
    let manager = world.manager().await;
    manager.unregister_machine("web").await.unwrap();
    journal.has("web: unregistered").await;
    assert_names(&journal.entries);
}

/// Scripted QEMU and journald, dbus-daemon.
#[tokio::test]
async fn each_entry_of_the_autoscaler_about_a_machine_names_it() {
    let world = World::without_polkit().await;
    let mut journal = Journal::start(&world.bus);
    let _peer = world.peer("web", Model::x86(1, 4));
    world.machine("web").await;
    Autoscaler::configure(&world, "autoscale.toml", "host-cpus = 64");
    let command = journal.command(env!("CARGO_BIN_EXE_vcpud-autoscale"));
    let mut command = Autoscaler::with_environment(&world, command);
    let _process = Process::spawn("vcpud-autoscale", &mut command);
    journal.has("ready").await;
    let autoscaler = AutoscaleProxy::new(&world.connection).await.unwrap();
    let options = HashMap::from([("min", 2_u32.into())]);
    autoscaler.enable("web", options).await.unwrap();
    journal.has("web: scaled, mode on").await;
    let change = journal.has("web: sets 2 vCPUs instead of 1").await;
    assert_eq!(change["REASON_CODE"], "below-min");
    autoscaler.disable("web").await.unwrap();
    journal.has("web: no longer scaled").await;
    assert_names(&journal.entries);
}
