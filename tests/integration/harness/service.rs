//! The real vcpud on the bus of the test.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::thread;

use futures_util::StreamExt;
use inotify::{Inotify, WatchMask};
use rustix::process::Signal;

use super::bus::Bus;
use super::process::{Process, command};
use super::systemd::Systemd;
use super::wait::within;

/// The log level. Tests read debug messages; benchmarks measure the service as it is installed.
const LOG: &str = if cfg!(debug_assertions) {
    "vcpud=debug"
} else {
    "vcpud=info"
};

/// A running vcpud. Where a test fails, its log is shown.
pub(crate) struct Service {
    process: Process,
    log: PathBuf,
}

impl Service {
    /// Starts vcpud on `bus`, with the log `NAME.log`. It is ready when it owns its name.
    pub(crate) fn start_as(bus: &Bus, name: &str) -> Self {
        Self::spawn(bus, name, None)
    }

    /// Starts vcpud on `bus` as a service of `systemd`, with what that keeps.
    pub(crate) fn start_under(bus: &Bus, systemd: &Systemd) -> Self {
        Self::spawn(bus, "vcpud", Some(systemd))
    }

    fn spawn(bus: &Bus, name: &str, systemd: Option<&Systemd>) -> Self {
        let log = bus.directory().join(format!("{name}.log"));
        let stderr = File::create(&log).expect("the directory is writable");
        let mut command = match systemd {
            None => command(env!("CARGO_BIN_EXE_vcpud")),
            Some(systemd) => systemd.command(env!("CARGO_BIN_EXE_vcpud")),
        };
        if systemd.is_none() {
            command.env_remove("NOTIFY_SOCKET");
        }
        command
            .env("DBUS_SYSTEM_BUS_ADDRESS", bus.address())
            .env("RUNTIME_DIRECTORY", bus.runtime_directory())
            .env("CONFIGURATION_DIRECTORY", bus.configuration_directory())
            .env("RUST_LOG", LOG)
            // As in systemd/vcpud.service.
            .env("MALLOC_ARENA_MAX", "2")
            .env_remove("JOURNAL_STREAM")
            .stderr(stderr);
        let process = Process::spawn("vcpud", &mut command);
        Self { process, log }
    }

    /// Its PID.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns its log.
    pub(crate) fn log(&self) -> String {
        let log = fs::read(&self.log);
        log.map_or_else(
            |error| format!("(no log: {error})"),
            |log| String::from_utf8_lossy(&log).into_owned(),
        )
    }

    /// Waits until it has logged something with `text` in it.
    pub(crate) async fn has_logged(&self, text: &str) {
        let what = format!("{text:?} in the log");
        self.logs(&what, |log| log.contains(text)).await;
    }

    /// Waits for `what`: a log for which `condition` is true.
    pub(crate) async fn logs(&self, what: &str, condition: impl Fn(&str) -> bool) {
        let inotify = Inotify::init().expect("a watch is free");
        let watched = inotify.watches().add(&self.log, WatchMask::MODIFY);
        watched.expect("the log exists");
        let events = inotify.into_event_stream([0; 4096]);
        let mut events = events.expect("a descriptor is free");
        let logged = async {
            while !condition(&self.log()) {
                events.next().await;
            }
        };
        within(what, logged).await;
    }

    /// The most memory that it had, in MiB (`VmHWM` in `proc_pid_status(5)`).
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        kib.expect("a number") >> 10
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        let directory = format!("/proc/{}/fd", self.process.pid());
        fs::read_dir(directory).expect("it runs").count()
    }

    /// Sends it `SIGHUP`.
    pub(crate) fn reload(&self) {
        self.process.signal(Signal::HUP);
    }

    /// Sends it `SIGTERM`.
    pub(crate) fn terminate(&self) {
        self.process.terminate();
    }

    /// Kills it and waits until it is gone.
    pub(crate) async fn kill(&mut self) {
        self.process.kill().await;
    }

    /// Waits until it ends.
    pub(crate) async fn wait(&mut self) -> ExitStatus {
        let status = self.process.wait().await;
        self.has_not_panicked();
        status
    }

    /// A panic ends the installed service. That of the test goes on without the task.
    fn has_not_panicked(&self) {
        assert!(!self.log().contains("panicked at"), "vcpud panicked");
    }
}

impl Drop for Service {
    #[expect(clippy::print_stderr, reason = "for readers of a failed test")]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- {}:\n{}---", self.log.display(), self.log());
        } else {
            self.has_not_panicked();
        }
    }
}
