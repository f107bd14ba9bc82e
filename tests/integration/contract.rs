//! The running service, the documentation of its interface, the policies: they say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use vcpud::bus::Action;
use vcpud::machine::{PlanCode, WarningCode};
use vcpud::names::{AUTOSCALE_NAME, AUTOSCALE_PATH, error_name, message_id};
use zbus::fdo::IntrospectableProxy;
use zbus_xml::{Annotation, Arg, Interface, Node};

use crate::harness::*;

/// An interface as text: a line for each member, with all that is part of the contract.
type Members = BTreeSet<String>;

fn file(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The service's own interfaces in `xml`, by name.
fn interfaces(xml: &str) -> BTreeMap<String, Members> {
    let node = Node::try_from(xml).expect("introspection data");
    let own = |interface: &&Interface<'_>| interface.name().starts_with("org.vcpud1.");
    let own = node.interfaces().iter().filter(own);
    own.map(|interface| (interface.name().to_string(), members(interface)))
        .collect()
}

fn members(interface: &Interface<'_>) -> Members {
    let methods = interface.methods().map(|method| {
        let notes = notes(method.annotations());
        format!(
            "method {}{}{notes}",
            method.name(),
            args(method.args(), "in")
        )
    });
    let signals = interface.signals().map(|signal| {
        let notes = notes(signal.annotations());
        format!(
            "signal {}{}{notes}",
            signal.name(),
            args(signal.args(), "out")
        )
    });
    let properties = interface.properties().map(|property| {
        let (name, access) = (property.name(), property.access());
        let notes = notes(property.annotations());
        format!("property {name} {} {access:?}{notes}", property.ty())
    });
    methods.chain(signals).chain(properties).collect()
}

fn args(args: &[Arg], default: &str) -> String {
    let arg = |arg: &Arg| {
        let direction = arg
            .direction()
            .map_or(default.to_owned(), |d| format!("{d:?}"));
        let name = arg.name().unwrap_or("?");
        format!(" {}:{name}:{}", direction.to_lowercase(), arg.ty())
    };
    args.iter().map(arg).collect()
}

fn notes(annotations: &[Annotation]) -> String {
    // The default is that changes are emitted, which needs no annotation. Those of Qt are for qdbusxml2cpp.
    let is_default =
        |a: &&Annotation| a.name().ends_with(".EmitsChangedSignal") && a.value() == "true";
    let is_of_qt = |a: &&Annotation| a.name().starts_with("org.qtproject.");
    let said = annotations
        .iter()
        .filter(|a| !is_default(a) && !is_of_qt(a));
    said.map(|a| format!(" {}={}", a.name(), a.value()))
        .collect()
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn the_service_has_the_interfaces_that_its_manual_describes() {
    let world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let mut served = BTreeMap::new();
    for path in ["/org/vcpud1", machine.path()] {
        let builder = IntrospectableProxy::builder(&world.connection);
        let builder = builder.destination("org.vcpud1").path(path);
        let proxy = builder.build().await.unwrap();
        served.extend(interfaces(&proxy.introspect().await.unwrap()));
    }
    let described = interfaces(&file("dbus/org.vcpud1.xml"));
    assert_eq!(
        served.keys().collect::<Vec<_>>(),
        ["org.vcpud1.Machine", "org.vcpud1.Manager"]
    );
    for (name, members) in &served {
        let described = &described[name];
        let undescribed: Vec<_> = members.difference(described).collect();
        let unserved: Vec<_> = described.difference(members).collect();
        assert!(
            undescribed.is_empty() && unserved.is_empty(),
            "{name}: served, but not described: {undescribed:#?}, described, but not served: {unserved:#?}"
        );
    }
    assert_eq!(described.len(), served.len());
}

/// dbus-daemon, vcpud-autoscale.
#[tokio::test]
async fn the_autoscaler_has_the_interface_that_its_manual_describes() {
    let world = World::without_service().await;
    let _autoscaler = Autoscaler::start(&world).await;
    let builder = IntrospectableProxy::builder(&world.connection);
    let builder = builder.destination(AUTOSCALE_NAME).path(AUTOSCALE_PATH);
    let proxy = builder.build().await.unwrap();
    let served = interfaces(&proxy.introspect().await.unwrap());
    assert_eq!(served, interfaces(&file("dbus/org.vcpud1.Autoscale.xml")));
}

/// No part but the files.
#[test]
fn the_manual_explains_every_error() {
    let manual = file("dbus/org.vcpud1.xml");
    for name in error_name::ALL {
        assert!(
            manual.contains(&format!("{name} ")),
            "{name} is not explained"
        );
    }
    let explained = manual.split("org.vcpud1.Error.").skip(1);
    for name in explained.filter_map(|rest| rest.split_whitespace().next()) {
        let name = format!("org.vcpud1.Error.{name}");
        assert!(
            error_name::ALL.contains(&name.as_str()),
            "there is no {name}"
        );
    }
}

/// No part but the files.
#[test]
fn the_manual_explains_every_code_of_a_plan() {
    let manual = file("dbus/org.vcpud1.xml");
    let (_, plan) = manual
        .split_once("      Plan:\n")
        .expect("Plan is explained");
    let (plan, _) = plan.split_once("-->").expect("a comment ends");
    let codes = plan.lines().filter_map(|line| {
        let (code, _) = line.trim().strip_prefix('"')?.split_once("\": ")?;
        Some(code)
    });
    let explained: BTreeSet<&str> = codes.collect();
    let reasons = PlanCode::ALL.iter().map(|code| code.as_str());
    let warnings = WarningCode::ALL.iter().map(|code| code.as_str());
    let known: BTreeSet<&str> = reasons.chain(warnings).collect();
    assert_eq!(explained, known);
}

/// No part but the files.
#[test]
fn polkit_knows_the_actions_of_the_service_and_no_others() {
    let policy = file("polkit/org.vcpud1.policy");
    let ids = policy.split("<action id=\"").skip(1);
    let known: BTreeSet<&str> = ids.filter_map(|rest| rest.split('"').next()).collect();
    let used: BTreeSet<&str> = Action::ALL.iter().map(|action| action.id()).collect();
    assert_eq!(known, used);
}

/// Reads the policy file only: polkit keeps a retained authorization for the action, whatever the
/// details of the next call.
#[test]
fn a_password_authorizes_one_call() {
    let policy = file("polkit/org.vcpud1.policy");
    let defaults: Vec<&str> = policy
        .lines()
        .filter_map(|line| {
            line.trim()
                .strip_prefix("<allow_")?
                .split(['>', '<'])
                .nth(1)
        })
        .collect();
    assert_eq!(defaults, ["auth_admin"; 9]);
}

/// dbus-daemon, busctl as nobody.
#[tokio::test]
async fn everyone_may_call_the_service_and_only_root_may_be_it() {
    const BUS: [&str; 3] = [
        "org.freedesktop.DBus",
        "/org/freedesktop/DBus",
        "org.freedesktop.DBus",
    ];
    let world = World::without_service().await;
    let claim = [&BUS[..], &["RequestName", "su", "org.vcpud1", "0"]].concat();
    let failure = world.as_nobody(Interaction::Forbidden, &claim).await;
    failure
        .unwrap_err()
        .assert(error_name::ACCESS_DENIED, &["org.vcpud1"]);

    let mut world = world;
    world.serve().await;
    let call = [
        "org.vcpud1",
        "/org/vcpud1",
        "org.vcpud1.Manager",
        "ListMachines",
    ];
    let listed = world.as_nobody(Interaction::Forbidden, &call).await;
    assert_eq!(listed, Ok("a(sou) 0".to_owned()));
    let version = world.manager().await.version().await.unwrap();
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
}

/// No part but the files.
#[test]
fn the_catalog_explains_every_message() {
    let catalog = file("systemd/vcpud.catalog");
    let explained: BTreeSet<&str> = catalog
        .lines()
        .filter_map(|line| line.strip_prefix("-- "))
        .collect();
    let known: BTreeSet<&str> = message_id::ALL.iter().copied().collect();
    assert_eq!(explained, known);
}
