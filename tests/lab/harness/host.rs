//! The host: its system bus with the installed service on it, and its systemd.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::task::yield_now;
use vcpud::names::BUS_NAME;
use vcpud::proxy::ManagerProxy;
use zbus::OwnedObjectPath;
use zbus::fdo::DBusProxy;
use zbus::names::BusName;
use zbus::proxy::CacheProperties;
use zbus::{Connection, MatchRule, MessageStream};

use super::exit::has_exited;
use super::guest::Guest;
use super::machine::Machine;
use super::signals::Signals;
use super::wait::within;

/// The connection of a test to the system bus, which records the signals of vcpud.
pub(crate) struct Host {
    pub(crate) connection: Connection,
    pub(crate) signals: Signals,
}

/// A rule of polkit, in force until this is dropped.
pub(crate) struct Rule {
    file: PathBuf,
}

/// Lines of the unit of the service, in force until this is dropped.
pub(crate) struct DropIn {
    file: PathBuf,
}

impl Host {
    /// Connects to the system bus, which does not start vcpud.
    pub(crate) async fn enter() -> Self {
        let connection = within("the system bus", Connection::system()).await;
        let connection = connection.expect("the host has a system bus");
        let signals = Signals::record(&connection).await;
        Self {
            connection,
            signals,
        }
    }

    /// Returns the root object of the service. The first call starts the service if it does not run.
    pub(crate) async fn manager(&self) -> ManagerProxy<'static> {
        let builder = ManagerProxy::builder(&self.connection);
        let builder = builder.cache_properties(CacheProperties::No);
        builder.build().await.expect("the bus works")
    }

    /// Returns the machine `name`, after its QEMU has answered and the service has placed it, or cannot.
    pub(crate) async fn machine(&self, name: &str) -> Machine {
        let manager = self.manager().await;
        self.found(name.to_owned(), || manager.get_machine(name))
            .await
    }

    /// Returns the machine of `guest`. Another machine with this name may still exist.
    pub(crate) async fn machine_of(&self, guest: &Guest) -> Machine {
        let manager = self.manager().await;
        let what = format!("of {}", guest.pid());
        self.found(what, || manager.get_machine_by_pid(guest.pid()))
            .await
    }

    /// Returns the machine that `find` finds, after it is connected and its placement is decided. In an emulated
    /// host, QEMU can listen for seconds before it answers, and systemd can take seconds for a scope.
    async fn found<F>(&self, what: String, find: impl Fn() -> F) -> Machine
    where
        F: Future<Output = zbus::Result<OwnedObjectPath>>,
    {
        let mut signals = self.signals.clone();
        let found = async {
            loop {
                signals.catch_up();
                if let Ok(path) = find().await {
                    let machine = Machine::new(&self.connection, path, self.signals.clone()).await;
                    if is_served(&machine).await == Ok(true) {
                        return machine;
                    }
                }
                signals.next().await;
            }
        };
        within(format!("a machine {what}"), found).await
    }

    /// Lets systemd end the service.
    pub(crate) async fn stop_service(&self) {
        output("systemctl", &["stop", "vcpud.service"]).await;
    }

    /// Returns a property of the unit of the service.
    pub(crate) async fn unit(&self, property: &str) -> String {
        let arguments = ["show", "--value", "--property", property, "vcpud.service"];
        output("systemctl", &arguments).await
    }

    /// Waits until a property of the unit of the service has this value.
    pub(crate) async fn has(&self, property: &str, value: &str) {
        let reached = async { while self.unit(property).await != value {} };
        within(format!("{property} to be {value}"), reached).await;
    }

    /// Kills the service, as the kernel does if memory is short, and waits until the bus knows. systemd starts it
    /// again within a second, and for a call at once. Returns whether it ran.
    pub(crate) async fn kill_service(&self) -> bool {
        let main: u32 = self.unit("MainPID").await.parse().expect("a PID");
        let Some(process) = Pid::from_raw(main as i32) else {
            return false;
        };
        let killed = kill_process(process, Signal::KILL).is_ok();
        let bus = DBusProxy::new(&self.connection).await;
        let bus = bus.expect("the bus works");
        let owner = async || {
            let name = BusName::try_from(BUS_NAME).expect("a name");
            bus.get_connection_unix_process_id(name).await.ok()
        };
        let gone = async { while owner().await == Some(main) {} };
        within("the end of the service", gone).await;
        killed
    }

    /// Waits until the service answers, and starts it if it does not run. A call fails if the service was killed
    /// while it started.
    pub(crate) async fn answers(&self) {
        let manager = self.manager().await;
        let answered = async {
            while manager.version().await.is_err() {
                // Without a bus, a call fails at once, and the time limit is checked only here.
                yield_now().await;
            }
        };
        within("the service to answer", answered).await;
    }

    /// Returns the number of log entries with `text` since the last start of the service.
    pub(crate) async fn said(&self, text: &str) -> usize {
        let invocation = format!("_SYSTEMD_INVOCATION_ID={}", self.unit("InvocationID").await);
        output("journalctl", &["--sync"]).await;
        let said = output("journalctl", &["--output", "cat", &invocation]).await;
        said.matches(text).count()
    }

    /// Waits until the log since the last start of the service has `text`. Returns the number of these entries.
    pub(crate) async fn logs(&self, text: &str) -> usize {
        let logged = async {
            loop {
                match self.said(text).await {
                    0 => {}
                    count => return count,
                }
            }
        };
        within(format!("{text:?} in the log"), logged).await
    }

    /// Adds lines to the unit of the service, which must be started again.
    pub(crate) async fn drop_in(&self, lines: &str) -> DropIn {
        let directory = PathBuf::from("/run/systemd/system/vcpud.service.d");
        std::fs::create_dir_all(&directory).expect("root can create it");
        let file = directory.join("lab.conf");
        std::fs::write(&file, lines).expect("root can write it");
        output("systemctl", &["daemon-reload"]).await;
        DropIn { file }
    }

    /// Adds a rule, in JavaScript, before all other rules of polkit, and waits until it is in force.
    pub(crate) async fn rule(&self, script: &str) -> Rule {
        let changed = MatchRule::builder()
            .interface("org.freedesktop.PolicyKit1.Authority")
            .member("Changed")
            .build()
            .expect("a rule");
        let changes = MessageStream::for_match_rule(changed, &self.connection, None);
        let mut changes = changes.await.expect("the bus takes the rule");
        // polkit reads new rules only while it runs.
        output("systemctl", &["start", "polkit.service"]).await;
        let file = PathBuf::from("/etc/polkit-1/rules.d/00-lab.rules");
        std::fs::write(&file, script).expect("root can write it");
        within("polkit to read its rules", changes.next()).await;
        Rule { file }
    }
}

impl Drop for Rule {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

impl Drop for DropIn {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
        let mut reload = std::process::Command::new("systemctl");
        let _ = reload.arg("daemon-reload").status();
    }
}

/// Returns whether a machine is connected to a QEMU that runs, and its placement is decided: its threads are in its
/// unit, or the reason why not is known. An error means that the machine is gone.
async fn is_served(machine: &Machine) -> zbus::Result<bool> {
    const UNDECIDED: [&str; 2] = ["has not answered yet", "being moved"];
    let state = machine.state().await?;
    let errors = machine.placement_errors().await?;
    let is_undecided = |error: &String| UNDECIDED.iter().any(|text| error.contains(text));
    // The service sees later that the QEMU of an earlier test has exited.
    let runs = !has_exited(machine.leader().await?, Duration::ZERO);
    Ok(runs && state != "disconnected" && !errors.iter().any(is_undecided))
}

/// Returns the output of a program, which must succeed.
pub(crate) async fn output(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = within(format!("the end of {program}"), command.output()).await;
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8").trim().to_owned();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {stdout} {stderr}"
    );
    stdout
}
