//! Authorization and its records.

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
    let asked = peer.changing_calls();

    let mark = world.signals.mark().await;
    for (interaction, error) in [
        (
            Interaction::Forbidden,
            error_name::INTERACTIVE_AUTHORIZATION_REQUIRED,
        ),
        // There is nobody to type a password.
        (Interaction::Allowed, error_name::ACCESS_DENIED),
    ] {
        // The error does not reveal whether the request is possible.
        for count in [3, 99] {
            let result = world.set_as_nobody(interaction, &machine, count).await;
            result.unwrap_err().assert(error, &["org.vcpud1.set-vcpus"]);
        }
    }
    assert_eq!(world.signals.since(mark).await, []);
    assert_eq!(
        peer.changing_calls(),
        asked,
        "QEMU was asked to change something"
    );
    // Root may, and everyone may read.
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
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
    let asked = peer.changing_calls();
    for interaction in [Interaction::Forbidden, Interaction::Allowed] {
        let result = world.set_as_nobody(interaction, &machine, 3).await;
        let failure = result.unwrap_err();
        failure.assert(error_name::ACCESS_DENIED, &["polkit did not answer"]);
    }
    assert_eq!(
        peer.changing_calls(),
        asked,
        "QEMU was asked to change something"
    );
    assert_eq!(machine.set(3).await, Ok(Outcome::added([1, 2])));
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
    service.has_logged("the caller has left").await;
    polkit.resume();
    // polkit answers in order, so it has already answered the first call.
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
        let text = "512 calls of root are in progress";
        failure.assert(error_name::LIMIT_EXCEEDED, &[text]);
        refused += 1;
    }
    // Reading is not limited.
    machine.wait_for("PendingRemovals", vec![2u32]).await;
    let path = peer.model().unplug(2);
    peer.send(&deleted(&path));
    while let Some(answer) = calls.join_next().await {
        let Outcome {
            added,
            removed,
            pending,
        } = answer.unwrap().unwrap();
        // One that was slow found nothing left to do.
        assert!(removed.is_empty() || removed == [2]);
        assert!(added.is_empty() && pending.is_empty());
    }
    assert_eq!(peer.count("device_del"), 1);
    assert_eq!(machine.set(3).await, Ok(Outcome::added([2])));
}

/// Authorizes nobody for just the calls whose details are `expected`: all details that are there, by
/// name.
fn rule_for(expected: &[&str]) -> String {
    format!(
        r#"
polkit.addRule(function(action, subject) {{
    var keys = ["address", "affinity", "async", "cpus", "current", "guest-agent", "guest-online",
        "leader", "list", "machine", "operation", "options", "owner", "period", "placement", "policy",
        "priority", "quota", "registrant", "scheduler", "schemata", "slice", "uid", "until", "uuid",
        "vcpus"];
    var details = keys.filter(function(key) {{ return action.lookup(key) !== undefined; }});
    details = details.map(function(key) {{ return key + "=" + action.lookup(key); }});
    var call = action.id.replace("org.vcpud1.", "") + " " + details.join(" ");
    if ({expected:?}.indexOf(call) >= 0) {{
        return polkit.Result.YES;
    }}
}});
"#
    )
}

/// Calls a method of `object` as the user nobody: its name, signature and arguments, as busctl takes them.
async fn call_as_nobody(world: &World, object: &str, call: &str) -> Result<String, Failure> {
    let interface = match object {
        "/org/vcpud1" => "org.vcpud1.Manager",
        _ => "org.vcpud1.Machine",
    };
    let words: Vec<&str> = call.split(' ').collect();
    let words = [&["org.vcpud1", object, interface], &words[..]].concat();
    world.as_nobody(Interaction::Forbidden, &words).await
}

/// Scripted QEMU, dbus-daemon, polkitd, busctl as nobody.
#[tokio::test]
async fn rules_get_the_values_of_every_call() {
    let uuid = UUID;
    let rule = rule_for(&[
        &format!(
            "set-vcpus async=false current=1 guest-online=false machine=web operation=add owner=0 registrant=0 uid=65534 until=present uuid={uuid} vcpus=2"
        ),
        &format!(
            "set-vcpus async=true current=2 guest-online=false list=2-3 machine=web operation=add owner=0 registrant=0 uid=65534 until=present uuid={uuid} vcpus=4"
        ),
        &format!(
            "tune-vcpus cpus=0 machine=web operation=pin owner=0 registrant=0 uid=65534 uuid={uuid} vcpus=4-5"
        ),
        &format!(
            "tune-vcpus machine=web operation=bandwidth owner=0 period=100000 quota=-1 registrant=0 uid=65534 uuid={uuid}"
        ),
        &format!(
            "tune-vcpus machine=web operation=scheduler owner=0 policy=fifo priority=9 registrant=0 uid=65534 uuid={uuid} vcpus="
        ),
        &format!(
            "tune-vcpus machine=web operation=cache owner=0 registrant=0 schemata=L3:0=f uid=65534 uuid={uuid} vcpus=0"
        ),
        "manage-machines machine=none operation=unregister uid=65534",
        &format!(
            "manage-machines machine=web operation=unregister owner=0 registrant=0 uid=65534 uuid={uuid}"
        ),
        "manage-machines address=/run/none leader=1 machine=new operation=register options=leader,placement,priority,scheduler,slice placement=scope priority=2 scheduler=rr slice=a.slice uid=65534",
        "manage-machines machine= operation=reload uid=65534",
    ]);
    let world = World::with_polkit(&rule).await;
    let socket = world.bus.directory().join("vm.sock");
    let _peer = Peer::start(&socket, Model::x86(1, 8));
    let manager = world.manager().await;
    let socket = socket.to_str().expect("UTF-8");
    let registered = manager.register_machine("web", socket, Default::default());
    within("RegisterMachine", registered).await.unwrap();
    let machine = world.machine("web").await;
    let path = machine.path();
    let register = "RegisterMachine ssa{sv} new unix:/run/none 5 placement s scope slice s a.slice \
                    scheduler s rr priority i 2 leader u 1";
    for (object, call) in [
        (path, "SetVcpus ua{sv} 2 0"),
        (path, "SetVcpu auba{sv} 2 3 2 true 1 async b true"),
        (path, "PinVcpus ausa{sv} 2 4 5 0 0"),
        (path, "SetBandwidth txa{sv} 100000 -- -1 0"),
        (path, "SetScheduler ausia{sv} 0 fifo 9 0"),
        (path, "SetCacheAllocation ausa{sv} 1 0 L3:0=f 0"),
        ("/org/vcpud1", "UnregisterMachine s none"),
        ("/org/vcpud1", register),
        ("/org/vcpud1", "Reload"),
        ("/org/vcpud1", "UnregisterMachine s web"),
    ] {
        let result = call_as_nobody(&world, object, call).await;
        let failure = result.err().map(|failure| failure.name);
        let unauthorized = error_name::INTERACTIVE_AUTHORIZATION_REQUIRED;
        assert_ne!(failure.as_deref(), Some(unauthorized), "{call}");
        assert_ne!(
            failure.as_deref(),
            Some(error_name::ACCESS_DENIED),
            "{call}"
        );
    }
}

/// Scripted QEMU, dbus-daemon, polkitd, busctl as nobody.
#[tokio::test]
async fn every_authorized_call_is_one_record() {
    let allow = "polkit.addRule(function() { return polkit.Result.YES; });";
    let world = World::with_polkit(allow).await;
    let _peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let path = machine.path();
    let register = r#"RegisterMachine ssa{sv} new unix:/run/"\e[31m 0"#.replace(r"\e", "\u{1b}");
    let calls = [
        (path, "SetVcpus ua{sv} 2 0", "add", r#"vcpus="2""#),
        (
            path,
            "SetVcpu auba{sv} 1 1 false 0",
            "remove",
            r#"list="1""#,
        ),
        (path, "PinVcpus ausa{sv} 1 3 0 0", "pin", r#"cpus="0""#),
        (
            path,
            "SetBandwidth txa{sv} 100000 5000 0",
            "bandwidth",
            r#"quota="5000""#,
        ),
        (
            path,
            "SetScheduler ausia{sv} 1 3 fifo 9 0",
            "scheduler",
            r#"policy="fifo" priority="9""#,
        ),
        (
            path,
            "SetCacheAllocation ausa{sv} 1 3 L3:0=f 0",
            "cache",
            r#"schemata="L3:0=f""#,
        ),
        (
            "/org/vcpud1",
            &register,
            "register",
            r#"address="/run/\"\u{1b}[31m""#,
        ),
        (
            "/org/vcpud1",
            "UnregisterMachine s web",
            "unregister",
            r#"owner="0""#,
        ),
        ("/org/vcpud1", "Reload", "reload", "()"),
    ];
    let service = world.service.as_ref().expect("it runs");
    for (object, call, operation, value) in calls {
        let _outcome = call_as_nobody(&world, object, call).await;
        let text = format!("operation \"{operation}\" authorized for uid 65534");
        service.has_logged(&text).await;
        let log = service.log();
        let records: Vec<&str> = log.lines().filter(|line| line.contains(&text)).collect();
        assert_eq!(records.len(), 1, "{records:?}");
        assert!(records[0].contains(value), "{records:?}");
    }
    assert_eq!(
        service.log().matches(" authorized for uid ").count(),
        calls.len()
    );
}

/// Scripted QEMU, dbus-daemon, polkitd, busctl as nobody.
#[tokio::test]
async fn arguments_have_limits_before_polkit_is_asked() {
    let world = World::with_polkit("").await;
    let _peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let many: Vec<String> = (0..17).map(|n| format!("option-{n} b true")).collect();
    let many = format!("17 {}", many.join(" "));
    let long = format!("1 {} b true", "x".repeat(65));
    let path = machine.path();
    for (call, error, text) in [
        (
            format!("SetVcpus ua{{sv}} 2 {many}"),
            error_name::INVALID_ARGS,
            "17 options",
        ),
        (
            format!("SetVcpus ua{{sv}} 2 {long}"),
            error_name::INVALID_ARGS,
            "65 bytes",
        ),
    ] {
        let result = call_as_nobody(&world, path, &call).await;
        result.unwrap_err().assert(error, &[text]);
    }
    let service = world.service.as_ref().expect("it runs");
    assert!(!service.log().contains("polkit is asked"));
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
        let are_asked = |log: &str| log.matches("polkit is asked").count() >= 2;
        service.logs("both questions", are_asked).await;
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

/// Scripted QEMU, dbus-daemon, polkitd, busctl as nobody.
#[tokio::test]
async fn a_denial_names_the_machine_and_is_logged_with_its_values() {
    let deny = "polkit.addRule(function() { return polkit.Result.NO; });";
    let world = World::with_polkit(deny).await;
    let _peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let denied = world.set_as_nobody(Interaction::Allowed, &machine, 3).await;
    let texts = ["web", "org.vcpud1.set-vcpus", "vcpud(8)"];
    denied
        .unwrap_err()
        .assert(error_name::ACCESS_DENIED, &texts);
    let service = world.service.as_ref().expect("it runs");
    let text = "web: operation \"add\" denied for uid 65534";
    service.has_logged(text).await;
    let log = service.log();
    let line = log.lines().find(|line| line.contains(text));
    assert!(
        line.is_some_and(|line| line.contains("vcpus=\"3\"")),
        "{log}"
    );
}
