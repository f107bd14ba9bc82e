//! A bus, the service on it and a client: what every test starts with.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use fake_qemu::{Model, Peer, until};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::watch;
use vcpud::proxy::ManagerProxy;
use zbus::Connection;
use zbus::fdo::DBusProxy;
use zbus::proxy::CacheProperties;

use super::bus::{self, Bus};
use super::guest::follow;
use super::machine::{Failure, Machine};
use super::polkit::Polkit;
use super::process::{Process, command, command_of_nobody};
use super::program::copy_program;
use super::service::Service;
use super::signals::Signals;
use super::systemd::Systemd;
use super::wait::within;

const VCPUCTL: &str = env!("CARGO_BIN_EXE_vcpuctl");

/// The lines that a program has printed.
pub(crate) type Lines = watch::Receiver<Vec<String>>;

/// The user and group nobody.
pub(super) const NOBODY: u32 = 65534;

/// A bus with its clients. The parts are dropped in the order of the fields.
pub(crate) struct World {
    pub(crate) service: Option<Service>,
    pub(crate) signals: Signals,
    pub(crate) connection: Connection,
    pub(crate) polkit: Option<Polkit>,
    pub(crate) bus: Bus,
}

/// Who a call is made as, and whether polkit may ask for a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interaction {
    Allowed,
    Forbidden,
}

impl World {
    /// A bus with the test as its only client, which records signals.
    pub(crate) async fn without_service() -> Self {
        let bus = Bus::start().await;
        let connection = bus.connect().await;
        let signals = Signals::record(&connection).await;
        Self {
            service: None,
            signals,
            connection,
            polkit: None,
            bus,
        }
    }

    /// The service on a bus without polkit.
    pub(crate) async fn without_polkit() -> Self {
        let mut world = Self::without_service().await;
        world.serve().await;
        world
    }

    /// The service on a bus with a polkit that has `rules`.
    pub(crate) async fn with_polkit(rules: &str) -> Self {
        let mut world = Self::without_service().await;
        world.polkit = Some(Polkit::start(&world.bus, rules));
        bus::owned(&world.connection, "org.freedesktop.PolicyKit1").await;
        world.serve().await;
        world
    }

    /// Starts the service without waiting for it.
    pub(crate) fn start_service(&mut self) {
        self.service = Some(Service::start_as(&self.bus, "vcpud"));
    }

    /// Starts the service.
    pub(crate) async fn serve(&mut self) {
        self.start_service();
        bus::owned(&self.connection, "org.vcpud1").await;
    }

    /// Starts the service with what `systemd` keeps for it.
    pub(crate) async fn serve_under(&mut self, systemd: &Systemd) {
        self.service = Some(Service::start_under(&self.bus, systemd));
        bus::owned(&self.connection, "org.vcpud1").await;
    }

    /// The unique names of all connections to the bus.
    pub(crate) async fn unique_names(&self) -> Vec<String> {
        let bus = DBusProxy::new(&self.connection).await;
        let names = bus.expect("a proxy").list_names().await;
        let names = names.expect("the bus answers").into_iter();
        let names = names.map(|name| name.to_string());
        names.filter(|name| name.starts_with(':')).collect()
    }

    /// Connects the test to the bus again, which was restarted.
    pub(crate) async fn reconnect(&mut self) {
        self.connection = self.bus.connect().await;
        self.signals = Signals::record(&self.connection).await;
    }

    /// Where the QMP socket of a machine belongs.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        let directory = self.bus.runtime_directory().join("qmp");
        fs::create_dir_all(&directory).expect("the directory is writable");
        directory.join(format!("{name}.sock"))
    }

    /// Where the socket of a machine's guest agent belongs.
    pub(crate) fn agent_socket(&self, name: &str) -> PathBuf {
        let directory = self.bus.runtime_directory().join("guest-agent");
        fs::create_dir_all(&directory).expect("the directory is writable");
        directory.join(format!("{name}.sock"))
    }

    /// Runs vcpuctl: its exit status, what it prints, and what it complains of.
    pub(crate) async fn vcpuctl(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(VCPUCTL);
        self.run(command.args(arguments)).await
    }

    /// The same as the user nobody.
    pub(crate) async fn vcpuctl_of_nobody(&self, arguments: &[&str]) -> (i32, String, String) {
        let copy = self.copy_of_vcpuctl();
        self.run(command_of_nobody(copy).args(arguments)).await
    }

    /// Returns a copy of vcpuctl for the user nobody. This user has no access to the directory of the original.
    pub(crate) fn copy_of_vcpuctl(&self) -> PathBuf {
        let copy = self.bus.directory().join("vcpuctl");
        if !copy.exists() {
            copy_program(VCPUCTL, &copy);
        }
        copy
    }

    /// Runs a client on the bus: its exit status, what it prints, and what it complains of.
    pub(crate) async fn run(&self, command: &mut Command) -> (i32, String, String) {
        command
            .env("DBUS_SYSTEM_BUS_ADDRESS", self.bus.address())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = within("vcpuctl", command.output()).await;
        let output = output.expect("it can be run");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it writes UTF-8");
        let status = output.status.code().expect("it was not killed");
        (status, text(output.stdout), text(output.stderr))
    }

    /// Starts vcpuctl. Returns the process, and the lines that it prints.
    pub(crate) fn start_vcpuctl(&self, arguments: &[&str]) -> (Process, Lines) {
        let mut command = command(VCPUCTL);
        command
            .args(arguments)
            .env("DBUS_SYSTEM_BUS_ADDRESS", self.bus.address())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut process = Process::spawn("vcpuctl", &mut command);
        let stdout = process.child.stdout.take().expect("it is piped");
        (process, follow(stdout))
    }

    /// Does `what` as the user `nobody`, with its own connection to the bus.
    pub(crate) async fn with_nobody<T: Send + 'static, F: Future<Output = T>>(
        &self,
        what: impl FnOnce(ManagerProxy<'static>) -> F + Send + 'static,
    ) -> T {
        let address = self.bus.address().to_owned();
        let (sender, result) = tokio::sync::oneshot::channel();
        // A thread has a user of its own as far as the kernel is concerned.
        std::thread::spawn(move || {
            set_thread_groups(&[]).expect("the test is root");
            let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
            set_thread_res_gid(group, group, group).expect("root may");
            set_thread_res_uid(user, user, user).expect("root may");
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().expect("a runtime");
            let result = runtime.block_on(async {
                let builder = zbus::connection::Builder::address(address.as_str());
                let connection = builder.build().await;
                let connection = connection.expect("the bus takes nobody");
                let builder = ManagerProxy::builder(&connection);
                let builder = builder.cache_properties(CacheProperties::No);
                what(builder.build().await.expect("the bus is there")).await
            });
            let _ = sender.send(result);
        });
        within("the calls of the user nobody", result)
            .await
            .expect("it is done")
    }

    /// The root object of the service.
    pub(crate) async fn manager(&self) -> ManagerProxy<'static> {
        let builder = ManagerProxy::builder(&self.connection);
        let builder = builder.cache_properties(CacheProperties::No);
        builder.build().await.expect("the bus is there")
    }

    /// The names of all machines.
    pub(crate) async fn names(&self) -> Vec<String> {
        let machines = self.manager().await.list_machines().await;
        let machines = machines.expect("everybody may list them").into_iter();
        machines.map(|(name, ..)| name).collect()
    }

    /// The machine `name`, as soon as its QEMU has answered.
    pub(crate) async fn machine(&self, name: &str) -> Machine {
        self.machine_if(name, |state| state != "disconnected").await
    }

    /// The machine `name`, as soon as it is there. Its QEMU may not have answered.
    pub(crate) async fn machine_in_any_state(&self, name: &str) -> Machine {
        self.machine_if(name, |_| true).await
    }

    async fn machine_if(&self, name: &str, is_awaited: impl Fn(&str) -> bool) -> Machine {
        let manager = self.manager().await;
        let mut signals = self.signals.clone();
        let found = async {
            loop {
                signals.catch_up();
                if let Ok(path) = manager.get_machine(name).await {
                    let machine = Machine::new(&self.connection, path, self.signals.clone()).await;
                    let state = machine.state().await;
                    if state.is_ok_and(|state| is_awaited(&state)) {
                        return machine;
                    }
                }
                signals.next().await;
            }
        };
        within(format!("a machine {name}"), found).await
    }

    /// The machine `name`, as a client with a connection of its own has it.
    pub(crate) async fn machine_seen_by_another(&self, name: &str) -> Machine {
        let path = self.machine(name).await.path().to_owned();
        let path = path.try_into().expect("a path");
        let connection = self.bus.connect().await;
        Machine::new(&connection, path, self.signals.clone()).await
    }

    /// Lets a process of nobody's listen at `socket`, and returns it with the connection over which
    /// it passes on what its one client says and hears.
    pub(crate) async fn nobody_listens(&self, socket: &Path) -> (Process, UnixStream) {
        let directory = socket.parent().expect("it is in a directory");
        let anyone = fs::Permissions::from_mode(0o1777);
        fs::set_permissions(directory, anyone).expect("the directory is the test's");
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("it is a socket");
        let input = OwnedFd::from(theirs);
        let output = input.try_clone().expect("a descriptor is free");
        let mut command = command_of_nobody("socat");
        command
            .arg(format!("UNIX-LISTEN:{}", socket.display()))
            .arg("STDIO")
            .stdin(input)
            .stdout(output);
        let process = Process::spawn("socat", &mut command);
        // A socket file appears before the socket listens. The service may connect at once,
        // and then socat listens no longer: its accepted socket has the path.
        const LISTENS: &str = " 00010000 0001 01 ";
        const IS_CONNECTED: &str = " 00000000 0001 03 ";
        let path = format!(" {}", socket.display());
        let is_ready = || {
            let sockets = fs::read_to_string("/proc/net/unix").expect("Linux has it");
            let mut own = sockets.lines().filter(|line| line.ends_with(&path));
            own.any(|line| line.contains(LISTENS) || line.contains(IS_CONNECTED))
        };
        until("socat to listen", is_ready).await;
        (process, UnixStream::from_std(ours).expect("it is a socket"))
    }

    /// A scripted QEMU that is the machine `name`.
    pub(crate) fn peer(&self, name: &str, model: Model) -> Peer {
        Peer::start(&self.socket(name), model)
    }

    /// A scripted QEMU that is the machine `name`, in a process of its own: socat, which passes on what the
    /// service and the QEMU of the test say. It serves one connection.
    pub(crate) fn process_peer(&self, name: &str, model: Model) -> (Process, Peer) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("it is a socket");
        let input = OwnedFd::from(theirs);
        let output = input.try_clone().expect("a descriptor is free");
        let mut command = command("socat");
        command
            .arg(format!("UNIX-LISTEN:{}", self.socket(name).display()))
            .arg("STDIO")
            .stdin(input)
            .stdout(output);
        let process = Process::spawn("socat", &mut command);
        let stream = UnixStream::from_std(ours).expect("it is a socket");
        (process, Peer::on(stream, model))
    }

    /// Calls a method as the user nobody, by busctl, which gives what it prints.
    pub(crate) async fn as_nobody(
        &self,
        interaction: Interaction,
        call: &[&str],
    ) -> Result<String, Failure> {
        let mut command = command_of_nobody("busctl");
        command
            .arg(format!("--address={}", self.bus.address()))
            .arg(match interaction {
                Interaction::Allowed => "--allow-interactive-authorization=yes",
                Interaction::Forbidden => "--allow-interactive-authorization=no",
            })
            .arg("call")
            .args(call)
            // Else it does not show the names of errors.
            .env("SYSTEMD_LOG_LEVEL", "debug")
            .env("SYSTEMD_LOG_TARGET", "console")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = within("busctl", command.output()).await;
        let output = output.expect("setpriv and busctl are there (run tests/setup)");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("busctl writes UTF-8");
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        if output.status.success() {
            Ok(stdout.trim_end().to_owned())
        } else {
            Err(failure(&stderr))
        }
    }

    /// `SetVcpus` of a machine as the user nobody.
    pub(crate) async fn set_as_nobody(
        &self,
        interaction: Interaction,
        machine: &Machine,
        count: u32,
    ) -> Result<String, Failure> {
        let path = machine.path();
        let count = count.to_string();
        let method = [
            "org.vcpud1",
            path,
            "org.vcpud1.Machine",
            "SetVcpus",
            "ua{sv}",
        ];
        let call = [&method[..], &[&count, "0"]].concat();
        self.as_nobody(interaction, &call).await
    }
}

/// The error that busctl got, from what it logs.
fn failure(log: &str) -> Failure {
    let of_error = |line: &&str| line.contains("type=error");
    let line = log
        .lines()
        .rfind(of_error)
        .unwrap_or_else(|| panic!("busctl says: {log}"));
    let (_, rest) = line
        .split_once(" error-name=")
        .expect("an error has a name");
    let (name, text) = rest
        .split_once(" error-message=")
        .expect("an error has a text");
    Failure {
        name: name.to_owned(),
        text: text.to_owned(),
    }
}
