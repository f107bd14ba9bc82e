//! The autoscaler under systemd, with its own user, and real guests under load.

mod chart;
mod course;

use std::collections::HashMap;

use futures_util::StreamExt;
use vcpud::proxy::AutoscaleProxy;
use zbus::Variant;
use zbus::proxy::CacheProperties;

use crate::harness::*;

async fn proxy(host: &Host) -> AutoscaleProxy<'static> {
    let builder = AutoscaleProxy::builder(&host.connection);
    let builder = builder.cache_properties(CacheProperties::No);
    builder.build().await.expect("a proxy")
}

/// Ends the scaling of all machines, so that the service exits.
async fn disable_all(autoscaler: &AutoscaleProxy<'_>) {
    for name in autoscaler.list().await.expect("it answers").into_keys() {
        autoscaler.disable(&name).await.expect("root may");
    }
}

/// Waits until the autoscaler has the machine `name` with a number of vCPUs.
async fn reaches(autoscaler: &AutoscaleProxy<'_>, name: &str, is_reached: impl Fn(u32) -> bool) {
    let mut decisions = autoscaler.receive_decided().await.expect("the bus works");
    let reached = async {
        while let Some(decision) = decisions.next().await {
            let decision = decision.args().expect("suusa{sv}");
            if decision.machine == name && is_reached(decision.from) {
                return;
            }
        }
    };
    within("another number of vCPUs", reached).await;
}

#[tokio::test]
async fn a_guest_under_load_grows_and_shrinks() {
    let host = Host::enter().await;
    let autoscaler = proxy(&host).await;
    let guest = Guest::loaded("web", &[(0, 10), (2, 40), (0, 600)]).await;
    host.machine("web").await;
    // The name is activated, and the user of the program may set the number of vCPUs.
    let options = HashMap::from([
        ("max", Variant::from(2_u32)),
        ("down-window", "10s".into()),
        ("hold", "0s".into()),
    ]);
    autoscaler.enable("web", options).await.unwrap();
    let user = output("systemctl", &["show", "-P", "User", "vcpud-autoscale"]).await;
    assert_eq!(user.trim(), "vcpud-autoscale");
    reaches(&autoscaler, "web", |present| present == 2).await;
    assert_eq!(guest.vcpu_threads(), [0, 1]);
    reaches(&autoscaler, "web", |present| present == 1).await;
    guest.has_threads(&[0]).await;
    disable_all(&autoscaler).await;
}

#[tokio::test]
async fn users_need_an_authorization_and_the_autoscaler_may_set_vcpus_only() {
    let host = Host::enter().await;
    let _guest = Guest::paused("web").await;
    let machine = host.machine("web").await;
    let autoscaler = proxy(&host).await;
    autoscaler.list().await.expect("it is activated");
    let refused = User::ALICE
        .run("vcpuctl --json --no-ask-password autoscale web")
        .await;
    assert!(refused.is_err());
    let refused = User::ALICE
        .run("vcpuctl --no-ask-password autoscale web")
        .await;
    let complaint = refused.unwrap_err();
    // polkit answers the program about other users.
    assert!(
        complaint.contains("authentication is required"),
        "{complaint}"
    );
    assert_eq!(autoscaler.list().await.unwrap().len(), 0);
    // The rule allows nothing else.
    let as_program = async |line: &str| User::AUTOSCALER.run(line).await;
    as_program("vcpuctl set web 2").await.unwrap();
    assert_eq!(machine.vcpus().await, Ok(2));
    for line in [
        "vcpuctl --no-ask-password pin web 0 0",
        "vcpuctl --no-ask-password unregister web",
    ] {
        let complaint = as_program(line).await.unwrap_err();
        assert!(
            complaint.contains("authentication is required"),
            "{line}: {complaint}"
        );
    }
}
