//! Many machines that are there when the service starts, while systemd reloads and is executed again.

use std::env;
use std::fs;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fake_qemu::{Model, Peer};
use futures_util::future::join_all;

use crate::harness::*;

/// The number of real QEMUs. Each needs some 25 MiB of the host, and without KVM the lab needs about three seconds
/// to start one.
const QEMUS: usize = 10;
/// The number of fake QEMUs, unless the environment variable [`FAKES_VARIABLE`] has another one. Without KVM, the start
/// of an unoptimized vcpud takes half a second for each.
const FAKES: usize = 30;
const FAKES_VARIABLE: &str = "LAB_FAKE_QEMUS";
const SOCKETS: &str = "/run/vcpud/qmp";

/// Settings for all machines, in force while this lives. The service does not run when it is created.
struct Defaults(PathBuf);

impl Defaults {
    fn write(text: &str) -> Self {
        let directory = PathBuf::from("/etc/vcpud/vcpud.toml.d");
        fs::create_dir_all(&directory).expect("root may create it");
        let file = directory.join("lab.toml");
        fs::write(&file, text).expect("root may write it");
        Self(file)
    }
}

impl Drop for Defaults {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let mut start = Command::new("systemctl");
        let _ = start.args(["restart", "vcpud.service"]).status();
        let mut start = Command::new("systemctl");
        let _ = start.args(["start", "vcpud.path"]).status();
    }
}

/// A QEMU without a guest.
fn qemu(name: &str) -> Process {
    let mut qemu = command("qemu-system-x86_64");
    qemu.args(["-S", "-machine", "q35", "-accel", "tcg,tb-size=8"])
        .args(["-m", "16", "-smp", "1,maxcpus=2", "-display", "none"])
        .args(["-nodefaults", "-no-user-config", "-qmp"])
        .arg(format!("unix:{SOCKETS}/{name}.sock,server=on,wait=off"))
        .stdin(Stdio::null());
    Process::spawn("QEMU", &mut qemu)
}

/// The environment variable with the socket of a fake QEMU.
const SOCKET_VARIABLE: &str = "LAB_FAKE_QEMU_SOCKET";

/// A fake QEMU in a process of its own, with threads for its vCPUs: this program, see [`serves_qmp`].
fn fake_qemu(name: &str) -> Process {
    let mut fake = command(env::current_exe().expect("Linux has it"));
    fake.args(["--ignored", "--exact", "many::serves_qmp"])
        .env(SOCKET_VARIABLE, format!("{SOCKETS}/{name}.sock"))
        .stdout(Stdio::null());
    Process::spawn("a fake QEMU", &mut fake)
}

#[tokio::test]
#[ignore = "is the fake QEMU of another test"]
async fn serves_qmp() {
    let socket = env::var_os(SOCKET_VARIABLE).expect("the other test sets it");
    let _peer = Peer::start(Path::new(&socket), Model::x86(1, 2));
    pending().await
}

#[tokio::test]
async fn many_machines_get_their_scopes_while_systemd_reloads_and_is_executed_again() {
    let host = Host::enter().await;
    output("systemctl", &["stop", "vcpud.path", "vcpud.service"]).await;
    let defaults =
        Defaults::write("[defaults]\nplacement = \"scope\"\nbandwidth-quota = \"50ms\"\n");
    output("systemd-tmpfiles", &["--create", "vcpud.conf"]).await;
    let fakes = env::var(FAKES_VARIABLE).map_or(FAKES, |count| count.parse().expect("a number"));
    let names: Vec<String> = (0..QEMUS + fakes).map(|n| format!("many-{n}")).collect();
    let (real, fake) = names.split_at(QEMUS);
    let listening = || fs::read_dir(SOCKETS).map_or(0, Iterator::count);
    let mut qemus: Vec<Process> = real.iter().map(|name| qemu(name)).collect();
    until("the QEMUs to listen", QEMUS, listening).await;
    qemus.extend(fake.iter().map(|name| fake_qemu(name)));
    until("the fake QEMUs to listen", names.len(), listening).await;

    output("systemctl", &["start", "--no-block", "vcpud.service"]).await;
    for _ in 0..3 {
        output("systemctl", &["daemon-reload"]).await;
        output("systemctl", &["daemon-reexec"]).await;
        // An emulated host may need longer for the start than the bus waits for it.
        host.answers().await;
    }
    let machines = join_all(names.iter().map(|name| host.machine(name))).await;
    for (name, machine) in names.iter().zip(&machines) {
        machine.wait_for("Placement", "scope").await;
        machine
            .wait_for("PlacementErrors", Vec::<String>::new())
            .await;
        let groups = Groups::of(machine).await;
        let scope = format!("vcpud-{}.scope", name.replace('-', "_2d"));
        assert_eq!(groups.unit, format!("/machine.slice/{scope}"));
        assert_eq!(groups.of_vcpu(0, "cpu.max"), "50000 100000", "{name}");
        assert_eq!(groups.below("vcpud"), ["emulator", "vcpu0"], "{name}");
    }
    for qemu in &mut qemus {
        qemu.kill().await;
    }
    drop(defaults);
}
