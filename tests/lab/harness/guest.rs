//! A QEMU with KVM and a Linux guest, and its state in the kernel of the host.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::console::{Console, follow};
use super::exit::has_exited;
use super::lost::end_tests;
use super::place::Place;
use super::process::Process;
use super::qmp::Monitor;
use super::wait::{LIMIT, until, within};

/// The maximum number of vCPUs of a guest. An emulated host cannot run many more.
const MAX_VCPUS: u32 = 8;

const KIT: &str = "/usr/local/share/guest";
const SOCKETS: &str = "/run/vcpud/qmp";
/// The file to which QEMU writes a trace of its commands.
const TRACE: &str = "trace";

/// A running QEMU, which is the machine with this name. It is killed when this is dropped, and has exited then.
pub(crate) struct Guest {
    /// The process that started QEMU, or QEMU itself.
    process: Process,
    pid: u32,
    /// A second QMP monitor, without the service.
    pub(crate) monitor: Monitor,
    console: watch::Receiver<Console>,
    /// The number of lines of the console when the test began to wait for the CPUs of the guest.
    waits_since: Option<usize>,
    directory: TempDir,
    socket: PathBuf,
}

impl Guest {
    /// Boots Linux with one vCPU, and waits until it is ready.
    pub(crate) async fn boot(name: &str) -> Self {
        Self::boot_in(Place::Here, name).await
    }

    /// Like the function above, in `place`.
    pub(crate) async fn boot_in(place: Place, name: &str) -> Self {
        let mut guest = Self::start(place, name, "", &[]).await;
        guest.online("0").await;
        guest
    }

    /// Like the function above, with a guest that keeps `count` CPUs busy, if it has as many.
    pub(crate) async fn busy_in(place: Place, count: u32, name: &str) -> Self {
        // A background job reads from /dev/null.
        let null = "/bin/busybox mknod /dev/null c 1 3;";
        let burn = "(while :; do :; done) &".repeat(count as usize);
        // The arguments of init follow the dashes.
        let options = format!("rdinit=/bin/busybox -- sh -c \"{null} {burn} exec /init\"");
        let mut guest = Self::start(place, name, &options, &[]).await;
        guest.online("0").await;
        guest
    }

    /// Boots Linux with one vCPU and a load: numbers of busy threads, each for a time in seconds, one after the other.
    pub(crate) async fn loaded(name: &str, load: &[(u32, u32)]) -> Self {
        let null = "/bin/busybox mknod /dev/null c 1 3;";
        let burn = "b() { while :; do :; done; };";
        let start = "i=0; while [ $i -lt $1 ]; do b & i=$((i+1)); done;";
        let end = "/bin/busybox sleep $2; kill $(jobs -p); wait;";
        let steps = load.iter().map(|(busy, time)| format!("l {busy} {time};"));
        let steps: String = steps.collect();
        let script = format!("{null} {burn} l() {{ {start} {end} }}; ({steps}) & exec /init");
        let options = format!("rdinit=/bin/busybox -- sh -c \"{script}\"");
        let mut guest = Self::start(Place::Here, name, &options, &[]).await;
        guest.online("0").await;
        guest
    }

    /// Boots Linux with one vCPU, which leaves new CPUs offline.
    pub(crate) async fn boot_passive(name: &str) -> Self {
        let mut guest = Self::start(Place::Here, name, "guest.no-online", &[]).await;
        guest.online("0").await;
        guest
    }

    /// Boots a Linux that panics, and does nothing more.
    pub(crate) async fn panics(name: &str) -> Self {
        let mut guest = Self::start(Place::Here, name, "rdinit=/none panic=0", &[]).await;
        guest.says("end Kernel panic").await;
        guest
    }

    /// Starts a QEMU that finds nothing to boot, so that its firmware goes on.
    pub(crate) async fn firmware(name: &str) -> Self {
        let socket = PathBuf::from(format!("{SOCKETS}/{name}.sock"));
        Self::start_at(Place::Here, name, None, &[], socket).await
    }

    /// Starts a QEMU whose guest never runs.
    pub(crate) async fn paused(name: &str) -> Self {
        Self::paused_in(Place::Here, name).await
    }

    /// Like the function above, in `place`.
    pub(crate) async fn paused_in(place: Place, name: &str) -> Self {
        Self::start(place, name, "", &["-S"]).await
    }

    /// Like the function above, with a QEMU that has changed its user from root to `user`.
    pub(crate) async fn paused_as(user: &str, name: &str) -> Self {
        let user = format!("user={user}");
        Self::start(Place::Here, name, "", &["-S", "-run-with", &user]).await
    }

    /// Like the function above, with a socket outside the directory of the service.
    pub(crate) async fn paused_outside(name: &str) -> Self {
        // The service has a private /tmp.
        let socket = PathBuf::from(format!("/run/lab-{name}.sock"));
        Self::start_at(Place::Here, name, Some(""), &["-S"], socket).await
    }

    async fn start(place: Place, name: &str, linux: &str, options: &[&str]) -> Self {
        let socket = PathBuf::from(format!("{SOCKETS}/{name}.sock"));
        Self::start_at(place, name, Some(linux), options, socket).await
    }

    async fn start_at(
        place: Place,
        name: &str,
        linux: Option<&str>,
        options: &[&str],
        socket: PathBuf,
    ) -> Self {
        let directory = tempfile::Builder::new().prefix("lab-guest.").tempdir();
        let directory = directory.expect("a directory can be created");
        let monitor = directory.path().join("monitor");
        let listener = UnixListener::bind(&monitor).expect("the directory is writable");
        let mut command = place.command(name);
        command
            .arg("qemu-system-x86_64")
            .arg("-name")
            .arg(format!("guest={name},debug-threads=on"))
            .args(["-machine", "q35,accel=kvm", "-cpu", "host", "-m", "256"])
            .arg("-smp")
            .arg(format!("1,maxcpus={MAX_VCPUS},sockets={MAX_VCPUS}"))
            .args(["-display", "none", "-nodefaults", "-no-user-config"])
            .args(["-serial", "stdio", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .arg("-qmp")
            .arg(format!("unix:{}", monitor.display()))
            .args(["-msg", "timestamp=on"])
            .args(["-trace", "handle_qmp_command", "-D"])
            .arg(directory.path().join(TRACE))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(directory.path().join("stderr")).expect("it is writable"));
        if let Some(linux) = linux {
            command
                .args(["-kernel", &format!("{KIT}/vmlinux")])
                .args(["-initrd", &format!("{KIT}/initrd")])
                .args(["-append", &format!("console=ttyS0 quiet panic=-1 {linux}")]);
        }
        let mut process = Process::spawn("QEMU", &mut command);
        let stdout = process.child.stdout.take().expect("it is piped");
        let (monitor, pid) = Monitor::accept(&listener).await;
        Self {
            process,
            pid,
            monitor,
            console: follow(stdout),
            waits_since: None,
            directory,
            socket,
        }
    }

    /// Returns its QMP socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns the `commands` that QEMU received, in order, with their arguments.
    pub(crate) fn asked(&self, commands: &[&str]) -> Vec<(String, Value)> {
        let asked = self.trace().into_iter().filter_map(|(_, request)| {
            let command = request["execute"].as_str()?.to_owned();
            let is_meant = commands.contains(&command.as_str());
            is_meant.then(|| (command, request["arguments"].clone()))
        });
        asked.collect()
    }

    /// Returns the time when QEMU was last told to remove a vCPU.
    fn removed_at(&self) -> Option<SystemTime> {
        let trace = self.trace();
        let last = trace
            .iter()
            .rfind(|(_, request)| request["execute"] == "device_del");
        last.map(|(time, _)| *time)
    }

    /// Returns the commands that QEMU received, in order, with their times.
    fn trace(&self) -> Vec<(SystemTime, Value)> {
        // Also used after a panic, when another one would end the tests. The last line may be incomplete.
        let trace = fs::read_to_string(self.directory.path().join(TRACE)).unwrap_or_default();
        let commands = trace.lines().filter_map(|line| {
            // PID@SECONDS:handle_qmp_command mon ADDRESS req: REQUEST
            let (start, request) = line.split_once(" req: ")?;
            let (_, start) = start.split_once('@')?;
            let (seconds, _) = start.split_once(':')?;
            let since = Duration::from_secs_f64(seconds.parse().ok()?);
            let request = serde_json::from_str(request).ok()?;
            Some((SystemTime::UNIX_EPOCH + since, request))
        });
        commands.collect()
    }

    /// Returns the PID of its QEMU.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Kills QEMU, and waits until it has exited.
    pub(crate) async fn kill(&mut self) {
        self.end();
        self.process.wait().await;
    }

    fn end(&self) {
        let pid = Pid::from_raw(self.pid as i32).expect("a PID");
        // QEMU may have exited.
        let _ = kill_process(pid, Signal::KILL);
    }

    /// Returns the threads, with their names.
    pub(crate) fn tasks(&self) -> BTreeMap<u32, String> {
        let entries = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("QEMU runs");
        let task = |entry: std::io::Result<fs::DirEntry>| {
            let path = entry.expect("procfs can be read").path();
            // A thread may end at any time.
            let name = fs::read_to_string(path.join("comm")).ok()?;
            let number = path.file_name()?.to_str()?.parse().ok()?;
            Some((number, name.trim_end().to_owned()))
        };
        entries.filter_map(task).collect()
    }

    /// Returns the thread of a vCPU.
    pub(crate) fn thread(&self, vcpu: u32) -> u32 {
        let name = format!("CPU {vcpu}/KVM");
        let tasks = self.tasks();
        let mut found = tasks.iter().filter(|(_, task)| **task == name);
        *found
            .next()
            .unwrap_or_else(|| panic!("no {name:?} in {tasks:?}"))
            .0
    }

    /// Waits until the console of the guest has `text`.
    async fn says(&mut self, text: &str) {
        let is_there = |console: &Console| console.lines.iter().any(|line| line.contains(text));
        let found = self.console.wait_for(is_there);
        let found = within(format!("{text:?} of the guest"), found).await;
        drop(found.expect("QEMU runs"));
    }

    /// Waits until the guest uses the CPUs `list`, such as `0-3`, and no others.
    pub(crate) async fn online(&mut self, list: &str) {
        let wanted = format!("ONLINE {list}");
        self.waits_since = Some(self.console.borrow().lines.len());
        let is_there = |console: &Console| {
            let last = console
                .lines
                .iter()
                .rfind(|line| line.starts_with("ONLINE"));
            last.is_some_and(|last| *last == wanted)
        };
        let found = self.console.wait_for(is_there);
        let found = within(format!("{wanted:?} of the guest"), found).await;
        drop(found.expect("QEMU runs"));
        self.waits_since = None;
    }

    /// Returns the numbers of the vCPUs that have a thread, from the names of the threads.
    pub(crate) fn vcpu_threads(&self) -> Vec<u32> {
        let names = self.names_in("task", |task| fs::read_to_string(task.join("comm")).ok());
        let number = |name: &String| {
            let (number, _) = name.strip_prefix("CPU ")?.split_once("/KVM")?;
            number.parse().ok()
        };
        let mut numbers: Vec<u32> = names.iter().filter_map(number).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Waits until these vCPUs have a thread, and no others. A thread that has ended is in procfs until the kernel
    /// releases it.
    #[track_caller]
    pub(crate) fn has_threads(&self, vcpus: &[u32]) -> impl Future<Output = ()> {
        until("the vCPUs with a thread", vcpus.to_vec(), || {
            self.vcpu_threads()
        })
    }

    /// Returns the KVM descriptors of vCPUs, with the numbers of the vCPUs, in order.
    pub(crate) fn vcpu_descriptors(&self) -> Vec<(u32, u32)> {
        let names = self.names_in("fd", |fd| {
            let target = fs::read_link(&fd).ok()?;
            Some(format!("{} {}", target.display(), fd.display()))
        });
        let vcpu = |name: &String| {
            let rest = name.strip_prefix("anon_inode:kvm-vcpu:")?;
            let (number, path) = rest.split_once(' ')?;
            let fd = path.rsplit('/').next()?;
            Some((number.parse().ok()?, fd.parse().ok()?))
        };
        let mut vcpus: Vec<(u32, u32)> = names.iter().filter_map(vcpu).collect();
        vcpus.sort_unstable();
        vcpus
    }

    /// Returns the targets of all other descriptors, in order, without those of KVM statistics: QEMU 10 opens one
    /// for each added vCPU, and never closes it.
    pub(crate) fn other_descriptors(&self) -> Vec<String> {
        let of_vcpus = ["anon_inode:kvm-vcpu:", "anon_inode:kvm-vcpu-stats:"];
        let mut all = self.names_in("fd", |fd| {
            let target = fs::read_link(fd).ok()?.display().to_string();
            let of_vcpu = of_vcpus.iter().any(|kind| target.starts_with(kind));
            (!of_vcpu).then_some(target)
        });
        all.sort_unstable();
        all
    }

    /// Ends the tests if the guest has stalled or crashed, which happens in an emulated host.
    fn end_tests_if_stalled(&self) {
        let console = self.console.borrow();
        if let Some(stall) = console.stall(self.waits_since, self.removed_at()) {
            let socket = self.socket.display();
            let lines = console.lines.join("\n");
            end_tests(&format!(
                "{lines}\nthe guest of {socket} has stalled: {stall}"
            ));
        }
    }

    fn names_in(&self, kind: &str, name: impl Fn(PathBuf) -> Option<String>) -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/{}/{kind}", self.pid()));
        let entries = entries.expect("QEMU runs");
        let paths = entries.map(|entry| entry.expect("procfs can be read").path());
        paths.filter_map(name).collect()
    }
}

impl Drop for Guest {
    #[expect(clippy::print_stderr, reason = "shows the reason of a failed test")]
    fn drop(&mut self) {
        if thread::panicking() {
            let console = self.console.borrow().lines.join("\n");
            let stderr = fs::read_to_string(self.directory.path().join("stderr"));
            let stderr = stderr.unwrap_or_default();
            eprintln!("--- the guest:\n{console}\n--- its QEMU:\n{stderr}---");
            self.end_tests_if_stalled();
        }
        self.end();
        // The next test may use the name, and must not find this QEMU.
        has_exited(self.pid, LIMIT);
        // A QEMU that is killed does not remove its sockets.
        let _ = fs::remove_file(&self.socket);
    }
}
