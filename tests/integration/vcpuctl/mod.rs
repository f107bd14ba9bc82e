//! vcpuctl, as its users run it.

mod completion;
mod failures;
mod monitor;
mod remote;
mod terminal;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::*;

/// Returns the command that runs vcpuctl without input.
fn vcpuctl<const N: usize>(arguments: [&str; N]) -> Command {
    let mut command = command(env!("CARGO_BIN_EXE_vcpuctl"));
    let no_input = std::process::Stdio::null();
    command.args(arguments).stdin(no_input).kill_on_drop(true);
    command
}

/// Scripted QEMU, dbus-daemon, vcpuctl.
#[tokio::test]
async fn what_there_is_is_shown_to_people_and_to_scripts() {
    let world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(2, 4));
    world.machine("web").await;
    let shown = async |arguments: &[&str]| {
        let (status, printed, complaint) = world.vcpuctl(arguments).await;
        assert_eq!((status, complaint.as_str()), (0, ""), "{arguments:?}");
        printed
    };
    let list = shown(&["list"]).await;
    let rows: Vec<Vec<&str>> = list
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    let own = std::process::id().to_string();
    assert_eq!(
        rows[0],
        ["MACHINE", "STATE", "VCPUS", "MAX", "PENDING", "LEADER"]
    );
    assert_eq!(rows[1], ["web", "running", "2", "4", "-", own.as_str()]);
    assert!(shown(&["status", "web"]).await.contains("vCPUs: 2 of 4"));
    assert!(shown(&["status"]).await.contains("Machines: 1"));
    let vcpus = shown(&["vcpus", "web"]).await;
    assert_eq!(vcpus.lines().count(), 5, "{vcpus}");
    assert!(vcpus.ends_with("\n\nFree: 2-3\n"), "{vcpus}");
    let vcpus = shown(&["vcpus", "web", "--all"]).await;
    let states = vcpus
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().nth(1).unwrap());
    assert_eq!(
        states.collect::<Vec<_>>(),
        ["present", "present", "free", "free"]
    );

    // Scripts get what the bus has.
    let machine = world.machine("web").await;
    let json = async |arguments: &[&str]| -> Value {
        serde_json::from_str(&shown(&[&["--json"], arguments].concat()).await).unwrap()
    };
    let status = json(&["status", "web"]).await;
    assert_eq!(
        (&status["Vcpus"], &status["State"]),
        (&json!(2), &json!("running"))
    );
    assert_eq!(json(&["list"]).await, json!([status]));
    assert_eq!(json(&["status"]).await["Machines"], 1);
    assert_eq!(json(&["vcpus", "web"]).await, json!(machine.rows().await));
}

/// Scripted QEMU, dbus-daemon, vcpuctl. A setting of a free vCPU changes nothing on the host.
#[tokio::test]
async fn the_desired_values_of_the_placement_are_shown() {
    let world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(2, 4));
    world.machine("web").await;
    let shown = async |line: &str| {
        let arguments: Vec<&str> = line.split(' ').collect();
        let (status, printed, complaint) = world.vcpuctl(&arguments).await;
        assert_eq!((status, complaint.as_str()), (0, ""), "{line}");
        printed
    };
    shown("pin web 3 0").await;
    shown("scheduler web 2-3 batch").await;
    let text = shown("tuning web").await;
    assert!(text.contains("Scheduler: -\n"), "{text}");
    let last = "vCPU 2: scheduler batch\n          vCPU 3: affinity 0, scheduler batch\n";
    assert!(text.ends_with(last), "{text}");

    let json: Value = serde_json::from_str(&shown("--json tuning web").await).unwrap();
    assert_eq!(json["bandwidth-quota-usec"], -1);
    assert_eq!(json["pins"], json!([{"vcpu": 3, "cpus": "0"}]));
    let batch = |vcpu: u32| json!({"vcpu": vcpu, "policy": "batch", "priority": 0});
    assert_eq!(json["schedulers"], json!([batch(2), batch(3)]));
    assert!(json.get("affinity").is_none(), "{json}");
}

/// Scripted QEMUs, dbus-daemon, vcpuctl.
#[tokio::test]
async fn scripts_get_what_they_choose() {
    let world = World::without_polkit().await;
    let _web = world.peer("web", Model::x86(2, 4));
    let _db = world.peer("db", Model::x86(1, 8));
    world.machine("web").await;
    world.machine("db").await;
    let printed = async |line: &str| {
        let arguments: Vec<&str> = line.split(' ').collect();
        let (status, printed, complaint) = world.vcpuctl(&arguments).await;
        assert_eq!((status, complaint.as_str()), (0, ""), "{line}");
        printed
    };
    let vcpus = printed("show web -p MaxVcpus -p Vcpus").await;
    assert_eq!(vcpus, "MaxVcpus=4\nVcpus=2\n");
    let vcpus = printed("show web db -p Vcpus,MaxVcpus --value").await;
    assert_eq!(vcpus, "2\n4\n1\n8\n");
    let version = printed("show --property Version").await;
    assert_eq!(
        version,
        concat!("Version=", env!("CARGO_PKG_VERSION"), "\n")
    );
    let all = printed("show web").await;
    assert!(all.contains("\nPendingRemovals=\n"), "{all}");
    let status = printed("status web db").await;
    assert!(
        status.starts_with("web\n") && status.contains("\n\ndb\n"),
        "{status}"
    );
    let objects: Value = serde_json::from_str(&printed("--json status web db").await).unwrap();
    assert_eq!(
        (&objects[0]["Vcpus"], &objects[1]["Vcpus"]),
        (&json!(2), &json!(1))
    );
    let (status, _, complaint) = world.vcpuctl(&["show", "web", "-p", "Nothing"]).await;
    assert_eq!(status, 7, "{complaint}");
    assert!(complaint.contains("no property Nothing"), "{complaint}");
    for (line, advice) in [
        ("show web -p vcpus", "its name is Vcpus"),
        ("show -p Vcpus", "vcpuctl show NAME -p Vcpus"),
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        let (status, _, complaint) = world.vcpuctl(&arguments).await;
        assert_eq!(status, 7, "{line}: {complaint}");
        assert!(complaint.contains(advice), "{line}: {complaint}");
    }

    // A name that does not exist hides none of the others.
    let (status, shown, complaint) = world.vcpuctl(&["status", "web", "nope", "db"]).await;
    assert_eq!(status, 6, "{complaint}");
    assert!(
        shown.starts_with("web\n") && shown.contains("\n\ndb\n"),
        "{shown}"
    );

    let list = printed("list --no-legend").await;
    let names = list.lines().map(|line| line.split(' ').next().unwrap());
    assert_eq!(names.collect::<Vec<_>>(), ["db", "web"]);
    assert_eq!(printed("-q set web 3").await, "");
    assert_eq!(printed("show web -p Vcpus --value").await, "3\n");
    let (status, _, complaint) = world.vcpuctl(&["unregister", "nope", "web"]).await;
    assert_eq!(status, 6, "{complaint}");
    assert!(complaint.contains("machine nope: "), "{complaint}");
}

/// Scripted QEMU, dbus-daemon, polkitd, vcpuctl as root and as nobody.
#[tokio::test]
async fn the_exit_status_says_how_it_ended() {
    let world = World::with_polkit("").await;
    let peer = world.peer("web", Model::x86(1, 4));
    world.machine("web").await;
    let run = async |line: &str| {
        let arguments: Vec<&str> = line.split(' ').collect();
        world.vcpuctl(&arguments).await
    };
    for (line, told) in [
        ("set web 3", "web: added 1-2\n"),
        ("set --dry-run web 1", "web: would remove 1-2\n"),
        ("plug web 3", "web: added 3\n"),
        ("unplug web 3", "web: removed 3\n"),
        ("set web 3", "web: no change\n"),
    ] {
        assert_eq!(
            run(line).await,
            (0, told.to_owned(), String::new()),
            "{line}"
        );
    }
    let fails = async |line: &str, status: i32, reason: &str| {
        let (ended, printed, complaint) = run(line).await;
        assert_eq!(
            (ended, printed.as_str()),
            (status, ""),
            "{line}: {complaint}"
        );
        assert!(complaint.contains(reason), "{line}: {complaint}");
    };
    fails("set web 99", 7, "the machine can have 1 to 4 vCPUs").await;
    fails("set nowhere 2", 6, "no machine is named \"nowhere\"").await;
    fails("plug web 9", 7, "vCPU 9 does not exist").await;
    fails("pin web 0 x", 7, "\"x\"").await;
    fails("set web many", 2, "invalid value 'many'").await;
    for option in [
        "--async",
        "--guest-online",
        "--timeout 1",
        "--until started",
    ] {
        let line = format!("set web 2 --dry-run {option}");
        fails(&line, 2, "cannot be used with").await;
    }
    fails("wait web --timeout foo", 2, "the argument is not a time").await;
    fails("register db /etc/passwd", 7, "is not a socket").await;
    for directory in ["/run", "/tmp"] {
        let line = format!("register db {directory}/no-such-socket");
        fails(&line, 75, "").await;
    }
    let (status, _, complaint) = world.vcpuctl_of_nobody(&["set", "web", "4"]).await;
    assert_eq!(status, 3, "{complaint}");
    assert!(
        complaint.contains("authentication is required"),
        "{complaint}"
    );

    peer.model().starts = Starts::None;
    let (status, printed, complaint) = run("plug web 3").await;
    assert_eq!((status, printed.as_str()), (0, "web: added 3\n"));
    let warning = "warning: web: the guest has not started vCPU 3; bring";
    assert!(complaint.contains(warning), "{complaint}");
    let until = "set --until started --timeout 50ms web 4";
    fails(until, 8, "the guest did not start vCPU 3").await;
    assert_eq!(run("unplug web 3").await.0, 0);

    peer.model().removal = Removal::Held;
    let pending = run("set --async web 2").await;
    let expected = "web: removal pending: 2\n".to_owned();
    assert_eq!(pending, (0, expected, String::new()));
    fails("set --timeout 50ms web 2", 5, "still pending: vCPU 2").await;
    peer.script(|model, call| {
        let n =
            (call.command == "device_del").then(|| model.at(call.arguments["id"].as_str()?))??;
        Some(vec![call.reply(json!({})), ost(n, None, 3, 130)])
    });
    peer.send(&ost(2, None, 3, 130));
    fails("set web 1", 4, "the guest is busy with the CPU").await;
}

/// Scripted QEMU, dbus-daemon, vcpuctl.
#[tokio::test]
async fn a_registration_can_have_shares_of_caches() {
    let world = World::without_polkit().await;
    let socket = world.bus.directory().join("vm.sock");
    let _peer = Peer::start(&socket, Model::x86(2, 4));
    let socket = socket.to_str().unwrap();
    let base = ["register", "web", socket, "--placement", "none"];
    let shares = ["--set", "cache=0:L3:0=f", "--set", "cache=1-2:L3:0=3"];
    let result = world.vcpuctl(&[&base[..], &shares].concat()).await;
    assert_eq!(result, (0, String::new(), String::new()));
    let (_, printed, _) = world.vcpuctl(&["--json", "tuning", "web"]).await;
    let tuning: Value = serde_json::from_str(&printed).unwrap();
    let of = |vcpu: u32, schemata: &str| json!({"vcpu": vcpu, "schemata": schemata});
    let expected = json!([of(0, "L3:0=f"), of(1, "L3:0=3"), of(2, "L3:0=3")]);
    assert_eq!(tuning["cache"], expected);
    for (arguments, text) in [
        (
            &["register", "db", "/x", "--set", "cache=f"],
            "VCPUS:SCHEMATA",
        ),
        (
            &["pin", "web", "1", "", "--quiet"],
            "\"default\" removes the pin",
        ),
    ] {
        let (status, _, complaint) = world.vcpuctl(arguments).await;
        assert_eq!(status, 2, "{complaint}");
        assert!(complaint.contains(text), "{complaint}");
    }
}
