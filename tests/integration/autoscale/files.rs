//! The files of the autoscaler, and a second instance.

use std::collections::HashMap;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use rustix::process::Signal as KernelSignal;
use vcpud::names::error_name;
use vcpud::proxy::error_reply;

use crate::harness::*;

/// Returns the file that the program writes before it replaces the settings of `web`.
fn new_file(world: &World) -> PathBuf {
    Autoscaler::state_directory(world).join("web.toml.new")
}

/// Makes writes of the settings of `web` fail.
fn block(world: &World) {
    fs::create_dir(new_file(world)).unwrap();
}

/// Asserts that a write has failed, and lets the next one succeed.
fn assert_blocked(world: &World, result: zbus::Result<()>) {
    let (name, text) = error_reply(&result.unwrap_err()).unwrap();
    assert_eq!(name, error_name::IO_ERROR, "{text}");
    let why = "the settings cannot be saved: Is a directory";
    assert!(text.starts_with(why), "{text}");
    fs::remove_dir(new_file(world)).unwrap();
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn settings_that_cannot_be_saved_are_not_used() {
    let world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(1, 4));
    world.machine("web").await;
    let autoscaler = Autoscaler::start(&world).await;
    let mode = async || {
        let listed = autoscaler.proxy.list().await.unwrap();
        listed.get("web").map(|row| dict(row)["mode"].clone())
    };
    let enable = async |mode: &str| {
        let options = HashMap::from([("mode", mode.into())]);
        autoscaler.proxy.enable("web", options).await
    };
    block(&world);
    assert_blocked(&world, enable("observe").await);
    assert_eq!(mode().await, None);
    enable("observe").await.unwrap();
    block(&world);
    assert_blocked(&world, enable("on").await);
    assert_eq!(mode().await, Some("observe".into()));
    // The end of the scaling is a setting too if there is a file.
    Autoscaler::configure(&world, "autoscale.d/web.toml", "mode = \"on\"");
    block(&world);
    assert_blocked(&world, autoscaler.proxy.disable("web").await);
    assert_eq!(mode().await, Some("observe".into()));
    let saved = Autoscaler::state_directory(&world).join("web.toml");
    assert_eq!(fs::read_to_string(saved).unwrap(), "mode = \"observe\"\n");
    autoscaler.proxy.disable("web").await.unwrap();
    assert_eq!(mode().await, Some("off".into()));
}

/// dbus-daemon.
#[tokio::test]
async fn a_second_instance_ends_and_the_first_one_goes_on() {
    let world = World::without_service().await;
    let autoscaler = Autoscaler::start(&world).await;
    let (status, _, complaint) = world.run(&mut Autoscaler::command(&world)).await;
    let why = "another vcpud-autoscale runs: the name org.vcpud1.Autoscale has an owner";
    assert!(status == 1 && complaint.contains(why), "{complaint}");
    autoscaler.proxy.list().await.unwrap();
}

/// dbus-daemon.
#[tokio::test]
async fn a_signal_ends_the_program_while_it_starts() {
    let world = World::without_service().await;
    // The bus accepts the connection and does not answer.
    let address = world.bus.directory().join("silent");
    let _silent = UnixListener::bind(&address).unwrap();
    let address = format!("unix:path={}", address.display());
    let mut command = Autoscaler::command(&world);
    command.env("DBUS_SYSTEM_BUS_ADDRESS", address);
    let mut process = Process::spawn("vcpud-autoscale", &mut command);
    let status = format!("/proc/{}/status", process.pid());
    let has_handler = || {
        let status = fs::read_to_string(&status).unwrap();
        let mut lines = status.lines();
        let caught = lines.find_map(|line| line.strip_prefix("SigCgt:\t"));
        let caught = u64::from_str_radix(caught.unwrap(), 16).unwrap();
        caught & (1 << (KernelSignal::TERM.as_raw() - 1)) != 0
    };
    until("the handler of SIGTERM", has_handler).await;
    process.terminate();
    assert!(process.wait().await.success());
}
