//! Who may change the number of vCPUs.

use vcpud::names::error_name;

use crate::harness::*;

/// A rule that looks at every detail.
const RULE: &str = r#"
polkit.addRule(function(action, subject) {
    var details = ["machine", "uuid", "operation", "current", "vcpus"].map(function(key) {
        return action.lookup(key);
    });
    var allowed = [
        "web,c0ffee00-1234-4abc-8def-0123456789ab,add,1,3",
        "web,c0ffee00-1234-4abc-8def-0123456789ab,remove,3,2",
    ];
    if (action.id == "org.vcpud1.set-vcpus" && subject.user == "nobody" &&
        allowed.indexOf(details.join(",")) >= 0) {
        return polkit.Result.YES;
    }
});
"#;

const NOBODY: u32 = 65534;

/// Scripted QEMUs, dbus-daemon, polkitd, busctl as nobody.
#[tokio::test]
async fn a_rule_can_let_a_user_resize_one_machine() {
    assert!(RULE.contains(UUID));
    let world = World::with_polkit(RULE).await;
    let peer = world.peer("web", Model::x86(1, 4));
    let other = world.peer("db", Model::x86(1, 4));
    let web = world.machine("web").await;
    let db = world.machine("db").await;
    let set = |machine, count| world.set_as_nobody(Interaction::Forbidden, machine, count);

    let mark = world.signals.mark().await;
    assert_eq!(set(&web, 3).await, Ok("auauau 2 1 2 0 0".to_owned()));
    let came = added(&world.signals.since(mark).await);
    assert_eq!(ids(&came), [1, 2]);
    assert!(came.iter().all(|vcpu| vcpu.uid == Some(NOBODY)), "{came:?}");

    for (machine, count) in [(&web, 4), (&web, 1), (&db, 3)] {
        let failure = set(machine, count).await.unwrap_err();
        failure.assert(error_name::INTERACTIVE_AUTHORIZATION_REQUIRED, &[]);
    }
    assert_eq!(peer.count("device_add"), 2);
    assert_eq!(peer.count("device_del"), 0);
    assert_eq!(other.count("device_add"), 0);

    let mark = world.signals.mark().await;
    assert_eq!(set(&web, 2).await, Ok("auauau 0 1 2 0".to_owned()));
    let gone = removed(&world.signals.since(mark).await);
    assert_eq!((gone[0].id, gone[0].uid), (2, Some(NOBODY)));
}

/// Scripted QEMU, dbus-daemon, polkitd, busctl as nobody.
#[tokio::test]
async fn whom_polkit_does_not_let_pass_changes_nothing() {
    let world = World::with_polkit("").await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let asked = peer.all_calls();

    let mark = world.signals.mark().await;
    for (interaction, error) in [
        (
            Interaction::Forbidden,
            error_name::INTERACTIVE_AUTHORIZATION_REQUIRED,
        ),
        // There is nobody to type a password.
        (Interaction::Allowed, error_name::ACCESS_DENIED),
    ] {
        // Not even whether it could be done is told.
        for count in [3, 99] {
            let result = world.set_as_nobody(interaction, &machine, count).await;
            result.unwrap_err().assert(error, &["org.vcpud1.set-vcpus"]);
        }
    }
    assert_eq!(world.signals.since(mark).await, []);
    assert_eq!(peer.all_calls(), asked, "QEMU was asked something");
    // Root may, and everyone may read.
    assert_eq!(machine.set(2).await, Ok((vec![1], vec![], vec![])));
    let call = [
        "org.vcpud1",
        machine.path(),
        "org.vcpud1.Machine",
        "ListVcpus",
    ];
    let listed = world
        .as_nobody(Interaction::Forbidden, &call)
        .await
        .unwrap();
    assert!(listed.starts_with("aa{sv} 4 "), "{listed}");
}

/// Scripted QEMU, dbus-daemon, polkitd, busctl as nobody.
#[tokio::test]
async fn a_rule_that_says_no_is_final() {
    let rule = "polkit.addRule(function() { return polkit.Result.NO; });";
    let world = World::with_polkit(rule).await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    for interaction in [Interaction::Forbidden, Interaction::Allowed] {
        let result = world.set_as_nobody(interaction, &machine, 3).await;
        result
            .unwrap_err()
            .assert(error_name::ACCESS_DENIED, &["org.vcpud1.set-vcpus"]);
    }
    assert_eq!(peer.count("device_add"), 0);
}

/// Scripted QEMU, dbus-daemon without polkitd, busctl as nobody.
#[tokio::test]
async fn without_polkit_only_root_may() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let asked = peer.all_calls();
    for interaction in [Interaction::Forbidden, Interaction::Allowed] {
        let result = world.set_as_nobody(interaction, &machine, 3).await;
        let failure = result.unwrap_err();
        failure.assert(error_name::ACCESS_DENIED, &["polkit did not answer"]);
    }
    assert_eq!(peer.all_calls(), asked, "QEMU was asked something");
    assert_eq!(machine.set(3).await, Ok((vec![1, 2], vec![], vec![])));
}

/// Scripted QEMUs, dbus-daemon, polkitd, busctl as nobody.
#[tokio::test]
async fn for_a_caller_who_leaves_before_polkit_answers_nothing_is_done() {
    let allow = "polkit.addRule(function() { return polkit.Result.YES; });";
    let world = World::with_polkit(allow).await;
    let web = world.peer("web", Model::x86(1, 4));
    let db = world.peer("db", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let other = world.machine("db").await;
    let (polkit, service) = (
        world.polkit.as_ref().unwrap(),
        world.service.as_ref().unwrap(),
    );

    polkit.pause();
    let call = world.set_as_nobody(Interaction::Allowed, &machine, 3);
    tokio::select! {
        answer = call => panic!("polkit says nothing, and yet: {answer:?}"),
        () = service.has_logged("polkit is asked") => {} // busctl is killed here
    }
    service
        .has_logged("the caller left before polkit answered")
        .await;
    polkit.resume();
    // polkit answers in order, so it would have said yes to the former by now.
    let set = world.set_as_nobody(Interaction::Forbidden, &other, 2).await;
    assert_eq!(set, Ok("auauau 1 1 0 0".to_owned()));
    assert_eq!((web.count("device_add"), db.count("device_add")), (0, 1));
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn so_many_calls_and_no_more_may_be_under_way() {
    let world = World::without_polkit().await;
    let mut model = Model::x86(3, 4);
    model.removal = Removal::Held;
    let peer = world.peer("web", model);
    let machine = world.machine("web").await;
    // The bus lets a client wait for 128 replies.
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let client = world.machine_seen_by_another("web").await;
        for _ in 0..100 {
            let client = client.clone();
            calls.spawn(async move { client.set_patiently(2).await });
        }
    }
    let mut refused = 0;
    while refused < 600 - 512 {
        let failure = calls.join_next().await.unwrap().unwrap().unwrap_err();
        let text = "512 calls of all users are under way";
        failure.assert(error_name::LIMIT_EXCEEDED, &[text]);
        refused += 1;
    }
    // Who looks is served.
    assert_eq!(machine.pending().await, [2]);
    let path = peer.model().unplug(2);
    peer.send(&deleted(&path));
    while let Some(answer) = calls.join_next().await {
        let (added, removed, pending) = answer.unwrap().unwrap();
        // One that was slow found nothing left to do.
        assert!(removed.is_empty() || removed == [2]);
        assert!(added.is_empty() && pending.is_empty());
    }
    assert_eq!(peer.count("device_del"), 1);
    assert_eq!(machine.set(3).await, Ok((vec![2], vec![], vec![])));
}

/// Scripted QEMUs, dbus-daemon, polkitd, busctl as nobody.
#[tokio::test]
async fn a_qemu_that_takes_the_place_of_another_while_polkit_is_asked_is_not_changed() {
    let allow = "polkit.addRule(function() { return polkit.Result.YES; });";
    let world = World::with_polkit(allow).await;
    let socket = world.bus.directory().join("vm.sock");
    let file = format!("qmp = \"{}\"", socket.display());
    world.configure("machines.d/web.toml", &file);
    world.manager().await.reload().await.unwrap();
    let first = Peer::start(&socket, Model::x86(1, 4));
    let machine = world.machine("web").await;
    machine.wait_for("Uuid", UUID).await;
    let polkit = world.polkit.as_ref().unwrap();
    let service = world.service.as_ref().unwrap();
    let pin = [
        "org.vcpud1",
        machine.path(),
        "org.vcpud1.Machine",
        "PinVcpus",
        "ausa{sv}",
        "0",
        "0",
        "0",
    ];
    let other_uuid = "00000000-1111-4222-8333-444444444444";
    let replace = async {
        within("both questions", async {
            while service.log().matches("polkit is asked").count() < 2 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        drop(first);
        std::fs::remove_file(&socket).unwrap();
        let second = Peer::start(&socket, Model::x86(1, 4));
        second.script(move |_, call| {
            let reply = || vec![call.reply(serde_json::json!({"UUID": other_uuid}))];
            (call.command == "query-uuid").then(reply)
        });
        machine.wait_for("Uuid", other_uuid).await;
        polkit.resume();
        second
    };
    polkit.pause();
    let (set, pinned, second) = tokio::join!(
        world.set_as_nobody(Interaction::Allowed, &machine, 3),
        world.as_nobody(Interaction::Allowed, &pin),
        replace
    );
    for failure in [set.unwrap_err(), pinned.unwrap_err()] {
        failure.assert(error_name::BUSY, &["web", "UUID changed"]);
    }
    assert_eq!(second.count("device_add"), 0);
    let set = world.set_as_nobody(Interaction::Allowed, &machine, 2).await;
    assert_eq!(set, Ok("auauau 1 1 0 0".to_owned()));
}
