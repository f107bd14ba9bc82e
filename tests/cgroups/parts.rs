//! The parts of the tests: the list of tests, a real QEMU, and other processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use vcpud::ids::{Pid, Tid, VcpuId};
use vcpud::placement::{CpuList, Report, Step};
use vcpud::placer::Host;
use vcpud::process::Tasks;

/// A test of this program.
pub(crate) struct Test {
    /// The path of the function, with the name of the program.
    pub(crate) name: &'static str,
    pub(crate) run: fn() -> Ran,
}

/// Lists the tests of a module in its function `tests`.
macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        pub(super) fn tests() -> Vec<$crate::parts::Test> {
            vec![$($crate::parts::Test {
                name: concat!(module_path!(), "::", stringify!($name)),
                run: $name,
            }),+]
        }
    };
}

/// The result of a test. A test that fails panics.
pub(crate) type Ran = Result<(), NotRun>;

/// This host cannot run the test.
#[derive(Debug)]
pub(crate) struct NotRun {
    /// The missing part of the host.
    pub(crate) reason: &'static str,
    /// Whether the host cannot have it, because it has the other version of control groups.
    pub(crate) is_expected: bool,
}

/// Returns why the test does not run: `reason`.
pub(crate) fn not_run(reason: &'static str) -> NotRun {
    let is_expected = false;
    NotRun {
        reason,
        is_expected,
    }
}

/// The controllers that the tests need.
const CONTROLLERS: [&str; 2] = ["cpu", "cpuset"];

/// Returns whether the host has both controllers in hierarchies of version 1.
pub(crate) fn has_version_1(host: &Host) -> bool {
    let controllers = &host.mounts.controllers;
    CONTROLLERS
        .iter()
        .all(|name| controllers.contains_key(*name))
}

/// Returns whether both controllers are enabled below the root of the hierarchy of version 2. The tests do
/// not enable them.
pub(crate) fn has_version_2(host: &Host) -> bool {
    let Some(mount) = &host.mounts.unified else {
        return false;
    };
    let enabled = fs::read_to_string(mount.point.join("cgroup.subtree_control"));
    let enabled = enabled.unwrap_or_default();
    let is_enabled = |wanted: &&str| enabled.split_whitespace().any(|name| name == *wanted);
    CONTROLLERS.iter().all(is_enabled)
}

/// A QEMU of four vCPUs. It is killed when this is dropped.
pub(crate) struct Qemu {
    pub(crate) child: Child,
    /// The threads of the vCPUs, as QEMU reports them.
    vcpus: BTreeMap<VcpuId, Tid>,
}

impl Qemu {
    /// Starts one that does not run yet.
    pub(crate) fn start() -> Self {
        Self::start_with(&["-S"])
    }

    /// Starts one whose first vCPU is always busy. The others wait for it.
    pub(crate) fn busy() -> Self {
        // Each pair of bytes is a jump to itself.
        let firmware = [0xeb, 0xfe].repeat(32 << 10);
        let mut file = tempfile::NamedTempFile::new().expect("there is room for it");
        file.write_all(&firmware).unwrap();
        let path = file.path().to_str().expect("UTF-8");
        // QEMU has read it when it replies.
        Self::start_with(&["-bios", path])
    }

    fn start_with(options: &[&str]) -> Self {
        let qemu = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest/qemu");
        assert!(qemu.exists(), "no {}; run tests/setup", qemu.display());
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(qemu)
            .args(["-machine", "q35", "-accel", "tcg,thread=multi"])
            .args(["-smp", "4", "-m", "64", "-display", "none"])
            .args(["-nodefaults", "-no-user-config", "-qmp", "stdio"])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("QEMU can be started");
        let commands = concat!(
            r#"{"execute": "qmp_capabilities"}"#,
            r#"{"execute": "query-cpus-fast"}"#
        );
        let stdin = child.stdin.as_mut().expect("it is a pipe");
        stdin.write_all(commands.as_bytes()).unwrap();
        let stdout = child.stdout.as_mut().expect("it is a pipe");
        let mut lines = BufReader::new(stdout).lines();
        // The greeting and the reply of the first command are before it.
        let reply: Value = serde_json::from_str(&lines.nth(2).unwrap().unwrap()).unwrap();
        let number = |cpu: &Value, name: &str| cpu[name].as_u64().unwrap() as u32;
        let vcpus = reply["return"].as_array().expect("it is a list").iter();
        let vcpus = vcpus.map(|cpu| {
            (
                VcpuId(number(cpu, "cpu-index")),
                Tid(number(cpu, "thread-id")),
            )
        });
        Self {
            vcpus: vcpus.collect(),
            child,
        }
    }

    pub(crate) fn vcpus(&self) -> BTreeMap<VcpuId, Tid> {
        self.vcpus.clone()
    }
}

impl Tasks for Qemu {
    fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    fn has_task(&self, thread: Tid) -> bool {
        Path::new(&format!("/proc/{}/task/{thread}", self.pid())).exists()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process without a relation to a QEMU. It is killed when this is dropped.
pub(crate) struct Bystander(Child);

impl Bystander {
    pub(crate) fn start() -> Self {
        let cat = Command::new("cat").stdin(Stdio::piped()).spawn();
        Self(cat.expect("cat can be started"))
    }

    pub(crate) fn thread(&self) -> Tid {
        Tid(self.0.id())
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// Returns the threads in a file of a group.
pub(crate) fn threads_in(file: &Path) -> BTreeSet<Tid> {
    let text = fs::read_to_string(file).unwrap();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

pub(crate) fn cpus(text: &str) -> CpuList {
    text.parse().unwrap()
}

/// Returns the first and the last of the host CPUs that are used without a pin.
pub(crate) fn two_cpus(host: &Host) -> (CpuList, CpuList) {
    let all = host.cpus().unwrap().default_cpus();
    let one = |cpu: Option<u32>| cpu.into_iter().collect();
    (one(all.iter().next()), one(all.iter().last()))
}

/// Returns the steps that were applied to each vCPU. Checks that no vCPU failed or had drifted.
pub(crate) fn applied(report: &Report) -> Vec<Vec<Step>> {
    assert!(report.is_complete(), "{report:#?}");
    assert_eq!(report.emulator, None);
    let outcomes = report.vcpus.values();
    outcomes
        .map(|outcome| {
            assert_eq!(outcome.drifted, []);
            outcome.applied.clone()
        })
        .collect()
}
