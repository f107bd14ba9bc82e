//! A real polkitd on the bus of the test, with the project's actions and rules of the test.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;

use super::bus::Bus;
use super::process::{Process, command};

const ACTIONS: &str = "/usr/share/polkit-1/actions";
const POLKITD: &str = "/usr/lib/polkit-1/polkitd";

/// In a mount namespace of its own, polkitd finds our files where it looks for them.
const SCRIPT: &str = r#"
    mount --bind "$1" /usr/share/polkit-1/actions &&
    mount --bind "$2" /etc/polkit-1/rules.d &&
    exec "$3" --no-debug
"#;

/// A running polkitd.
pub(crate) struct Polkit {
    daemon: Process,
}

impl Polkit {
    /// Starts polkitd with `rules`, in JavaScript, before the rules of the system.
    pub(crate) fn start(bus: &Bus, rules: &str) -> Self {
        assert!(
            Path::new(POLKITD).exists(),
            "there is no {POLKITD}; run tests/setup"
        );
        let actions = bus.directory().join("polkit-actions");
        let rules_directory = bus.directory().join("polkit-rules");
        copy_actions(&actions);
        fs::create_dir(&rules_directory).expect("the directory is writable");
        fs::write(rules_directory.join("10-test.rules"), rules).expect("the file is writable");

        let mut command = command("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT])
            .arg("sh")
            .args([&actions, &rules_directory])
            .arg(POLKITD)
            .env("DBUS_SYSTEM_BUS_ADDRESS", bus.address())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self {
            daemon: Process::spawn("polkitd", &mut command),
        }
    }
}

impl Polkit {
    /// Stops it in the middle of whatever it does.
    pub(crate) fn pause(&self) {
        self.daemon.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        self.daemon.signal(Signal::CONT);
    }
}

/// The actions of the system, and ours.
fn copy_actions(to: &Path) {
    let ours = ["org.vcpud1.policy", "org.vcpud1.Autoscale.policy"];
    let ours = ours.map(|name| {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("polkit")
            .join(name)
    });
    fs::create_dir(to).expect("the directory is writable");
    let entries = fs::read_dir(ACTIONS).expect("polkit is installed (run tests/setup)");
    let theirs = entries.map(|entry| entry.expect("it can be listed").path());
    for file in theirs.chain(ours) {
        let name = file.file_name().expect("a file has a name");
        fs::copy(&file, to.join(name)).expect("a policy can be copied");
    }
}
