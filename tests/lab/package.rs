//! The Debian package, as apt installs and purges it.

use std::fs;
use std::path::Path;

use tokio::process::Command;

use crate::harness::*;

/// The package, where `tests/lab/stage` puts it.
const PACKAGE: &str = "/usr/local/share/vcpud.deb";
const CALL: [&str; 5] = [
    "call",
    "org.vcpud1",
    "/org/vcpud1",
    "org.vcpud1.Manager",
    "ListMachines",
];

/// Runs apt-get, which needs no list of packages here.
async fn apt(arguments: &[&str]) {
    let options = ["--quiet=2", "--yes"];
    output("apt-get", &[&options[..], arguments].concat()).await;
}

/// Installs the package again if the test fails, and stops the path unit, which other tests do not expect.
struct Installed;

impl Drop for Installed {
    fn drop(&mut self) {
        let install = format!("apt-get --quiet=2 --yes install {PACKAGE}");
        let stop = "systemctl stop vcpud.path vcpud.service";
        let script = if std::thread::panicking() {
            format!("{install} && {stop}")
        } else {
            stop.to_owned()
        };
        let mut shell = std::process::Command::new("sh");
        let _ = shell.args(["-c", &script]).status();
    }
}

/// Returns the first word that `systemctl` prints: `enabled`, `inactive` and so on.
async fn state(command: &str, unit: &str) -> String {
    let printed = Command::new("systemctl").args([command, unit]).output();
    let printed = within("systemctl", printed).await.unwrap();
    String::from_utf8(printed.stdout).unwrap().trim().to_owned()
}

/// Returns the files of the package, and those below a directory that is only for it.
async fn files_of_package() -> Vec<String> {
    let listed = output("dpkg-query", &["--listfiles", "vcpud"]).await;
    let is_own = |path: &&str| path.contains("vcpu") && Path::new(path).exists();
    listed.lines().filter(is_own).map(str::to_owned).collect()
}

#[tokio::test]
async fn the_package_activates_the_service_and_leaves_nothing_when_it_is_purged() {
    let host = Host::enter().await;
    output("busctl", &CALL).await;
    fs::create_dir_all("/etc/vcpud/machines.d").unwrap();
    fs::write("/etc/vcpud/vcpud.toml", "").unwrap();
    // Sockets that the QEMUs of other tests left: the package keeps sockets.
    output("find", &["/run/vcpud", "-type", "s", "-delete"]).await;
    let files = files_of_package().await;
    assert!(files.len() > 15, "{files:?}");
    let _installed = Installed;

    apt(&["purge", "vcpud"]).await;
    let mut left: Vec<&str> = files.iter().map(String::as_str).collect();
    left.extend(["/etc/vcpud", "/run/vcpud"]);
    left.retain(|path| Path::new(path).exists());
    assert!(left.is_empty(), "{left:?}");
    let units = [
        "list-units",
        "--all",
        "--no-legend",
        "vcpud.*",
        "vcpud-exporter.*",
        "vcpud-autoscale.*",
    ];
    assert_eq!(output("systemctl", &units).await, "");
    // Links to enabled units, and their records.
    let find = ["/etc", "/var/lib/systemd", "-name", "*vcpud*"];
    assert_eq!(output("find", &find).await, "");
    let users = fs::read_to_string("/etc/passwd").unwrap();
    assert!(!users.contains("vcpud"), "{users}");
    let call = Command::new("busctl").args(CALL).output();
    let call = within("busctl", call).await.unwrap();
    assert!(!call.status.success(), "{call:?}");

    apt(&["install", PACKAGE]).await;
    assert_eq!(state("is-enabled", "vcpud.path").await, "enabled");
    assert_eq!(state("is-active", "vcpud.path").await, "active");
    for (unit, enabled) in [
        ("vcpud.service", "disabled"),
        ("vcpud-exporter.socket", "disabled"),
        ("vcpud-exporter.service", "static"),
        ("vcpud-autoscale.service", "enabled"),
    ] {
        assert_eq!(state("is-enabled", unit).await, enabled, "{unit}");
        assert_eq!(state("is-active", unit).await, "inactive", "{unit}");
    }
    assert_eq!(output("busctl", &CALL).await, "a(sou) 0");
    host.has("ActiveState", "active").await;
}
