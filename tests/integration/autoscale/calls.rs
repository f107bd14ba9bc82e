//! The interface and the files.

use std::collections::HashMap;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use vcpud::names::{AUTOSCALE_NAME, AUTOSCALE_PATH, error_name};
use vcpud::proxy::{AutoscaleProxy, error_reply};
use zbus::Variant;
use zbus::proxy::CacheProperties;

use crate::harness::*;

/// The name and the text of the error of a call.
fn error(result: zbus::Result<()>) -> (String, String) {
    error_reply(&result.unwrap_err()).expect("an error of the service")
}

/// Real QEMU with Linux, dbus-daemon.
#[tokio::test]
async fn the_limits_lead_to_changes_of_a_real_machine() {
    let world = World::without_polkit().await;
    let _qemu = Qemu::start(&world, "web", &Boot::default()).await;
    let machine = world.machine("web").await;
    machine
        .set_with(1, &[("until", "started".into())])
        .await
        .unwrap();
    let autoscaler = Autoscaler::start(&world).await;
    let mark = world.signals.mark().await;
    let enable = async |options: &str| {
        let arguments = format!("autoscale web {options}");
        let arguments: Vec<&str> = arguments.split(' ').collect();
        assert_eq!(world.vcpuctl(&arguments).await.0, 0);
    };
    enable("--min 2 --max 2").await;
    let came = |told: &[Signal]| ids(&added(told)) == [1];
    world.signals.wait("vCPU 1", mark, came).await;
    let (_, printed, _) = world.vcpuctl(&["explain", "web"]).await;
    assert!(printed.contains("          Minimum: 2\n"), "{printed}");
    enable("--max 1").await;
    let left = |told: &[Signal]| ids(&removed(told)) == [1];
    world.signals.wait("vCPU 1 to leave", mark, left).await;
    let (status, printed, _) = world.vcpuctl(&["--json", "autoscale"]).await;
    let list: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((status, &list[0]["machine"]), (0, &"web".into()));
    assert_eq!(world.vcpuctl(&["autoscale", "web", "--off"]).await.0, 0);
    assert_eq!(autoscaler.proxy.list().await.unwrap().len(), 0);
    assert_eq!(world.vcpuctl(&["explain", "web"]).await.0, 6);
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn settings_survive_a_restart_and_precede_files() {
    let world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(1, 4));
    world.machine("web").await;
    Autoscaler::configure(&world, "autoscale.toml", "min = 2\nhost-cpus = 3.5\n");
    Autoscaler::configure(
        &world,
        "autoscale.d/web.toml",
        "mode = \"observe\"\nmax = 3\n",
    );
    Autoscaler::configure(&world, "autoscale.d/db.toml", "maxx = 3\n");
    Autoscaler::configure(&world, "autoscale.d/mail.toml", "max = 1\n");
    let mut autoscaler = Autoscaler::start(&world).await;
    let explanation = autoscaler.explains("web", "below-min").await;
    let of = |key: &str| explanation[key].clone();
    assert_eq!((of("min"), of("max")), (2.into(), 3.into()));
    assert_eq!(
        (of("mode"), of("origin")),
        ("observe".into(), "file".into())
    );
    let errors = autoscaler.proxy.configuration_errors().await.unwrap();
    assert_eq!(errors.len(), 2);
    assert_eq!(
        errors[1],
        "mail: not scaled: max must be at least min, with the keys of autoscale.toml"
    );
    for part in ["autoscale.d/db.toml: not used", "unknown field `maxx`"] {
        assert!(errors[0].contains(part), "{errors:?}");
    }
    let options = HashMap::from([("max", Variant::from(4_u8)), ("mode", "observe".into())]);
    autoscaler.proxy.enable("web", options).await.unwrap();
    autoscaler.process.kill().await;

    let mut autoscaler = Autoscaler::start(&world).await;
    let explanation = autoscaler.explains("web", "below-min").await;
    assert_eq!(
        (&explanation["max"], &explanation["origin"]),
        (&4.into(), &"call".into())
    );
    // The file stays, so the end of the scaling is a setting too.
    autoscaler.proxy.disable("web").await.unwrap();
    autoscaler.process.kill().await;
    let autoscaler = Autoscaler::start(&world).await;
    let listed = autoscaler.proxy.list().await.unwrap();
    let row = dict(&listed["web"]);
    assert_eq!(
        (&row["mode"], &row["reason-code"]),
        (&"off".into(), &"off".into())
    );
}

/// Scripted QEMU, dbus-daemon, vcpuctl.
#[tokio::test]
async fn vcpuctl_prints_the_resulting_settings() {
    let world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(1, 4));
    world.machine("web").await;
    // The command begins the scaling whatever the file says.
    Autoscaler::configure(&world, "autoscale.toml", "mode = \"off\"\nhost-cpus = 64\n");
    let autoscaler = Autoscaler::start(&world).await;
    let shown = async |line: &str| {
        let arguments: Vec<&str> = line.split(' ').collect();
        let (status, printed, complaint) = world.vcpuctl(&arguments).await;
        assert_eq!((status, complaint.as_str()), (0, ""), "{line}");
        printed
    };
    let empty = shown("autoscale").await;
    assert!(empty.ends_with("\n\n0 machines listed.\n"), "{empty}");
    assert_eq!(
        shown("autoscale web --min 2 --max 2 --observe").await,
        "web: scaled from 2 to 2 vCPUs, mode observe\n"
    );
    // A call replaces the settings of the previous one.
    assert_eq!(
        shown("autoscale web --up-window 5 --down-window 1min --keep-pinned false").await,
        "web: scaled from 1 to 4 vCPUs, mode on\n"
    );
    let file = Autoscaler::state_directory(&world).join("web.toml");
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        "mode = \"on\"\nup-window = \"5s\"\ndown-window = \"1m\"\nkeep-pinned = false\n"
    );
    // An update keeps them.
    assert_eq!(
        shown("autoscale web --update --max 3 --observe").await,
        "web: scaled from 1 to 3 vCPUs, mode observe\n"
    );
    assert_eq!(
        shown("autoscale web --update --up-window 6").await,
        "web: scaled from 1 to 3 vCPUs, mode observe\n"
    );
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        "mode = \"observe\"\nmax = 3\nup-window = \"6s\"\ndown-window = \"1m\"\nkeep-pinned = false\n"
    );
    assert!(
        shown("autoscale")
            .await
            .ends_with("\n\n1 machine listed.\n")
    );
    assert_eq!(
        shown("autoscale web --off").await,
        "web: no longer scaled\n"
    );
    assert_eq!(autoscaler.proxy.list().await.unwrap().len(), 0);
    let (status, _, complaint) = world.vcpuctl(&["autoscale", "web", "--off"]).await;
    assert_eq!(
        (status, complaint.as_str()),
        (
            6,
            "vcpuctl: the vCPUs of machine web are not scaled; run \"vcpuctl autoscale\" to list the machines\n"
        )
    );
    // The machine has no settings that an update could keep.
    assert_eq!(
        shown("autoscale web --update").await,
        "web: scaled from 1 to 4 vCPUs, mode on\n"
    );
    assert_eq!(shown("autoscale web --quiet").await, "");
    assert_eq!(shown("autoscale web --json").await, "{}\n");
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn wrong_calls_are_explained() {
    let world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(1, 4));
    world.machine("web").await;
    Autoscaler::configure(&world, "autoscale.toml", "min = 2\n");
    let autoscaler = Autoscaler::start(&world).await;
    let enable = async |name: &str, key: &str, value: Variant<'_>| {
        let options = HashMap::from([(key, value)]);
        error(autoscaler.proxy.enable(name, options).await)
    };
    for (key, value, text) in [
        ("mim", 1_u32.into(), "unknown field `mim`"),
        ("min", 0_u32.into(), "min must be at least 1"),
        (
            "min",
            "two".into(),
            "\"min\": invalid type: string \"two\", expected u32",
        ),
        ("target", 2.0.into(), "target must be from 0.1 to 0.95"),
        ("mode", "off".into(), "call Disable"),
        (
            "update",
            1_u32.into(),
            "\"update\": the value is not a boolean",
        ),
        (
            "min",
            vec![1_u32].into(),
            "option \"min\": the value is not a number, a text or a boolean",
        ),
        ("hold", "long".into(), "\"hold\": expected number"),
    ] {
        let (name, reason) = enable("web", key, value).await;
        assert_eq!(name, error_name::INVALID_ARGS, "{reason}");
        assert!(reason.contains(text), "{reason}");
    }
    let (name, text) = enable("web", "max", 5_u32.into()).await;
    assert_eq!(name, error_name::INVALID_ARGS, "{text}");
    assert_eq!(text, "web: max is 5, and the machine has at most 4 vCPUs");
    let (name, text) = enable("web", "max", 1_u32.into()).await;
    assert_eq!(name, error_name::INVALID_ARGS, "{text}");
    assert_eq!(
        text,
        "web: max must be at least min, with the keys of autoscale.toml"
    );
    assert_eq!(autoscaler.proxy.list().await.unwrap().len(), 0);
    let (name, text) = enable("wbe", "min", 1_u32.into()).await;
    assert_eq!(name, error_name::NO_SUCH_MACHINE, "{text}");
    let (name, text) = enable("a/b", "min", 1_u32.into()).await;
    assert_eq!(name, error_name::INVALID_ARGS, "{text}");
    let (name, text) = error(autoscaler.proxy.disable("web").await);
    assert_eq!(name, error_name::NO_SUCH_MACHINE, "{text}");
    let (status, _, complaint) = world
        .vcpuctl(&["autoscale", "web", "--off", "--min", "2"])
        .await;
    assert_eq!(status, 2, "{complaint}");
}

/// Scripted QEMU, dbus-daemon, polkitd.
#[tokio::test]
async fn a_user_has_eight_calls_at_a_time() {
    let world = World::with_polkit("").await;
    let _peer = world.peer("web", Model::x86(1, 4));
    world.machine("web").await;
    let autoscaler = Autoscaler::start(&world).await;
    world.polkit.as_ref().unwrap().pause();
    let refused = world.with_nobody(async |manager| {
        let builder = AutoscaleProxy::builder(manager.inner().connection());
        let proxy = builder
            .cache_properties(CacheProperties::No)
            .build()
            .await
            .unwrap();
        let mut calls: FuturesUnordered<_> = (0..9)
            .map(|_| proxy.enable("web", HashMap::new()))
            .collect();
        // The others wait for polkit.
        let first = error(calls.next().await.unwrap());
        let own = error(proxy.list().await.map(drop));
        let question = error(proxy.can_manage("web", "enable").await.map(drop));
        [first, own, question]
    });
    for (name, text) in refused.await {
        assert_eq!(name, error_name::LIMIT_EXCEEDED, "{text}");
        assert!(text.starts_with("8 calls of user 65534"), "{text}");
    }
    autoscaler.proxy.list().await.unwrap();
    world.polkit.as_ref().unwrap().resume();
}

/// Scripted QEMU, dbus-daemon, polkitd.
#[tokio::test]
async fn polkit_authorizes_who_may_scale() {
    const RULE: &str = "
        polkit.addRule(function(action, subject) {
            if (action.id === \"org.vcpud1.manage-autoscale\" &&
                action.lookup(\"machine\") === \"web\" && action.lookup(\"operation\") === \"enable\" &&
                action.lookup(\"uid\") === \"65534\") {
                return polkit.Result.YES;
            }
            return polkit.Result.NOT_HANDLED;
        });";
    let world = World::with_polkit(RULE).await;
    let _peers = ["web", "db"].map(|name| world.peer(name, Model::x86(1, 4)));
    world.machine("web").await;
    world.machine("db").await;
    let autoscaler = Autoscaler::start(&world).await;
    let nobody = async |arguments: &[&str]| world.vcpuctl_of_nobody(arguments).await;
    assert_eq!(nobody(&["autoscale", "web", "--observe"]).await.0, 0);
    assert_eq!(autoscaler.proxy.list().await.unwrap().len(), 1);
    let (status, _, complaint) = nobody(&["autoscale", "web", "--off", "--no-ask-password"]).await;
    assert_eq!(status, 3, "{complaint}");
    // A question to polkit never asks for a password.
    for (machine, operation, answer) in [
        ("web", "enable", "yes"),
        ("web", "disable", "challenge"),
        ("db", "enable", "challenge"),
        ("mail", "enable", "na"),
        ("mail", "disable", "na"),
    ] {
        let call = [
            AUTOSCALE_NAME,
            AUTOSCALE_PATH,
            AUTOSCALE_NAME,
            "CanManage",
            "ss",
        ];
        let call = [&call[..], &[machine, operation]].concat();
        let permission = world.as_nobody(Interaction::Allowed, &call).await;
        assert_eq!(
            permission,
            Ok(format!("s \"{answer}\"")),
            "{operation} {machine}"
        );
    }
    let root = autoscaler.proxy.can_manage("web", "disable").await;
    assert_eq!(root.unwrap(), "yes");
    let (name, text) = error(autoscaler.proxy.can_manage("web", "list").await.map(drop));
    assert_eq!(name, error_name::INVALID_ARGS, "{text}");
    assert_eq!(
        autoscaler.proxy.features().await.unwrap(),
        ["can-manage", "update"]
    );
    // All users can read.
    let (status, printed, _) = nobody(&["explain", "web"]).await;
    assert_eq!(status, 0, "{printed}");
    assert_eq!(autoscaler.proxy.list().await.unwrap().len(), 1);
}
