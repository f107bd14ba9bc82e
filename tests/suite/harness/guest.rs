//! A real QEMU with the Linux guest that `tests/setup` makes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::ChildStdout;
use tokio::sync::{Semaphore, SemaphorePermit, watch};

use super::process::{Process, command};
use super::wait::within;
use super::world::World;

/// Emulated guests are slow when there are more of them than host CPUs.
static ROOM: Semaphore = Semaphore::const_new(2);

/// How to start a QEMU.
pub(crate) struct Boot {
    /// vCPUs at the start.
    pub(crate) vcpus: u32,
    /// QEMU's `-accel`.
    pub(crate) accelerator: &'static str,
    /// Whether Linux is booted; else there is firmware only.
    pub(crate) linux: bool,
}

impl Default for Boot {
    fn default() -> Self {
        Self {
            vcpus: 1,
            accelerator: "tcg,thread=multi",
            linux: true,
        }
    }
}

/// How many vCPUs each has room for. QEMU 10 aborts under TCG when more were added in its life.
pub(crate) const MAX_VCPUS: u32 = 64;

/// A running QEMU.
pub(crate) struct Qemu {
    process: Process,
    console: watch::Receiver<Vec<String>>,
    directory: PathBuf,
    witness: Option<Witness>,
    orders: Option<UnixStream>,
    _room: SemaphorePermit<'static>,
}

/// A QMP connection of the test's own, which tells what QEMU itself says.
struct Witness {
    replies: Lines<BufReader<OwnedReadHalf>>,
    commands: OwnedWriteHalf,
}

impl Qemu {
    /// Starts a QEMU whose QMP socket makes it the machine `name`.
    pub(crate) async fn start(world: &World, name: &str, boot: &Boot) -> Self {
        let room = ROOM.acquire().await.expect("it is never closed");
        let kit = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/target/guest"));
        for part in ["qemu", "vmlinuz", "initrd"] {
            let part = kit.join(part);
            assert!(part.exists(), "no {}; run tests/setup", part.display());
        }
        let directory = tempfile::tempdir_in(world.bus.directory());
        let directory = directory.expect("there is room for a directory").keep();
        let mut command = command(kit.join("qemu"));
        command
            .arg("-name")
            .arg(format!("{name},debug-threads=on"))
            .args(["-machine", "q35", "-cpu", "qemu64", "-m", "256"])
            .args(["-accel", boot.accelerator])
            .arg("-smp")
            .arg(format!("{},maxcpus={MAX_VCPUS}", boot.vcpus))
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
        if boot.linux {
            command
                .arg("-kernel")
                .arg(kit.join("vmlinuz"))
                .arg("-initrd")
                .arg(kit.join("initrd"))
                .args(["-append", "console=ttyS0 quiet panic=-1"]);
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
            // What comes before the guest has opened its port may be lost.
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

    /// Executes a QMP command past the service.
    pub(crate) async fn execute(&mut self, command: &str, arguments: Value) -> Value {
        if self.witness.is_none() {
            self.witness = Some(Witness::connect(&self.directory.join("witness")).await);
        }
        let witness = self.witness.as_mut().expect("it was connected");
        witness.execute(command, arguments).await
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
    #[expect(clippy::print_stderr, reason = "for who reads why a test failed")]
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
                    assert!(message.get("error").is_none(), "{message}");
                    return message["return"].clone();
                }
            }
        })
        .await
    }
}

fn listen(socket: &Path) -> String {
    format!("unix:{},server=on,wait=off", socket.display())
}

/// Collects the lines of the guest's console.
fn follow(stdout: ChildStdout) -> watch::Receiver<Vec<String>> {
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
