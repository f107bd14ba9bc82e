//! The machine and the versions of a run.

use std::fs;
use std::process::Command;
use std::thread::available_parallelism;
use std::time::SystemTime;

use serde::Serialize;

/// Where and when a benchmark runs.
#[derive(Serialize)]
pub(super) struct Host {
    /// The time of the run in UTC (RFC 3339).
    date: String,
    cpu: String,
    cpus: usize,
    linux: String,
    qemu: String,
    vcpud: &'static str,
}

impl Host {
    pub(super) fn here() -> Self {
        let kit = concat!(env!("CARGO_MANIFEST_DIR"), "/target/guest/qemu");
        let qemu = [kit, "qemu-system-x86_64"].into_iter().find_map(version);
        Self {
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            cpu: cpu().unwrap_or_else(|| "unknown CPU".to_owned()),
            cpus: available_parallelism().map_or(0, Into::into),
            linux: read("/proc/sys/kernel/osrelease"),
            qemu: qemu.unwrap_or_else(|| "unknown".to_owned()),
            vcpud: env!("CARGO_PKG_VERSION"),
        }
    }

    /// Returns one line for readers.
    pub(super) fn line(&self) -> String {
        let Self {
            date,
            cpu,
            cpus,
            linux,
            qemu,
            vcpud,
        } = self;
        format!("{date}, {cpus} CPUs ({cpu}), Linux {linux}, QEMU {qemu}, vcpud {vcpud}")
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// Returns the name of the CPU (`proc_cpuinfo(5)`).
fn cpu() -> Option<String> {
    let text = read("/proc/cpuinfo");
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Returns the version that a QEMU prints.
fn version(qemu: &str) -> Option<String> {
    let output = Command::new(qemu).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.strip_prefix("QEMU emulator version ")?;
    version.split_whitespace().next().map(str::to_owned)
}
