//! What programs read: partial results of errors, permissions, origins, and desired values.

use std::collections::{BTreeSet, HashMap};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use vcpud::names::error_name;
use vcpud::proxy::MachineProxy;
use vcpud::signals::Signals as VcpudSignals;
use zbus::names::UniqueName;
use zbus::proxy::CacheProperties;
use zbus::{Message, OwnedVariant, Variant};

use crate::harness::*;

/// A rule that authorizes nobody for up to three vCPUs, and denies four.
const RULE: &str = r#"
polkit.addRule(function(action, subject) {
    if (action.id == "org.vcpud1.set-vcpus" && subject.user == "nobody") {
        var vcpus = action.lookup("vcpus");
        return vcpus == "4" ? polkit.Result.NO : vcpus == "3" ? polkit.Result.YES : null;
    }
});
"#;

/// Returns the second value of an error.
fn partial_result(error: &zbus::Error) -> HashMap<String, OwnedVariant> {
    let zbus::Error::MethodError(_, _, message) = error else {
        panic!("not an error of the service: {error}");
    };
    let body = message.body();
    let (_, partial): (String, _) = body.deserialize().expect("a text and a dictionary");
    partial
}

/// Returns the list of vCPUs under `key`.
fn list(partial: &HashMap<String, OwnedVariant>, key: &str) -> Vec<u32> {
    partial[key].clone().try_into().unwrap()
}

/// Scripted QEMU, dbus-daemon. The guest releases vCPU 3, refuses to release vCPU 2, and does not answer for 1.
#[tokio::test]
async fn an_error_has_the_result_so_far() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    machine.set(4).await.unwrap();
    peer.model().removal = Removal::Held;
    let options = HashMap::from([("timeout-usec", 10_000_000u64.into())]);
    let waiting = machine.set_vcpus(1, options);
    let answers = async {
        machine.wait_for("PendingRemovals", vec![1u32, 2, 3]).await;
        peer.send(&ost(2, Some("vcpu2"), 3, 1));
        machine.wait_for("PendingRemovals", vec![1u32, 3]).await;
        let path = peer.model().unplug(3);
        peer.send(&deleted(&path));
        machine.wait_for("PendingRemovals", vec![1u32]).await;
    };
    let (result, ()) = within("the answer", async { tokio::join!(waiting, answers) }).await;
    let error = result.unwrap_err();
    let partial = partial_result(&error);
    Failure::of(error).assert(error_name::REMOVAL_PENDING, &["still pending: vCPU 1"]);
    assert!(list(&partial, "added").is_empty());
    assert_eq!(list(&partial, "removed"), [3]);
    assert_eq!(list(&partial, "pending"), [1]);
    let refused: Vec<(u32, String)> = partial["refused"].clone().try_into().unwrap();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].0, 2);
    assert!(refused[0].1.contains("failed"), "{refused:?}");
}

/// Scripted QEMUs, dbus-daemon, polkitd, busctl as nobody.
#[tokio::test]
async fn a_user_can_ask_what_is_permitted() {
    let world = World::with_polkit(RULE).await;
    let peer = world.peer("web", Model::x86(1, 5));
    let machine = world.machine("web").await;
    let changes = peer.changing_calls();
    for (count, permission) in [("3", "yes"), ("4", "no"), ("5", "challenge"), ("6", "na")] {
        let call = [
            "org.vcpud1",
            machine.path(),
            "org.vcpud1.Machine",
            "CanSetVcpus",
            "u",
            count,
        ];
        // A question to polkit never asks for a password.
        let answer = world.as_nobody(Interaction::Allowed, &call).await;
        assert_eq!(answer, Ok(format!("s \"{permission}\"")), "{count} vCPUs");
    }
    assert_eq!(machine.can_set_vcpus(4).await.unwrap(), "yes", "root");
    assert_eq!(machine.can_set_vcpus(0).await.unwrap(), "na");
    assert_eq!(peer.changing_calls(), changes);
}

/// A rule that sees only the operations of calls that change the tuning.
const TUNING_RULE: &str = r#"
polkit.addRule(function(action, subject) {
    if (action.id == "org.vcpud1.tune-vcpus" && subject.user == "nobody" && !action.lookup("vcpus")) {
        var operation = action.lookup("operation");
        return operation == "pin" ? polkit.Result.YES : operation == "scheduler" ? polkit.Result.NO : null;
    }
});
"#;

/// Scripted QEMU, dbus-daemon, polkitd, busctl as nobody. A machine without a unit has no control groups.
#[tokio::test]
async fn a_user_can_ask_which_changes_of_the_tuning_are_permitted() {
    let world = World::with_polkit(TUNING_RULE).await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let ask = async |operation| {
        let call = [
            "org.vcpud1",
            machine.path(),
            "org.vcpud1.Machine",
            "CanTune",
            "s",
            operation,
        ];
        world.as_nobody(Interaction::Allowed, &call).await
    };
    for (operation, permission) in [("pin", "yes"), ("scheduler", "no"), ("bandwidth", "na")] {
        let answer = ask(operation).await;
        assert_eq!(answer, Ok(format!("s \"{permission}\"")), "{operation}");
    }
    let failure = ask("vcpus").await.unwrap_err();
    failure.assert(
        error_name::INVALID_ARGS,
        &["pin, bandwidth, scheduler, cache"],
    );
    assert_eq!(machine.can_tune("scheduler").await.unwrap(), "yes", "root");

    peer.hang_up();
    machine.wait_for("State", "disconnected").await;
    assert_eq!(ask("pin").await, Ok("s \"na\"".to_owned()));
    let log = world.service.as_ref().unwrap().log();
    assert!(!log.contains(" authorized for uid"), "{log}");
}

/// Scripted QEMU, dbus-daemon, polkitd that does not answer.
#[tokio::test]
async fn questions_about_permissions_have_the_limits_of_changes() {
    let world = World::with_polkit("").await;
    let _peer = world.peer("web", Model::x86(1, 4));
    world.machine("web").await;
    let polkit = world.polkit.as_ref().unwrap();
    polkit.pause();
    let refused = world.with_nobody(async |manager| {
        let connection = manager.inner().connection();
        let path = manager.get_machine("web").await.unwrap();
        let machine = MachineProxy::builder(connection).path(path);
        let machine = machine.cache_properties(CacheProperties::No);
        let machine = machine.build().await.unwrap();
        let asks = (0..65).map(|_| machine.can_tune("pin"));
        let mut asks: FuturesUnordered<_> = asks.collect();
        // polkit has the others.
        within("a refusal", asks.next()).await.unwrap()
    });
    let failure = Failure::of(refused.await.unwrap_err());
    failure.assert(error_name::LIMIT_EXCEEDED, &["64 calls of user 65534"]);
    polkit.resume();
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn the_words_of_plans_and_permissions_are_features() {
    let world = World::without_polkit().await;
    let features = world.manager().await.features().await.unwrap();
    for word in ["can-set-vcpus", "can-tune", "plan-codes"] {
        assert!(features.contains(&word.to_owned()), "{features:?}");
    }
    assert!(features.is_sorted());
}

/// Scripted QEMUs, dbus-daemon.
#[tokio::test]
async fn a_machine_says_whose_it_is_and_why_it_is_known() {
    let mut world = World::without_service().await;
    let elsewhere = world.socket("db").with_file_name("elsewhere");
    let file = format!("qmp = \"{}\"\n", elsewhere.display());
    world.configure("machines.d/db.toml", &file);
    world.serve().await;
    let _web = world.peer("web", Model::x86(1, 4));
    let _db = Peer::start(&elsewhere, Model::x86(1, 4));
    let own = std::process::id();
    for (name, origin) in [("web", "socket"), ("db", "file")] {
        let machine = world.machine(name).await;
        assert_eq!(machine.origin().await.unwrap(), origin);
        assert_eq!(machine.owner().await.unwrap(), 0);
        assert_eq!(machine.registrant().await.unwrap(), u32::MAX);
        assert_eq!(machine.leader().await.unwrap(), own);
        let since = machine.since().await.unwrap();
        let now = std::time::SystemTime::now();
        let now = now.duration_since(std::time::UNIX_EPOCH).unwrap();
        let age = now.as_secs().checked_sub(since / 1_000_000);
        assert!(age.is_some_and(|age| age < 3600), "{since}");
    }
}

/// Scripted QEMU, dbus-daemon. A pin of a free vCPU changes nothing on the host.
#[tokio::test]
async fn what_was_set_can_be_read_and_watched() {
    let world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let mut changes = machine.receive_vcpu_changed().await.unwrap();
    machine.pin_vcpus(&[3], "0", HashMap::new()).await.unwrap();
    let mut changed = BTreeSet::new();
    while !changed.contains(&3) {
        let change = within("the signal", changes.next()).await.unwrap();
        changed.extend(change.args().unwrap().vcpus);
    }
    // The start of vCPU 0 can be a change too.
    changed.remove(&0);
    assert_eq!(changed, [3].into());

    let tuning = machine.get_tuning().await.unwrap();
    let pins: Vec<(u32, String)> = tuning["pins"].clone().try_into().unwrap();
    assert_eq!(pins, [(3, "0".to_owned())]);
    assert!(!tuning.contains_key("affinity"), "{tuning:?}");
    let rows = machine.rows().await;
    assert_eq!(rows[3]["desired-affinity"], "0");
    assert!(!rows[2].contains_key("desired-affinity"));

    machine.set(2).await.unwrap();
    let mut changed = Vec::new();
    while !changed.contains(&1) {
        let change = within("the signal", changes.next()).await.unwrap();
        changed.extend(change.args().unwrap().vcpus);
    }
}

/// Returns the sender of the next signal with the name `member`.
async fn sender_of(signals: &mut VcpudSignals, member: &str) -> UniqueName<'static> {
    let found = async {
        loop {
            let signal = signals.next().await.unwrap().unwrap();
            let header = signal.header();
            if header.member().is_some_and(|found| found == member) {
                return header.sender().unwrap().to_owned();
            }
        }
    };
    within(member, found).await
}

/// Scripted QEMU, dbus-daemon, a raw client as nobody that sends signals to the client alone.
#[tokio::test]
async fn clients_ignore_signals_that_other_users_send_to_them() {
    let mut world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let client = world.bus.connect().await;
    let mut signals = VcpudSignals::subscribe(&client, None).await.unwrap();

    let bus = "org.freedesktop.DBus";
    let own = client.unique_name().unwrap().as_str();
    let mut nobody = RawClient::nobody(&world.bus).await;
    let owner = Message::signal("/org/freedesktop/DBus", bus, "NameOwnerChanged");
    let name = nobody.name.to_string();
    nobody
        .call(owner.destination(own), &("org.vcpud1", "", name))
        .await;
    let removed = Message::signal(machine.path(), "org.vcpud1.Machine", "VcpuRemoved");
    let body = (7u32, "vcpu7", HashMap::<&str, Variant<'_>>::new());
    nobody.call(removed.destination(own), &body).await;
    // The bus has delivered the signals when it answers.
    let get_id = Message::method_call("/", "GetId").destination(bus);
    let call = nobody.call(get_id, &()).await;
    nobody.reply(call).await;

    machine.set(2).await.unwrap();
    machine.set_patiently(1).await.unwrap();
    let service = sender_of(&mut signals, "VcpuRemoved").await;
    assert_ne!(service, *nobody.name);
    world.service.take().unwrap().kill().await;
    world.serve().await;
    let sender = sender_of(&mut signals, "NameOwnerChanged").await;
    assert_eq!(sender, bus);
    world.machine("web").await.set(2).await.unwrap();
    let next = sender_of(&mut signals, "VcpuAdded").await;
    assert!(next != service && next != *nobody.name, "{next}");
}
