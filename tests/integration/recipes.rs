//! The rules that are installed as examples, with the real polkitd.
//!
//! A rule that throws makes polkit deny the call. So a call that no rule is about must fail for want of
//! a password, not be denied.

use std::fs;

use vcpud::names::error_name;

use crate::harness::*;

const OWNER: &str = include_str!("../../polkit/examples/50-vcpud-owner.rules");
const RESIZE: &str = include_str!("../../polkit/examples/50-vcpud-group-resize.rules");
const REGISTER: &str = include_str!("../../polkit/examples/50-vcpud-group-register.rules");

const MANAGER: [&str; 3] = ["org.vcpud1", "/org/vcpud1", "org.vcpud1.Manager"];

/// The rules, for the group of the user `nobody`.
fn for_nobody(rules: &[&str]) -> String {
    rules.concat().replace("vm-operators", "nogroup")
}

/// Calls a method of the root object as nobody.
async fn manage(world: &World, call: &[&str]) -> Result<String, Failure> {
    let call = [&MANAGER, call].concat();
    world.as_nobody(Interaction::Forbidden, &call).await
}

/// Calls a method of a machine as nobody.
async fn call(world: &World, machine: &Machine, call: &[&str]) -> Result<String, Failure> {
    let call = [&["org.vcpud1", machine.path(), "org.vcpud1.Machine"], call].concat();
    world.as_nobody(Interaction::Forbidden, &call).await
}

/// The call needs a password.
#[track_caller]
fn assert_unauthorized(result: Result<String, Failure>) {
    let failure = result.expect_err("no rule authorizes it");
    failure.assert(error_name::INTERACTIVE_AUTHORIZATION_REQUIRED, &[]);
}

/// Scripted QEMUs, one of them in front of nobody's socat, dbus-daemon, polkitd, busctl as nobody.
#[tokio::test]
async fn the_owner_resizes_tunes_and_unregisters_a_machine() {
    let world = World::with_polkit(&for_nobody(&[OWNER, REGISTER])).await;
    let (_process, ours) = world.nobody_listens(&world.socket("own")).await;
    let peer = Peer::on(ours, Model::x86(1, 4));
    let _other = world.peer("roots", Model::x86(1, 4));
    let (own, roots) = (world.machine("own").await, world.machine("roots").await);

    let set = world.set_as_nobody(Interaction::Forbidden, &own, 2).await;
    assert_eq!(set, Ok("auauau 1 1 0 0".to_owned()));
    assert_unauthorized(world.set_as_nobody(Interaction::Forbidden, &roots, 2).await);

    let schedule =
        |policy, priority| ["SetScheduler", "ausia{sv}", "1", "3", policy, priority, "0"];
    let pin = ["PinVcpus", "ausa{sv}", "1", "3", "0", "0"];
    for allowed in [&schedule("batch", "0")[..], &pin] {
        assert_eq!(call(&world, &own, allowed).await, Ok(String::new()));
        assert_unauthorized(call(&world, &roots, allowed).await);
    }
    for policy in ["fifo", "rr"] {
        assert_unauthorized(call(&world, &own, &schedule(policy, "1")).await);
    }

    // A machine that the owner did not register, one that does not exist, and none at all.
    for name in ["own", "none"] {
        assert_unauthorized(manage(&world, &["UnregisterMachine", "s", name]).await);
    }
    assert_unauthorized(manage(&world, &["Reload"]).await);

    let directory = world.bus.directory().join("qemu");
    fs::create_dir(&directory).unwrap();
    let socket = directory.join("qmp");
    let (_process, ours) = world.nobody_listens(&socket).await;
    let _peer = Peer::on(ours, Model::x86(1, 4));
    let socket = socket.to_str().expect("UTF-8");
    let register = ["RegisterMachine", "ssa{sv}", "65534-vm", socket, "0"];
    manage(&world, &register).await.unwrap();
    let unregister = ["UnregisterMachine", "s", "65534-vm"];
    assert_eq!(manage(&world, &unregister).await, Ok(String::new()));
    assert_eq!(peer.count("device_add"), 1);
}

/// Scripted QEMUs, dbus-daemon, polkitd, busctl as nobody.
#[tokio::test]
async fn a_group_resizes_machines_by_name_up_to_a_number() {
    let world = World::with_polkit(&for_nobody(&[RESIZE])).await;
    let _peers = ["web-1", "web", "db-1"].map(|name| world.peer(name, Model::x86(1, 16)));
    let web = world.machine("web-1").await;
    let set = world.set_as_nobody(Interaction::Forbidden, &web, 8).await;
    assert!(set.is_ok(), "{set:?}");
    assert_unauthorized(world.set_as_nobody(Interaction::Forbidden, &web, 9).await);
    for name in ["web", "db-1"] {
        let machine = world.machine(name).await;
        assert_unauthorized(
            world
                .set_as_nobody(Interaction::Forbidden, &machine, 2)
                .await,
        );
    }
    assert_unauthorized(call(&world, &web, &["PinVcpus", "ausa{sv}", "0", "0", "0"]).await);
    assert_unauthorized(manage(&world, &["Reload"]).await);
}

/// Scripted QEMUs, one of them in front of nobody's socat, dbus-daemon, polkitd, busctl as nobody.
#[tokio::test]
async fn a_group_registers_its_own_machines_under_its_own_names() {
    let world = World::with_polkit(&for_nobody(&[REGISTER])).await;
    let directory = world.bus.directory().join("qemu");
    fs::create_dir(&directory).unwrap();
    let (own, roots) = (directory.join("own"), directory.join("roots"));
    let (_process, ours) = world.nobody_listens(&own).await;
    let _peer = Peer::on(ours, Model::x86(1, 4));
    let other = Peer::start(&roots, Model::x86(1, 4));
    let [own, roots] = [&own, &roots].map(|path| path.to_str().expect("UTF-8"));

    let none = directory.join("none");
    let none = none.to_str().expect("UTF-8");
    for (name, path, options) in [
        ("65534-vm", roots, &["0"][..]),
        ("65534-vm", none, &["0"]),
        ("nobody-vm", own, &["0"]),
        ("655340-vm", own, &["0"]),
        ("vm", own, &["0"]),
        ("65534-vm", own, &["1", "scheduler", "s", "batch"]),
    ] {
        let call = [&["RegisterMachine", "ssa{sv}", name, path], options].concat();
        assert_unauthorized(manage(&world, &call).await);
    }
    assert_unauthorized(manage(&world, &["UnregisterMachine", "s", "65534-vm"]).await);
    assert_unauthorized(manage(&world, &["Reload"]).await);
    assert_eq!(other.clients(), 0, "nothing connects before authorization");

    let call = ["RegisterMachine", "ssa{sv}", "65534-vm", own, "0"];
    manage(&world, &call).await.unwrap();
    assert_eq!(world.names().await, ["65534-vm"]);
}
