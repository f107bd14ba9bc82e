//! A real QEMU, with the Linux guest that `tests/setup` makes or with firmware only.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::ChildStdout;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{interval, timeout};

use super::process::{Process, command};
use super::wait::within;
use super::world::World;

/// Emulated guests are slow when there are more of them than host CPUs.
static ROOM: Semaphore = Semaphore::const_new(2);

/// The hardware that a QEMU emulates.
pub(crate) struct Hardware {
    /// The QEMU that does it, as `tests/setup` calls it.
    pub(crate) qemu: &'static str,
    /// Its options.
    pub(crate) options: &'static [&'static str],
    /// What follows the number of vCPUs in `-smp`.
    pub(crate) shape: &'static str,
    /// The Linux for it, an initrd and Linux's name of the console.
    pub(crate) linux: [&'static str; 3],
}

impl Hardware {
    /// A PC of our time.
    pub(crate) const Q35: Self = Self {
        qemu: "qemu",
        options: &["-machine", "q35", "-cpu", "qemu64", "-m", "256"],
        shape: "maxcpus=64",
        linux: ["vmlinuz", "initrd", "ttyS0"],
    };

    /// The same, which waits for the last of its configuration.
    pub(crate) const PRECONFIG: Self = Self {
        options: &[
            "-machine",
            "q35",
            "-cpu",
            "qemu64",
            "-m",
            "256",
            "-preconfig",
        ],
        ..Self::Q35
    };

    /// A PC of the nineties.
    pub(crate) const PC: Self = Self {
        options: &["-machine", "pc", "-cpu", "qemu64", "-m", "256"],
        ..Self::Q35
    };

    /// A PC without ACPI, PCI and slots for CPUs.
    pub(crate) const MICROVM: Self = Self {
        options: &["-machine", "microvm", "-m", "256"],
        shape: "maxcpus=4",
        ..Self::Q35
    };

    /// A PC with two sockets, each a NUMA node, and something on every level below.
    pub(crate) const NUMA: Self = Self {
        options: &[
            "-machine",
            "q35",
            "-cpu",
            "qemu64",
            "-m",
            "256",
            "-object",
            "memory-backend-ram,id=m0,size=128M",
            "-object",
            "memory-backend-ram,id=m1,size=128M",
            // Node 1 comes first.
            "-numa",
            "node,nodeid=0,memdev=m0",
            "-numa",
            "node,nodeid=1,memdev=m1",
            "-numa",
            "cpu,node-id=1,socket-id=0",
            "-numa",
            "cpu,node-id=0,socket-id=1",
        ],
        shape: "sockets=2,dies=2,modules=2,cores=2,threads=2,maxcpus=32",
        ..Self::Q35
    };

    /// A server of the POWER kind, with cores of one thread.
    pub(crate) const PSERIES: Self = Self {
        qemu: "qemu-ppc64",
        options: &["-machine", "pseries", "-m", "512"],
        shape: "maxcpus=64",
        linux: ["vmlinux-ppc64", "initrd-ppc64", "hvc0"],
    };

    /// The same with cores of four threads.
    pub(crate) const PSERIES_SMT4: Self = Self {
        shape: "threads=4,maxcpus=64",
        ..Self::PSERIES
    };

    /// The servers with the firmware that does no more than boot Linux, and that at once.
    pub(crate) const PSERIES_LINUX: Self = Self {
        options: &["-machine", "pseries,x-vof=on", "-m", "512"],
        ..Self::PSERIES
    };

    /// See [`Hardware::PSERIES_LINUX`] and [`Hardware::PSERIES_SMT4`].
    pub(crate) const PSERIES_SMT4_LINUX: Self = Self {
        shape: Self::PSERIES_SMT4.shape,
        ..Self::PSERIES_LINUX
    };

    /// A mainframe. It finds nothing to boot, which is a panic to it.
    pub(crate) const S390X: Self = Self {
        qemu: "qemu-s390x",
        options: &["-machine", "s390-ccw-virtio", "-m", "256", "-no-shutdown"],
        shape: "drawers=2,books=2,sockets=2,cores=8,maxcpus=64",
        ..Self::Q35
    };

    /// An ARM server.
    pub(crate) const AARCH64: Self = Self {
        qemu: "qemu-aarch64",
        options: &["-machine", "virt", "-cpu", "cortex-a57", "-m", "256"],
        shape: "maxcpus=4",
        ..Self::Q35
    };

    /// A LoongArch server.
    pub(crate) const LOONGARCH64: Self = Self {
        qemu: "qemu-loongarch64",
        options: &["-machine", "virt", "-m", "1G"],
        shape: "maxcpus=64",
        ..Self::Q35
    };

    /// A RISC-V board.
    pub(crate) const RISCV64: Self = Self {
        qemu: "qemu-riscv64",
        options: &["-machine", "virt", "-m", "256", "-bios", "none"],
        shape: "maxcpus=4",
        ..Self::Q35
    };
}

/// How to start a QEMU.
pub(crate) struct Boot {
    /// Its emulated hardware.
    pub(crate) hardware: Hardware,
    /// vCPUs at the start.
    pub(crate) vcpus: u32,
    /// QEMU's `-accel`.
    pub(crate) accelerator: &'static str,
    /// Whether Linux is booted; else there is firmware only.
    pub(crate) linux: bool,
    /// Whether the guest does not run.
    pub(crate) paused: bool,
    /// Whether Linux leaves new CPUs offline, and has an agent that can bring them online.
    pub(crate) agent: bool,
}

impl Boot {
    /// A PC with two vCPUs and firmware only.
    pub(crate) const FIRMWARE: Self = Self {
        hardware: Hardware::Q35,
        vcpus: 2,
        accelerator: "tcg,thread=multi",
        linux: false,
        paused: false,
        agent: false,
    };

    /// The same, which runs all vCPUs in one thread.
    pub(crate) const ONE_THREAD: Self = Self {
        accelerator: "tcg,thread=single",
        ..Self::FIRMWARE
    };
}

impl Default for Boot {
    fn default() -> Self {
        Self {
            hardware: Hardware::Q35,
            vcpus: 1,
            accelerator: "tcg,thread=multi",
            linux: true,
            paused: false,
            agent: false,
        }
    }
}

/// How many vCPUs a PC has room for. QEMU 10 aborts under TCG when more were added in its life.
pub(crate) const MAX_VCPUS: u32 = 64;

/// QEMU writes every QMP command that it gets to its standard error.
const TRACE_OF_COMMANDS: &str = "handle_qmp_command";

/// Waits until there is room for another guest.
async fn room(world: &World) -> SemaphorePermit<'static> {
    loop {
        match timeout(Duration::from_secs(10), ROOM.acquire()).await {
            Ok(room) => return room.expect("it is never closed"),
            // Without machines and calls, the service would end by itself.
            Err(_) => drop(world.manager().await.list_machines().await),
        }
    }
}

/// A running QEMU.
pub(crate) struct Qemu {
    process: Process,
    console: watch::Receiver<Vec<String>>,
    directory: PathBuf,
    witness: Option<Witness>,
    orders: Option<UnixStream>,
    _room: SemaphorePermit<'static>,
}

/// A QMP connection of the test itself, to compare the service with QEMU.
struct Witness {
    replies: Lines<BufReader<OwnedReadHalf>>,
    commands: OwnedWriteHalf,
}

impl Qemu {
    /// Returns the path of a second QMP socket.
    pub(crate) fn witness_socket(&self) -> PathBuf {
        self.directory.join("witness")
    }

    /// Starts a QEMU whose QMP socket makes it the machine `name`.
    pub(crate) async fn start(world: &World, name: &str, boot: &Boot) -> Self {
        Self::start_with(&[], world, name, boot).await
    }

    /// The same in a PID namespace of its own, as in a container.
    pub(crate) async fn start_in_pid_namespace(world: &World, name: &str, boot: &Boot) -> Self {
        let unshare = ["unshare", "--pid", "--fork", "--kill-child"];
        Self::start_with(&unshare, world, name, boot).await
    }

    /// The same with a program that runs it.
    async fn start_with(wrapper: &[&str], world: &World, name: &str, boot: &Boot) -> Self {
        let room = room(world).await;
        let kit = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/target/guest"));
        let hardware = &boot.hardware;
        let [kernel, initrd, terminal] = hardware.linux;
        for part in [hardware.qemu, kernel, initrd] {
            let part = kit.join(part);
            assert!(part.exists(), "no {}; run tests/setup", part.display());
        }
        let directory = tempfile::tempdir_in(world.bus.directory());
        let directory = directory.expect("there is room for a directory").keep();
        let qemu = kit.join(hardware.qemu);
        let mut command = match wrapper {
            [] => command(qemu),
            [program, arguments @ ..] => {
                let mut command = command(program);
                command.args(arguments).arg(qemu);
                command
            }
        };
        command
            .arg("-name")
            .arg(format!("{name},debug-threads=on"))
            .args(hardware.options)
            .args(["-accel", boot.accelerator])
            .arg("-smp")
            .arg(format!("{},{}", boot.vcpus, hardware.shape))
            .args(["-trace", TRACE_OF_COMMANDS])
            .args(["-display", "none", "-nodefaults", "-no-user-config"])
            .args(["-serial", "stdio", "-serial"])
            .arg(listen(&directory.join("orders")))
            .arg("-qmp")
            .arg(listen(&directory.join("witness")))
            .arg("-qmp")
            .arg(listen(&world.socket(name)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(directory.join("stderr")).expect("it is writable"));
        let mut options = format!("console={terminal} quiet panic=-1");
        if boot.agent {
            options.push_str(" guest.no-online");
            let port = listen(&world.agent_socket(name));
            command.args(["-serial", port.as_str()]);
        }
        if boot.paused {
            command.arg("-S");
        }
        if boot.linux {
            command
                .arg("-kernel")
                .arg(kit.join(kernel))
                .arg("-initrd")
                .arg(kit.join(initrd))
                .arg("-append")
                .arg(options);
        }
        let mut process = Process::spawn("QEMU", &mut command);
        let stdout = process.child.stdout.take().expect("it is piped");
        Self {
            process,
            console: follow(stdout),
            directory,
            witness: None,
            orders: None,
            _room: room,
        }
    }

    /// Its PID.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Kills it with `SIGKILL`.
    pub(crate) async fn kill(&mut self) {
        self.process.kill().await;
    }

    /// Waits until the guest uses the CPUs `list`, such as `0-3`, and no others.
    pub(crate) async fn online(&mut self, list: &str) {
        let wanted = format!("ONLINE {list}");
        let is_there = |lines: &Vec<String>| {
            let last = lines.iter().rfind(|line| line.starts_with("ONLINE"));
            last.is_some_and(|last| *last == wanted)
        };
        let found = self.console.wait_for(is_there);
        let found = within(format!("{wanted:?} of the guest"), found).await;
        drop(found.expect("QEMU runs"));
    }

    /// Gives the guest an order, and waits until it is carried out.
    pub(crate) async fn order(&mut self, order: &str) {
        if self.orders.is_none() {
            let connected = UnixStream::connect(self.directory.join("orders")).await;
            let port = self.orders.insert(connected.expect("QEMU listens"));
            // Bytes may be lost before the guest has opened its port.
            port.write_all(b"\n\n\n\n\n\n\n\n")
                .await
                .expect("QEMU reads");
        }
        let port = self.orders.as_mut().expect("it was connected");
        let said = self.console.borrow_and_update().len();
        port.write_all(format!("{order}\n").as_bytes())
            .await
            .expect("QEMU reads");
        let (done, failed) = (format!("DONE {order}"), format!("FAILED {order}"));
        let is_answer = |line: &String| *line == done || *line == failed;
        let answered = self
            .console
            .wait_for(|lines| lines[said..].iter().any(is_answer));
        let lines = within(format!("the guest to {order}"), answered).await;
        let lines = lines.expect("QEMU runs");
        assert!(!lines[said..].contains(&failed), "the guest cannot {order}");
    }

    /// Returns the load average of the guest over one minute.
    pub(crate) async fn load_average(&mut self) -> f64 {
        self.order("average").await;
        let console = self.console.borrow();
        let mut averages = console
            .iter()
            .rev()
            .filter_map(|line| line.strip_prefix("AVERAGE "));
        let average = averages.next().expect("it is the answer");
        average.parse().expect("a number")
    }

    /// Resets the guest, and waits until it has booted again.
    pub(crate) async fn reset(&mut self) {
        let boots = |lines: &Vec<String>| lines.iter().filter(|l| *l == "GUEST-READY").count();
        let before = boots(&self.console.borrow());
        self.execute("system_reset", json!({})).await;
        let booted = self.console.wait_for(|lines| boots(lines) > before);
        let booted = within("the guest to boot again", booted).await;
        drop(booted.expect("QEMU runs"));
    }

    /// Executes a QMP command past the service.
    pub(crate) async fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let reply = self.ask(command, arguments).await;
        assert!(reply.get("error").is_none(), "{reply}");
        reply["return"].clone()
    }

    async fn ask(&mut self, command: &str, arguments: Value) -> Value {
        if self.witness.is_none() {
            self.witness = Some(Witness::connect(&self.directory.join("witness")).await);
        }
        let witness = self.witness.as_mut().expect("it was connected");
        witness.execute(command, arguments).await
    }

    /// Executes a QMP command that it refuses, past the service. Returns its words.
    pub(crate) async fn refusal(&mut self, command: &str, arguments: Value) -> String {
        let reply = self.ask(command, arguments).await;
        let text = reply["error"]["desc"].as_str();
        text.unwrap_or_else(|| panic!("{reply}")).to_owned()
    }

    /// Waits until QEMU says that its migration is `wanted`.
    pub(crate) async fn migration(&mut self, wanted: &str) {
        // QEMU emits an event for this only if a client enables it, which would change the test.
        let mut checks = interval(Duration::from_millis(5));
        let reached = async {
            while self.execute("query-migrate", json!({})).await["status"] != wanted {
                checks.tick().await;
            }
        };
        within(format!("a migration that is {wanted}"), reached).await;
    }

    /// How often it was asked `command`, by the service or the test.
    pub(crate) fn count(&self, command: &str) -> usize {
        let log = fs::read_to_string(self.directory.join("stderr"));
        let log = log.expect("QEMU writes UTF-8");
        let of_command = |line: &&str| {
            let request = line
                .split_once(TRACE_OF_COMMANDS)
                .map(|(_, request)| request);
            request.is_some_and(|request| request.contains(&format!("\"execute\": \"{command}\"")))
        };
        log.lines().filter(of_command).count()
    }

    /// The thread ids of its vCPUs, as QEMU itself lists them.
    pub(crate) async fn threads(&mut self) -> Vec<u64> {
        let cpus = self.execute("query-cpus-fast", json!({})).await;
        let cpus = cpus.as_array().expect("a list");
        let ids = cpus.iter().map(|cpu| cpu["thread-id"].as_u64());
        ids.map(|id| id.expect("a thread id")).collect()
    }
}

impl Drop for Qemu {
    #[expect(clippy::print_stderr, reason = "for readers of a failed test")]
    fn drop(&mut self) {
        if thread::panicking() {
            let console = self.console.borrow().join("\n");
            let stderr = fs::read_to_string(self.directory.join("stderr"));
            let stderr = stderr.unwrap_or_default();
            eprintln!("--- the guest:\n{console}\n--- its QEMU:\n{stderr}---");
        }
    }
}

impl Witness {
    async fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).await;
        let stream = stream.expect("QEMU listens, where the service has found it");
        let (replies, commands) = stream.into_split();
        let replies = BufReader::new(replies).lines();
        let mut witness = Self { replies, commands };
        witness.execute("qmp_capabilities", json!({})).await;
        witness
    }

    /// Executes a command. Returns the reply, with its `return` or `error`.
    async fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let line = json!({"execute": command, "arguments": arguments, "id": command});
        let line = format!("{line}\n");
        let sent = self.commands.write_all(line.as_bytes()).await;
        sent.expect("QEMU reads");
        within(format!("the reply to {command}"), async {
            loop {
                let line = self.replies.next_line().await.expect("QEMU writes UTF-8");
                let line = line.expect("QEMU runs");
                let message: Value = serde_json::from_str(&line).expect("QEMU writes JSON");
                if message["id"] == command {
                    return message;
                }
            }
        })
        .await
    }
}

fn listen(socket: &Path) -> String {
    format!("unix:{},server=on,wait=off", socket.display())
}

/// Collects the lines that a program prints.
pub(super) fn follow(stdout: ChildStdout) -> watch::Receiver<Vec<String>> {
    let (sender, lines) = watch::channel(Vec::new());
    tokio::spawn(async move {
        let mut console = BufReader::new(stdout).split(b'\n');
        while let Ok(Some(line)) = console.next_segment().await {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            sender.send_modify(|lines: &mut Vec<String>| lines.push(line));
        }
    });
    lines
}
