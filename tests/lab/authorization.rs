//! The polkit of the host says who may.

use crate::harness::*;

const ACCESS_DENIED: &str = "org.freedesktop.DBus.Error.AccessDenied";
const AUTHENTICATION_REQUIRED: &str = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired";

/// The group `vm-operators` may do as it likes with the machine `web-1`, and nobody may with others.
const RULE: &str = r#"
polkit.addRule(function(action, subject) {
    if (action.id != "org.vcpud1.set-vcpus") return polkit.Result.NOT_HANDLED;
    if (subject.isInGroup("vm-operators") && action.lookup("machine") == "web-1")
        return polkit.Result.YES;
    return polkit.Result.NO;
});
"#;

#[tokio::test]
async fn a_user_without_rights_is_refused() {
    let host = Host::enter().await;
    let guest = Guest::paused("web").await;
    let machine = host.machine("web").await;

    for user in [User::ALICE, User::OSCAR] {
        let failure = user.set(&machine, 2).await.unwrap_err();
        failure.assert(AUTHENTICATION_REQUIRED, &["org.vcpud1.set-vcpus"]);
    }
    assert_eq!(machine.vcpus().await, Ok(1));
    assert_eq!(guest.vcpu_threads(), [0]);
}

#[tokio::test]
async fn a_rule_lets_a_group_in_for_one_machine_only() {
    let host = Host::enter().await;
    let _rule = host.rule(RULE).await;
    let guests = (Guest::paused("web-1").await, Guest::paused("web-2").await);
    let first = host.machine("web-1").await;
    let second = host.machine("web-2").await;

    let served = User::OSCAR.set(&first, 2).await;
    assert_eq!(served.as_deref(), Ok("auauau 1 1 0 0"));
    for (user, machine) in [(User::OSCAR, &second), (User::ALICE, &first)] {
        let failure = user.set(machine, 3).await.unwrap_err();
        failure.assert(ACCESS_DENIED, &["org.vcpud1.set-vcpus"]);
    }
    assert_eq!(guests.0.vcpu_threads(), [0, 1]);
    assert_eq!(guests.1.vcpu_threads(), [0]);
}
