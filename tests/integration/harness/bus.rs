//! A system bus of the test's own: a real dbus-daemon with the policy of Debian's system bus.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use futures_util::StreamExt;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use zbus::Connection;
use zbus::connection::Builder;
use zbus::fdo::DBusProxy;

use super::process::{Process, command};
use super::wait::within;

/// As `/usr/share/dbus-1/system.conf` and polkit's own policy, without what starts services.
const CONFIG: &str = r#"
<busconfig>
  <type>system</type>
  <auth>EXTERNAL</auth>
  <listen>unix:path=@directory@/bus</listen>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.PolicyKit1"/>
  </policy>
  <policy user="root">
    <allow send_destination="org.freedesktop.DBus"
           send_interface="org.freedesktop.DBus.Debug.Stats"/>
    <allow send_destination="org.freedesktop.DBus"
           send_interface="org.freedesktop.DBus.Monitoring"/>
    <allow own="org.freedesktop.systemd1"/>
    <allow send_destination="org.freedesktop.systemd1"/>
  </policy>
  <policy user="polkitd">
    <allow own="org.freedesktop.PolicyKit1"/>
    <allow send_interface="org.freedesktop.PolicyKit1.AuthenticationAgent"/>
  </policy>
  <include>@project@/dbus/org.vcpud1.conf</include>
  <include>@project@/dbus/org.vcpud1.Autoscale.conf</include>
</busconfig>
"#;

/// A running bus and a directory for all that belongs to it.
pub(crate) struct Bus {
    daemon: Process,
    address: String,
    directory: TempDir,
}

impl Bus {
    /// Starts a bus.
    pub(crate) async fn start() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("vcpud-test.")
            .permissions(fs::Permissions::from_mode(0o755)) // for other users of the bus
            .tempdir()
            .expect("there is room for a directory");
        let config = CONFIG
            .replace("@directory@", directory.path().to_str().expect("UTF-8"))
            .replace("@project@", env!("CARGO_MANIFEST_DIR"));
        let file = directory.path().join("bus.conf");
        fs::write(&file, config).expect("the directory is writable");

        let (daemon, address) = run(&file).await;
        Self {
            daemon,
            address,
            directory,
        }
    }

    /// Ends it and starts it again: all clients lose their connections.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        (self.daemon, self.address) = run(&self.directory().join("bus.conf")).await;
    }

    /// Ends it.
    pub(crate) async fn stop(&mut self) {
        self.daemon.kill().await;
    }

    /// Its address, as in `DBUS_SYSTEM_BUS_ADDRESS`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The directory of the test, which everyone may enter.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the `RUNTIME_DIRECTORY` of a service on this bus.
    pub(crate) fn runtime_directory(&self) -> PathBuf {
        self.directory().join("run")
    }

    /// Returns the `CONFIGURATION_DIRECTORY` of a service on this bus.
    pub(crate) fn configuration_directory(&self) -> PathBuf {
        self.directory().join("etc")
    }

    /// A connection to it, as the user of the test.
    pub(crate) async fn connect(&self) -> Connection {
        let builder = Builder::address(self.address());
        within("a connection to the bus", builder.build())
            .await
            .expect("the bus takes the test")
    }
}

/// Runs a dbus-daemon with the configuration `file`. Returns it with its address.
async fn run(file: &Path) -> (Process, String) {
    let mut command = command("dbus-daemon");
    command
        .arg("--config-file")
        .arg(file)
        .args(["--nofork", "--print-address"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut daemon = Process::spawn("dbus-daemon", &mut command);
    let stdout = daemon.child.stdout.take().expect("it is piped");
    let mut lines = BufReader::new(stdout).lines();
    let address = within("the address of the bus", lines.next_line()).await;
    let address = address.expect("dbus-daemon writes UTF-8");
    (daemon, address.expect("dbus-daemon starts"))
}

/// Waits until `name` has an owner.
pub(crate) async fn owned(connection: &Connection, name: &'static str) {
    let bus = DBusProxy::new(connection).await.expect("the bus is there");
    let filter = [(0, name)];
    let changes = bus.receive_name_owner_changed_with_args(&filter);
    let mut changes = changes.await.expect("the bus emits the signal");
    let has_owner = async {
        if is_owned(connection, name).await {
            return;
        }
        // The end of the last owner is a change too.
        while let Some(change) = changes.next().await {
            if change.args().expect("sss").new_owner().is_some() {
                return;
            }
        }
        panic!("the bus ended");
    };
    within(format!("an owner of {name}"), has_owner).await;
}

/// Returns whether `name` has an owner.
pub(crate) async fn is_owned(connection: &Connection, name: &'static str) -> bool {
    let bus = DBusProxy::new(connection).await.expect("the bus is there");
    let name = name.try_into().expect("a bus name");
    bus.name_has_owner(name).await.expect("the bus answers")
}
