//! `vcpuctl monitor`.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::vcpuctl;
use crate::harness::*;

/// Waits until `monitor` has printed something that ends in `expected`, without the times.
async fn has_shown(monitor: &mut Lines, expected: &[Value]) {
    let shown = |line: &String| match serde_json::from_str(line) {
        Ok(Value::Object(mut event)) => {
            event.remove("time");
            Value::Object(event)
        }
        _ => line
            .split_once("  ")
            .map_or(Value::Null, |(_, event)| event.into()),
    };
    let is_there = |lines: &Vec<String>| {
        let lines: Vec<Value> = lines.iter().map(shown).collect();
        lines.ends_with(expected)
    };
    let what = format!("{expected:?}");
    let shown = within(what, monitor.wait_for(is_there)).await;
    let shown = shown.expect("vcpuctl runs").join(" ");
    assert!(
        !shown.contains("vCPU 7") && !shown.contains("\"vcpu\":7"),
        "{shown}"
    );
}

/// Scripted QEMUs, dbus-daemon, vcpuctl, busctl as nobody.
#[tokio::test]
async fn the_monitor_shows_what_the_service_tells_and_nothing_else() {
    let world = World::without_polkit().await;
    let _peers = ["web", "db"].map(|name| {
        let mut model = Model::x86(1, 4);
        // Otherwise VcpuStarted comes at any time.
        model.starts = Starts::None;
        world.peer(name, model)
    });
    let machine = world.machine("web").await;
    let other = world.machine("db").await;
    let (_process, mut all) = world.start_vcpuctl(&["monitor"]);
    let (_process, mut one) = world.start_vcpuctl(&["--json", "monitor", "web"]);
    while all.borrow().is_empty() || one.borrow().is_empty() {
        machine.set(2).await.unwrap();
        machine.set_patiently(1).await.unwrap();
    }

    // To all connections that have a match rule for it, and to each connection.
    let to_each = world.unique_names().await.into_iter();
    let to_each = to_each.map(|name| Some(format!("--destination={name}")));
    for destination in to_each.chain([None]) {
        let mut forged = command_of_nobody("busctl");
        forged
            .arg(format!("--address={}", world.bus.address()))
            .args(destination)
            .args(["emit", machine.path(), "org.vcpud1.Machine", "VcpuRemoved"])
            .args(["usa{sv}", "7", "vcpu7", "1", "cause", "s", "guest"]);
        let emitted = within("busctl", forged.status()).await;
        assert!(emitted.unwrap().success());
    }
    machine.set(2).await.unwrap();
    other.set(2).await.unwrap();
    let lines = [
        "web: vCPU 1 added (request by root)",
        "db: vCPU 1 added (request by root)",
    ];
    has_shown(&mut all, &lines.map(Value::from)).await;
    let events = [
        json!({"event": "PropertiesChanged", "machine": "web", "changed": {"Vcpus": 2}}),
        json!({"event": "VcpuChanged", "machine": "web", "vcpus": [1]}),
        json!({"event": "VcpuAdded", "machine": "web", "vcpu": 1, "alias": "vcpu1",
            "details": {"cause": "request", "uid": 0}}),
    ];
    has_shown(&mut one, &events).await;
}

/// Scripted QEMU, dbus-daemon, vcpuctl.
#[tokio::test]
async fn the_monitor_reports_the_end_and_the_return_of_the_service() {
    let mut world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let (_process, mut all) = world.start_vcpuctl(&["monitor"]);
    let (_process, mut one) = world.start_vcpuctl(&["--json", "monitor", "web"]);
    while all.borrow().is_empty() || one.borrow().is_empty() {
        machine.set(2).await.unwrap();
        machine.set_patiently(1).await.unwrap();
    }
    world.service.take().unwrap().kill().await;
    has_shown(&mut all, &["vcpud stopped".into()]).await;
    let stopped = json!({"event": "ServiceStopped", "machine": null});
    has_shown(&mut one, &[stopped]).await;
    let is_started = |lines: &Vec<String>| {
        let mut lines = lines.iter();
        lines.any(|line| line.contains("vcpud started") || line.contains("ServiceStarted"))
    };
    world.serve().await;
    for lines in [&mut all, &mut one] {
        within("the start of vcpud", lines.wait_for(is_started))
            .await
            .unwrap();
    }
}

/// Scripted QEMU, dbus-daemon, vcpuctl.
#[tokio::test]
async fn the_monitor_ends_when_nobody_reads_it() {
    let world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let mut command = vcpuctl(["monitor"]);
    command
        .env("DBUS_SYSTEM_BUS_ADDRESS", world.bus.address())
        .env("TZ", "XYZ-5:30")
        .stdout(Stdio::piped());
    let mut process = Process::spawn("vcpuctl", &mut command);
    let mut lines = BufReader::new(process.child.stdout.take().unwrap()).lines();
    let shown = loop {
        tokio::select! {
            line = lines.next_line() => break line.unwrap().unwrap(),
            () = async {
                machine.set(2).await.unwrap();
                machine.set_patiently(1).await.unwrap();
            } => {}
        }
    };
    assert!(
        shown.starts_with("20") && shown.contains("  web: vCPU 1 "),
        "{shown}"
    );
    let time = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let minutes = |time: &str| time[14..16].parse::<i32>().unwrap();
    let ahead = (minutes(&shown) - minutes(&time)).rem_euclid(60);
    assert!(
        (28..=30).contains(&ahead),
        "{shown} is not half an hour ahead of {time}"
    );
    drop(lines);
    // No event wakes it.
    assert!(process.wait().await.success());
}
