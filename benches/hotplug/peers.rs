//! The connections to libvirt-dbus, libvirt and vcpud.

use std::collections::HashMap;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{interval, timeout};
use vcpud::proxy::{MachineProxy, ManagerProxy};
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath, proxy};

/// The time limit of one step.
pub(super) const LIMIT: Duration = Duration::from_secs(600);

/// A way to change the number of vCPUs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    RawQmp,
    LibvirtDbus,
    Libvirt,
    Vcpud,
}

impl Way {
    /// All ways; the first is the floor.
    pub(super) const ALL: [Self; 4] = [Self::RawQmp, Self::LibvirtDbus, Self::Libvirt, Self::Vcpud];
    /// Their names, for readers.
    pub(super) const NAMES: [&str; 4] = ["raw QMP", "libvirt-dbus", "libvirt (virsh)", "vcpud"];
}

#[proxy(
    interface = "org.libvirt.Connect",
    default_service = "org.libvirt",
    default_path = "/org/libvirt/QEMU"
)]
trait Connect {
    fn domain_lookup_by_name(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
}

#[proxy(interface = "org.libvirt.Domain", default_service = "org.libvirt")]
pub(super) trait Domain {
    fn set_vcpus(&self, count: u32, flags: u32) -> zbus::Result<()>;
}

/// The programs that change vCPUs.
pub(super) struct Peers {
    bus: Connection,
    pub(super) virsh: Virsh,
}

impl Peers {
    pub(super) async fn connect() -> Self {
        let bus = Connection::system().await.expect("the system bus runs");
        let virsh = Virsh::start().await;
        Self { bus, virsh }
    }

    /// Returns the domain `name` of libvirt-dbus.
    pub(super) async fn domain(&self, name: &str) -> DomainProxy<'static> {
        let libvirt = ConnectProxy::new(&self.bus).await.expect("the bus runs");
        let path = libvirt.domain_lookup_by_name(name).await;
        let proxy = DomainProxy::builder(&self.bus).path(path.expect("the domain exists"));
        let proxy = proxy.cache_properties(CacheProperties::No).build().await;
        proxy.expect("the bus runs")
    }

    /// Returns the machine `name` of vcpud when it has one vCPU.
    pub(super) async fn machine(&self, name: &str) -> MachineProxy<'static> {
        let manager = ManagerProxy::new(&self.bus).await.expect("the bus runs");
        let found = async {
            let mut tries = interval(Duration::from_millis(20));
            loop {
                tries.tick().await;
                let Ok(path) = manager.get_machine(name).await else {
                    continue;
                };
                let proxy = MachineProxy::builder(&self.bus).path(path);
                let proxy = proxy.cache_properties(CacheProperties::No).build().await;
                let machine = proxy.expect("the bus runs");
                if machine.vcpus().await == Ok(1) {
                    return machine;
                }
            }
        };
        timeout(LIMIT, found)
            .await
            .expect("vcpud finds the machine")
    }
}

/// Changes the vCPUs of a machine of vcpud, and waits for removals.
pub(super) async fn set_by_vcpud(machine: &MachineProxy<'static>, count: u32) {
    let limit = LIMIT.as_micros() as u64;
    let options = HashMap::from([("timeout-usec", limit.into())]);
    let result = machine.set_vcpus(count, options).await;
    result.expect("vcpud changes the machine");
}

/// A `virsh` that reads commands from its standard input.
pub(super) struct Virsh {
    input: ChildStdin,
    output: ChildStdout,
    _process: Child,
}

impl Virsh {
    const PROMPT: &[u8] = b"virsh # ";

    async fn start() -> Self {
        let mut command = Command::new("virsh");
        command.args(["--connect", "qemu:///system"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command
            .kill_on_drop(true)
            .spawn()
            .expect("virsh is installed");
        let mut virsh = Self {
            input: process.stdin.take().expect("it is piped"),
            output: process.stdout.take().expect("it is piped"),
            _process: process,
        };
        virsh.prompt().await;
        virsh
    }

    /// Executes a command, and returns when virsh waits for the next one. virsh prints errors to the standard error.
    pub(super) async fn execute(&mut self, command: &str) {
        let line = format!("{command}\n");
        let sent = self.input.write_all(line.as_bytes()).await;
        sent.expect("virsh runs");
        self.prompt().await;
    }

    async fn prompt(&mut self) {
        let mut output = Vec::new();
        while !output.ends_with(Self::PROMPT) {
            let read = timeout(LIMIT, self.output.read_buf(&mut output)).await;
            let length = read.expect("virsh ends the command").expect("a pipe");
            assert_ne!(
                length,
                0,
                "virsh ended: {}",
                String::from_utf8_lossy(&output)
            );
        }
    }
}
