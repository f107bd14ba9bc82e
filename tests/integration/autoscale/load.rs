//! Machines under load. The policy has tests of its own in `src/autoscale`; these are about the service.

use std::collections::HashMap;

use futures_util::StreamExt;
use vcpud::proxy::AutoscaleProxy;
use zbus::Variant;

use super::scripted::{Scripted, State};
use crate::harness::*;

/// Begins to scale `web` with windows that are short.
async fn enable(proxy: &AutoscaleProxy<'_>, options: &[(&'static str, Variant<'static>)]) {
    let windows: [(&str, Variant<'_>); 2] =
        [("up-window", "2s".into()), ("down-window", "10s".into())];
    let mut all = HashMap::from(windows);
    all.extend(options.iter().map(|(key, value)| (*key, value.clone())));
    proxy.enable("web", all).await.unwrap();
}

/// Scripted vcpud, dbus-daemon.
#[tokio::test]
async fn the_number_of_vcpus_follows_the_load() {
    let world = World::without_service().await;
    let vcpud = Scripted::start(&world, State::default()).await;
    let autoscaler = Autoscaler::start(&world).await;
    enable(&autoscaler.proxy, &[("max", 6_u32.into())]).await;
    vcpud.state().demand = 20.0;
    let grown = |all: &[(u32, u32)]| all.last().is_some_and(|(_, to)| *to == 6);
    let requests = vcpud.requests("the maximum", grown).await;
    assert!(requests.iter().all(|(from, to)| from < to), "{requests:?}");
    let explanation = autoscaler.explains("web", "at-max").await;
    assert_eq!(
        (&explanation["present"], &explanation["goal"]),
        (&6.into(), &6.into())
    );
    assert!(
        explanation["used"].as_f64().unwrap() > 5.0,
        "{explanation:?}"
    );
    vcpud.state().demand = 0.2;
    let shrunk = |all: &[(u32, u32)]| all.last().is_some_and(|(_, to)| *to == 1);
    vcpud.requests("the minimum", shrunk).await;
    vcpud.state().demand = 20.0;
    vcpud.state().pending = 1;
    autoscaler.explains("web", "removal-pending").await;
    // The state comes with a signal, which the policy of the bus must let through.
    vcpud.pause(&world).await;
    autoscaler.explains("web", "not-running").await;
}

/// Scripted vcpud, dbus-daemon.
#[tokio::test]
async fn a_full_host_gets_no_more_vcpus() {
    let world = World::without_service().await;
    let state = State {
        present: 4,
        demand: 4.0,
        supply: 2.0,
        ..State::default()
    };
    let vcpud = Scripted::start(&world, state).await;
    let autoscaler = Autoscaler::start(&world).await;
    enable(&autoscaler.proxy, &[]).await;
    let explanation = autoscaler.explains("web", "steal").await;
    assert!(
        explanation["stolen"].as_f64().unwrap() > 1.5,
        "{explanation:?}"
    );
    assert_eq!(vcpud.requested(), []);
}

/// Scripted vcpud, dbus-daemon.
#[tokio::test]
async fn observation_decides_and_changes_nothing() {
    let world = World::without_service().await;
    let vcpud = Scripted::start(&world, State::default()).await;
    let autoscaler = Autoscaler::start(&world).await;
    let mut decisions = autoscaler.proxy.receive_decided().await.unwrap();
    vcpud.state().demand = 3.0;
    enable(&autoscaler.proxy, &[("mode", "observe".into())]).await;
    let decided = async {
        loop {
            let decision = decisions.next().await.unwrap();
            let decision = decision.args().unwrap();
            if decision.to > decision.from {
                return (decision.machine.clone(), dict(&decision.details));
            }
        }
    };
    let (machine, details) = within("a decision", decided).await;
    assert_eq!(
        (machine.as_str(), &details["mode"]),
        ("web", &"observe".into())
    );
    assert_eq!(vcpud.requested(), []);
}

/// Scripted vcpud, dbus-daemon.
#[tokio::test]
async fn a_guest_that_refuses_is_left_alone_for_a_while() {
    let world = World::without_service().await;
    let state = State {
        present: 4,
        refuses: true,
        ..State::default()
    };
    let vcpud = Scripted::start(&world, state).await;
    let autoscaler = Autoscaler::start(&world).await;
    enable(&autoscaler.proxy, &[("max", 4_u32.into())]).await;
    let explanation = autoscaler.explains("web", "failure-backoff").await;
    assert_eq!(explanation["failure"], "the guest is busy");
    assert_eq!(vcpud.requested().len(), 1);
}

/// Scripted vcpud, dbus-daemon.
#[tokio::test]
async fn a_change_that_is_reverted_before_the_next_sample_stays() {
    let world = World::without_service().await;
    let vcpud = Scripted::start(&world, State::default()).await;
    let autoscaler = Autoscaler::start(&world).await;
    enable(&autoscaler.proxy, &[]).await;
    autoscaler.explains("web", "in-band").await;
    vcpud.set(&world, 3).await;
    vcpud.set(&world, 1).await;
    autoscaler.explains("web", "hold").await;
}

/// Scripted vcpud, dbus-daemon.
#[tokio::test]
async fn a_hold_survives_the_death_of_the_autoscaler() {
    let world = World::without_service().await;
    let vcpud = Scripted::start(&world, State::default()).await;
    let mut autoscaler = Autoscaler::start(&world).await;
    enable(&autoscaler.proxy, &[("hold", "1h".into())]).await;
    autoscaler.explains("web", "in-band").await;
    vcpud.set(&world, 6).await;
    autoscaler.explains("web", "hold").await;
    autoscaler.process.kill().await;
    let autoscaler = Autoscaler::start(&world).await;
    autoscaler.explains("web", "hold").await;
    assert_eq!(vcpud.requested(), []);
}

/// Scripted vcpud, dbus-daemon.
#[tokio::test]
async fn other_calls_do_not_wait_for_enable() {
    let world = World::without_service().await;
    let vcpud = Scripted::start(&world, State::default()).await;
    let autoscaler = Autoscaler::start(&world).await;
    vcpud.hang(true);
    let served = async {
        for attempt in 1.. {
            let enabled = autoscaler.proxy.enable("web", HashMap::new());
            let others = async {
                vcpud.is_asked(attempt).await;
                autoscaler.proxy.list().await.unwrap();
            };
            tokio::select! {
                biased;
                // It fails after 3 s, which can be too early on a busy machine.
                result = enabled => assert!(result.is_err(), "{result:?}"),
                () = others => return,
            }
        }
    };
    within("the reply of List before that of Enable", served).await;
}

/// Scripted vcpud, dbus-daemon.
#[tokio::test]
async fn pinned_vcpus_stay() {
    let world = World::without_service().await;
    let state = State {
        present: 6,
        pinned: vec![0, 3],
        ..State::default()
    };
    let vcpud = Scripted::start(&world, state).await;
    let autoscaler = Autoscaler::start(&world).await;
    enable(&autoscaler.proxy, &[]).await;
    vcpud.requests("a removal", |all| all == [(6, 4)]).await;
    let explanation = autoscaler.explains("web", "pinned").await;
    assert_eq!(
        (&explanation["floor"], &explanation["goal"]),
        (&4.into(), &4.into())
    );
}

/// Scripted vcpud, dbus-daemon.
#[tokio::test]
async fn a_vcpud_that_hangs_or_ends_is_waited_for() {
    let world = World::without_service().await;
    let vcpud = Scripted::start(&world, State::default()).await;
    let autoscaler = Autoscaler::start(&world).await;
    enable(&autoscaler.proxy, &[]).await;
    autoscaler.explains("web", "in-band").await;
    vcpud.hang(true);
    vcpud.state().demand = 4.0;
    // Callers are served.
    let listed = within("the list", autoscaler.proxy.list()).await.unwrap();
    assert_eq!(dict(&listed["web"])["mode"], "on");
    let explanation = autoscaler.explains("web", "stale").await;
    assert!(explanation.contains_key("sampling-error"));
    vcpud.hang(false);
    vcpud.requests("an addition", |all| !all.is_empty()).await;
    world.connection.release_name("org.vcpud1").await.unwrap();
    autoscaler.explains("web", "no-machine").await;
    world.connection.request_name("org.vcpud1").await.unwrap();
    autoscaler.explains("web", "no-data").await;
}
