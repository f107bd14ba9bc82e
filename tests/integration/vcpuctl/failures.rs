//! The JSON output and the exit statuses, also of failures; relative numbers of vCPUs.

use std::os::fd::OwnedFd;
use std::process::Stdio;

use serde_json::{Value, json};

use super::vcpuctl;
use crate::harness::*;

/// Runs vcpuctl with `--json`. Returns the exit status, and the one object that it prints.
async fn json_of(world: &World, line: &str) -> (i32, Value) {
    let arguments: Vec<&str> = ["--json"].into_iter().chain(line.split(' ')).collect();
    let (status, printed, complaint) = world.vcpuctl(&arguments).await;
    let object = serde_json::from_str(&printed);
    let object = object.unwrap_or_else(|error| panic!("{line}: {error}: {printed} {complaint}"));
    (status, object)
}

/// Scripted QEMU, dbus-daemon, vcpuctl.
#[tokio::test]
async fn every_command_prints_one_json_document() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(2, 4));
    world.machine("web").await;
    for line in ["pin web all default", "scheduler web all other", "reload"] {
        assert_eq!(json_of(&world, line).await, (0, json!({})), "{line}");
    }
    for (line, status, error) in [
        ("set web 9", 7, "org.vcpud1.Error.OutOfRange"),
        ("set web 9 --dry-run", 7, "org.vcpud1.Error.OutOfRange"),
        ("plug web 9", 7, "org.vcpud1.Error.InvalidVcpu"),
        ("unplug web 0", 7, "org.vcpud1.Error.NotRemovable"),
        ("pin web 0 x", 7, "org.vcpud1.Error.InvalidCpuList"),
        ("status db", 6, "org.vcpud1.Error.NoSuchMachine"),
        ("unregister db", 6, "org.vcpud1.Error.NoSuchMachine"),
        ("set web -9", 7, "org.vcpud1.Error.OutOfRange"),
    ] {
        let (ended, object) = json_of(&world, line).await;
        assert_eq!((ended, &object["error"]), (status, &json!(error)), "{line}");
        assert!(object["message"].is_string(), "{line}: {object}");
    }
    let (status, object) = json_of(&world, "set web 9 --dry-run").await;
    assert_eq!((status, &object["nearest"]), (7, &json!([4])));
    let (status, object) = json_of(&world, "set web many").await;
    assert_eq!((status, &object["error"]), (2, &Value::Null));

    peer.model().removal = Removal::Held;
    let (status, object) = json_of(&world, "set web 1 --timeout 0.05").await;
    let pending = json!("org.vcpud1.Error.RemovalPending");
    assert_eq!((status, &object["error"]), (5, &pending));
    let partial = ["added", "removed", "pending", "refused"].map(|key| &object[key]);
    assert_eq!(partial, [&json!([]), &json!([]), &json!([1]), &json!([])]);
    let busy = json!("org.vcpud1.Error.Busy");
    let (status, object) = json_of(&world, "plug web 1").await;
    assert_eq!((status, &object["error"]), (75, &busy));
    let message = object["message"].as_str().unwrap();
    assert!(message.contains("run \"vcpuctl wait web\""), "{message}");
}

/// dbus-daemon, vcpuctl.
#[tokio::test]
async fn a_service_or_bus_that_does_not_run_is_a_temporary_failure() {
    let world = World::without_service().await;
    let (status, object) = json_of(&world, "list").await;
    let unknown = json!("org.freedesktop.DBus.Error.ServiceUnknown");
    assert_eq!((status, &object["error"]), (75, &unknown));
    let message = object["message"].as_str().unwrap();
    assert!(message.starts_with("vcpud is not running"), "{message}");
    for line in ["autoscale", "explain web"] {
        let (status, object) = json_of(&world, line).await;
        let message = object["message"].as_str().unwrap();
        let is_named = message.starts_with("vcpud-autoscale is not running");
        assert!(status == 75 && is_named, "{line}: {message}");
    }

    let mut command = vcpuctl(["--json", "list"]);
    let address = world.bus.directory().join("no-bus");
    command.env(
        "DBUS_SYSTEM_BUS_ADDRESS",
        format!("unix:path={}", address.display()),
    );
    let output = within("vcpuctl", command.output()).await.unwrap();
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &object["error"]),
        (Some(75), &Value::Null)
    );
}

/// Scripted QEMU, dbus-daemon, vcpuctl.
#[tokio::test]
async fn a_sign_makes_the_number_of_vcpus_relative() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(2, 6));
    world.machine("web").await;
    let run = async |line: &str| {
        let arguments: Vec<&str> = line.split(' ').collect();
        let (status, printed, _) = world.vcpuctl(&arguments).await;
        (status, printed)
    };
    let done = |text: &str| (0, format!("web: {text}\n"));
    assert_eq!(run("set web +1").await, done("added 2"));
    assert_eq!(run("set --dry-run web +2").await, done("would add 3-4"));
    assert_eq!(run("set web -1").await, done("removed 2"));
    assert_eq!(run("set web +0 --dry-run").await, done("no change"));
    assert_eq!(run("set web -2").await.0, 7);
    let (status, _, complaint) = world.vcpuctl(&["set", "web", "-3"]).await;
    let expected = "vcpuctl: machine web: cannot remove 3 of 2 vCPUs\n";
    assert_eq!((status, complaint.as_str()), (7, expected));

    // A vCPU whose removal is pending does not count.
    peer.model().removal = Removal::Held;
    assert_eq!(run("set web -1 --async").await, done("removal pending: 1"));
    let again = run("set web +0 --async").await;
    assert_eq!(again, done("removal pending: 1"));
}

/// Scripted QEMU, dbus-daemon, vcpuctl.
#[tokio::test]
async fn a_paused_machine_is_no_reason_to_advise_a_change_in_the_guest() {
    let world = World::without_polkit().await;
    let mut model = Model::x86(1, 4);
    model.starts = Starts::None;
    model.status = "paused";
    let _peer = world.peer("web", model);
    world.machine("web").await;
    let (status, printed, complaint) = world.vcpuctl(&["set", "web", "3"]).await;
    assert_eq!((status, printed.as_str()), (0, "web: added 1-2\n"));
    let warning = "vcpuctl: warning: web: the guest has not started vCPUs 1-2; the machine does not run (state: paused)\n";
    assert_eq!(complaint, warning);
    let (status, printed, complaint) = world.vcpuctl(&["-q", "set", "web", "4"]).await;
    assert_eq!((status, printed.as_str(), complaint.as_str()), (0, "", ""));
    let quiet_plan = world.vcpuctl(&["-q", "set", "web", "2", "--dry-run"]).await;
    assert_eq!(quiet_plan, (0, String::new(), String::new()));
}

/// Scripted QEMU, dbus-daemon, vcpuctl.
#[tokio::test]
async fn a_service_that_ends_during_a_call_is_a_reason_to_look_again() {
    let mut world = World::without_polkit().await;
    let mut model = Model::x86(2, 4);
    model.removal = Removal::Held;
    let peer = world.peer("web", model);
    world.machine("web").await;
    let mut service = world.service.take().expect("it runs");
    let kill = async {
        peer.asked("device_del", 1).await;
        service.kill().await;
    };
    let arguments = ["set", "web", "1", "--timeout", "1min"];
    let ((status, _, complaint), ()) = tokio::join!(world.vcpuctl(&arguments), kill);
    assert_eq!(status, 75);
    let text = "vcpuctl: vcpud has ended during the call; it starts again with the next call";
    assert!(complaint.starts_with(text), "{complaint}");
    assert!(complaint.contains("\"vcpuctl status web\""), "{complaint}");
}

/// vcpuctl.
#[tokio::test]
async fn a_completion_script_to_a_full_disk_is_an_error() {
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut command = vcpuctl(["completions", "bash"]);
    command.stdout(OwnedFd::from(full)).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output();
    let output = within("vcpuctl", output).await.unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert_eq!(
        complaint,
        "vcpuctl: cannot write to standard output: No space left on device (os error 28)\n"
    );
}
