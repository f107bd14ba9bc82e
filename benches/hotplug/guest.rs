//! A guest, and the client that changes its vCPUs.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use vcpud::proxy::MachineProxy;

use super::domain::{self, DIRECTORY};
use super::peers::{DomainProxy, LIMIT, Peers, Virsh, Way, set_by_vcpud};
use super::raw_qmp::{Batch, RawQmp};
use super::timing::timed;

/// A guest of libvirt.
pub(super) struct Guest {
    name: String,
    way: Way,
    /// The number of vCPUs after the last change.
    present: u32,
    /// The QMP socket that neither libvirt nor vcpud uses.
    qmp: RawQmp,
    console: Lines<BufReader<UnixStream>>,
    domain: DomainProxy<'static>,
    machine: Option<MachineProxy<'static>>,
}

/// One change, which is ready to be sent.
enum Change<'a> {
    Add(&'a mut RawQmp, Batch),
    Remove(&'a mut RawQmp, u32),
    ByLibvirtDbus(&'a DomainProxy<'static>, u32),
    ByVirsh(&'a mut Virsh, String),
    ByVcpud(&'a MachineProxy<'static>, u32),
}

impl Guest {
    /// Starts a guest with one vCPU of `max`. A guest that is paused has not run at all.
    pub(super) async fn start(peers: &mut Peers, way: Way, max: u32, paused: bool) -> Self {
        fs::create_dir_all(DIRECTORY).expect("root may");
        // QEMU does not run as root, and creates sockets there.
        for directory in [DIRECTORY, "/run/vcpud/qmp"] {
            fs::set_permissions(directory, Permissions::from_mode(0o777)).expect("root may");
        }
        let name = format!("guest-{}", fastrand::u32(..));
        let file = domain::path(&name, "xml");
        fs::write(&file, domain::xml(&name, way, max)).expect("root may");
        let option = if paused { "--paused" } else { "" };
        let command = format!("create {} {option}", file.display());
        peers.virsh.execute(&command).await;
        let console = UnixStream::connect(domain::path(&name, "console")).await;
        let machine = match way {
            Way::Vcpud => Some(peers.machine(&name).await),
            Way::RawQmp | Way::LibvirtDbus | Way::Libvirt => None,
        };
        Self {
            way,
            present: 1,
            qmp: RawQmp::connect(&domain::path(&name, "qmp")).await,
            console: BufReader::new(console.expect("QEMU runs")).lines(),
            domain: peers.domain(&name).await,
            machine,
            name,
        }
    }

    /// Changes the number of vCPUs. Returns the time until the reply.
    pub(super) async fn set(&mut self, peers: &mut Peers, count: u32) -> Duration {
        let (change, _) = self.prepare(peers, count).await;
        let ((), time) = timed(change.perform()).await;
        self.present = count;
        time
    }

    /// Changes the number of vCPUs. Returns the time until the reply, and until the guest uses these CPUs.
    pub(super) async fn set_and_wait(&mut self, peers: &mut Peers, count: u32) -> [Duration; 2] {
        let (change, console) = self.prepare(peers, count).await;
        let (((), reply), ((), used)) =
            tokio::join!(timed(change.perform()), timed(online(console, count)));
        self.present = count;
        let left = async {
            while self.vcpus().await != count {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LIMIT, left).await.expect("QEMU has these vCPUs");
        [reply, used]
    }

    /// Pauses the guest, so that it does not disturb others.
    pub(super) async fn pause(&mut self) {
        self.qmp.execute("stop").await;
    }

    /// Lets the guest run, and gives it and its peers a moment to notice this.
    pub(super) async fn resume(&mut self) {
        self.qmp.execute("cont").await;
        sleep(Duration::from_millis(300)).await;
    }

    /// Waits until the guest uses `count` CPUs.
    pub(super) async fn online(&mut self, count: u32) {
        online(&mut self.console, count).await;
    }

    /// Returns the number of vCPUs in QEMU.
    pub(super) async fn vcpus(&mut self) -> u32 {
        let vcpus = self.qmp.execute("query-cpus-fast").await;
        vcpus.as_array().expect("a list").len() as u32
    }

    /// Ends the guest.
    pub(super) async fn end(self, peers: &mut Peers) {
        peers.virsh.execute(&format!("destroy {}", self.name)).await;
        if self.way == Way::Vcpud {
            let socket = format!("/run/vcpud/qmp/{}.sock", self.name);
            // QEMU may have removed it.
            fs::remove_file(socket).unwrap_or_default();
        }
    }

    async fn prepare<'a>(
        &'a mut self,
        peers: &'a mut Peers,
        count: u32,
    ) -> (Change<'a>, &'a mut Lines<BufReader<UnixStream>>) {
        let change = match self.way {
            Way::RawQmp if count > self.present => {
                let additions = self.qmp.additions(count - self.present).await;
                Change::Add(&mut self.qmp, additions)
            }
            Way::RawQmp => Change::Remove(&mut self.qmp, self.present - count),
            Way::LibvirtDbus => Change::ByLibvirtDbus(&self.domain, count),
            Way::Libvirt => {
                let command = format!("setvcpus {} {count} --live", self.name);
                Change::ByVirsh(&mut peers.virsh, command)
            }
            Way::Vcpud => {
                let machine = self.machine.as_ref();
                Change::ByVcpud(machine.expect("a machine of vcpud"), count)
            }
        };
        (change, &mut self.console)
    }
}

impl Change<'_> {
    /// Performs the change, and returns after the reply. libvirt does not wait longer than 5 s for a guest that
    /// removes a vCPU; its error is the reply then.
    #[expect(clippy::print_stderr, reason = "errors, as virsh prints them")]
    async fn perform(self) {
        /// The flag of libvirt for a change of the running domain (`VIR_DOMAIN_AFFECT_LIVE`).
        const LIVE: u32 = 1;
        match self {
            Self::Add(qmp, additions) => qmp.add(&additions).await,
            Self::Remove(qmp, count) => qmp.remove(count).await,
            Self::ByLibvirtDbus(domain, count) => {
                if let Err(error) = domain.set_vcpus(count, LIVE).await {
                    eprintln!("libvirt-dbus: {error}");
                }
            }
            Self::ByVirsh(virsh, command) => virsh.execute(&command).await,
            Self::ByVcpud(machine, count) => set_by_vcpud(machine, count).await,
        }
    }
}

/// Waits until a guest reports that it uses the first `count` CPUs.
async fn online(console: &mut Lines<BufReader<UnixStream>>, count: u32) {
    let wanted = match count {
        1 => "ONLINE 0".to_owned(),
        _ => format!("ONLINE 0-{}", count - 1),
    };
    let reported = async {
        loop {
            let line = console.next_line().await.expect("the console is text");
            if line.expect("QEMU runs").trim() == wanted {
                return;
            }
        }
    };
    timeout(LIMIT, reported)
        .await
        .expect("the guest uses the CPUs");
}
