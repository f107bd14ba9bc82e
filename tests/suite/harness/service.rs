//! The real vcpud on the bus of the test.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::thread;

use super::bus::Bus;
use super::process::{Process, command};

/// A running vcpud. Where a test fails, its log is shown.
pub(crate) struct Service {
    process: Process,
    log: PathBuf,
}

impl Service {
    /// Starts vcpud on `bus`, with the log `NAME.log`. It is ready when it owns its name.
    pub(crate) fn start_as(bus: &Bus, name: &str) -> Self {
        let log = bus.directory().join(format!("{name}.log"));
        let stderr = File::create(&log).expect("the directory is writable");
        let mut command = command(env!("CARGO_BIN_EXE_vcpud"));
        command
            .env("DBUS_SYSTEM_BUS_ADDRESS", bus.address())
            .env("RUNTIME_DIRECTORY", bus.runtime_directory())
            .env("CONFIGURATION_DIRECTORY", bus.configuration_directory())
            .env("RUST_LOG", "vcpud=debug")
            .env_remove("JOURNAL_STREAM")
            .env_remove("NOTIFY_SOCKET")
            .stderr(stderr);
        let process = Process::spawn("vcpud", &mut command);
        Self { process, log }
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        let log = fs::read(&self.log);
        log.map_or_else(
            |error| format!("(no log: {error})"),
            |log| String::from_utf8_lossy(&log).into_owned(),
        )
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        let directory = format!("/proc/{}/fd", self.process.pid());
        fs::read_dir(directory).expect("it runs").count()
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
        self.process.wait().await
    }
}

impl Drop for Service {
    #[expect(clippy::print_stderr, reason = "for who reads why a test failed")]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- {}:\n{}---", self.log.display(), self.log());
        }
    }
}
