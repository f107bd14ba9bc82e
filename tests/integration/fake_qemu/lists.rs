//! Exact vCPUs, and plans.

use std::collections::HashMap;

use serde_json::{Value, json};
use vcpud::names::error_name;

use crate::harness::*;

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn exactly_the_vcpus_of_a_list_come_and_go() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(2, 8));
    let machine = world.machine("web").await;

    let mark = world.signals.mark().await;
    assert_eq!(
        machine.set_these(&[5, 3, 1], true).await,
        Ok(Outcome::added([3, 5]))
    );
    assert_eq!(machine.present().await, [0, 1, 3, 5]);
    assert_eq!(
        machine.set_these(&[1, 5, 7], false).await,
        Ok(Outcome::removed([1, 5]))
    );
    assert_eq!(machine.present().await, [0, 3]);
    assert_eq!(machine.set_these(&[3], true).await, Ok(Outcome::default()));

    let told = world.signals.since(mark).await;
    assert_eq!(ids(&added(&told)), [3, 5]);
    assert_eq!(ids(&removed(&told)), [1, 5]);
    assert_eq!(peer.count("device_add"), 2);
    assert_eq!(peer.count("device_del"), 2);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_list_that_cannot_be_is_denied_whole() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    let beyond = machine.set_these(&[2, 4], true).await.unwrap_err();
    beyond.assert(error_name::INVALID_VCPU, &["web", "vCPU 4", "0 to 3"]);
    let boot = machine.set_these(&[0, 1], false).await.unwrap_err();
    boot.assert(error_name::NOT_REMOVABLE, &["web", "vCPU 0"]);

    let cores = world.peer("power", Model::pseries(1, 4));
    let power = world.machine("power").await;
    let part = power.set_these(&[4, 5], true).await.unwrap_err();
    part.assert(
        error_name::INVALID_VCPU,
        &["power", "vCPUs 4-7 can only be added"],
    );
    let core = power.set_these(&[4, 5, 6, 7], true).await;
    assert_eq!(core, Ok(Outcome::added([4, 5, 6, 7])));
    assert_eq!(cores.count("device_add"), 1);
    assert_eq!(peer.count("device_add") + peer.count("device_del"), 0);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn what_is_leaving_cannot_be_asked_back_before_it_has_left() {
    let world = World::without_polkit().await;
    let mut model = Model::x86(4, 4);
    model.removal = Removal::Held;
    let peer = world.peer("web", model);
    let machine = world.machine("web").await;
    assert_eq!(machine.set_async(3).await, Ok(Outcome::pending([3])));
    let busy = machine.set_these(&[3], true).await.unwrap_err();
    busy.assert(
        error_name::BUSY,
        &["web", "removal of vCPU 3 is still pending"],
    );
    let path = peer.model().unplug(3);
    peer.send(&deleted(&path));
    machine.wait_for("Vcpus", 3u32).await;
    assert_eq!(machine.set_these(&[3], true).await, Ok(Outcome::added([3])));
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_plan_is_what_would_be_done_and_changes_nothing() {
    let world = World::without_polkit().await;
    let mut model = Model::x86(4, 6);
    model.removal = Removal::Held;
    let peer = world.peer("web", model);
    let machine = world.machine("web").await;
    let plan = async |count| {
        let plan = machine.plan(count, HashMap::new()).await.unwrap();
        Value::Object(dict(&plan))
    };

    assert_eq!(plan(6).await, json!({"added": [4, 5], "removed": []}));
    assert_eq!(plan(4).await, json!({"added": [], "removed": []}));
    assert_eq!(machine.set_async(3).await, Ok(Outcome::pending([3])));
    assert_eq!(plan(2).await, json!({"added": [], "removed": [2, 3]}));

    let denied = plan(9).await;
    assert_eq!(denied["error"], error_name::OUT_OF_RANGE);
    assert_eq!(denied["reason-code"], "above-maximum");
    assert_eq!(plan(0).await["reason-code"], "below-minimum");
    assert!(
        denied["reason"].as_str().unwrap().contains("1 to 6"),
        "{denied:?}"
    );
    assert_eq!(denied["nearest"], json!([5]));
    let busy = plan(6).await;
    assert_eq!(busy["error"], error_name::BUSY);
    assert_eq!(busy["reason-code"], "removal-pending");
    assert_eq!(peer.count("device_add"), 0);
    assert_eq!(peer.count("device_del"), 1);

    peer.hang_up();
    machine.wait_for("State", "disconnected").await;
    let lost = plan(2).await;
    assert_eq!(lost["error"], error_name::DISCONNECTED);
    assert_eq!(lost["reason-code"], "disconnected");
}

/// Scripted QEMU, dbus-daemon. A QEMU with TCG aborts if it creates more vCPUs than the maximum in its life.
#[tokio::test]
async fn a_plan_counts_the_vcpus_that_tcg_created() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(2, 4));
    peer.script(|_, call| {
        let is_asked = call.command == "query-kvm";
        is_asked.then(|| vec![call.reply(json!({"enabled": false, "present": false}))])
    });
    let machine = world.machine("web").await;
    assert_eq!(machine.accelerator().await.unwrap(), "tcg");
    assert_eq!(machine.set(3).await, Ok(Outcome::added([2])));
    assert_eq!(machine.set(2).await, Ok(Outcome::removed([2])));
    let plan = async |count| {
        let plan = machine.plan(count, HashMap::new()).await.unwrap();
        Value::Object(dict(&plan))
    };
    assert_eq!(plan(3).await["added"], json!([2]));
    let failure = machine.set(4).await.unwrap_err();
    failure.assert(error_name::NOT_SUPPORTED, &["web", "has added 3"]);
    let reason = failure.text;
    let denied = json!({
        "error": failure.name, "reason": reason, "reason-code": "tcg-limit", "nearest": [3]
    });
    assert_eq!(plan(4).await, denied);
    let beyond = plan(5).await;
    let reason = beyond["reason"].as_str().unwrap();
    let told = [
        "can have 1 to 4 vCPUs; at present at most 3",
        "tcg adds at most 4",
    ];
    assert!(told.iter().all(|text| reason.contains(text)), "{reason}");
    assert_eq!(beyond["nearest"], json!([3]));
    assert_eq!(peer.count("device_add"), 1);
}

/// Scripted QEMU, dbus-daemon, polkitd. The rule gets the resulting number of a list.
#[tokio::test]
async fn a_rule_about_numbers_holds_for_lists() {
    let world = World::with_polkit(
        r#"polkit.addRule(function(action, subject) {
            if (action.id == "org.vcpud1.set-vcpus" && subject.user == "nobody")
                return parseInt(action.lookup("vcpus")) <= 3 ? polkit.Result.YES : polkit.Result.NO;
        });"#,
    )
    .await;
    let peer = world.peer("web", Model::x86(2, 8));
    let machine = world.machine("web").await;
    let set = async |vcpus: &[&str]| {
        let count = vcpus.len().to_string();
        let head = [
            "org.vcpud1",
            machine.path(),
            "org.vcpud1.Machine",
            "SetVcpu",
            "auba{sv}",
        ];
        let call = [&head[..], &[&count], vcpus, &["true", "0"]].concat();
        world.as_nobody(Interaction::Forbidden, &call).await
    };
    let failure = set(&["5", "6"]).await.unwrap_err();
    failure.assert(error_name::ACCESS_DENIED, &[]);
    assert_eq!(peer.count("device_add"), 0);
    assert_eq!(set(&["5"]).await.as_deref(), Ok("auauau 1 5 0 0"));
    let failure = set(&["6"]).await.unwrap_err();
    failure.assert(error_name::ACCESS_DENIED, &[]);
}
