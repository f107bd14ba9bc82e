//! The state of the threads of a machine in the kernel, without the service: control groups, affinity and
//! schedulers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use zbus::Variant;

use super::guest::Guest;
use super::host::output;
use super::machine::Machine;

const MOUNT: &str = "/sys/fs/cgroup";

/// The control group of the unit of a machine, and the groups below.
#[derive(Clone, Debug)]
pub(crate) struct Groups {
    /// The path as in `/proc/PID/cgroup`.
    pub(crate) unit: String,
}

impl Groups {
    /// Waits until the unit of the machine is known, and returns its groups, from the properties of the service.
    pub(crate) async fn of(machine: &Machine) -> Self {
        let is_known = |group: &Variant<'_>| *group != Variant::from("");
        machine
            .wait_until("a control group", "ControlGroup", is_known)
            .await;
        let unit = machine.control_group().await;
        Self {
            unit: unit.expect("the property can be read"),
        }
    }

    /// Returns the groups around process `pid`.
    pub(crate) fn around(pid: u32) -> Self {
        Self {
            unit: group_of(&format!("/proc/{pid}/cgroup")).expect("the process runs"),
        }
    }

    /// Returns the path of a file of the group of the unit.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        let unit = Path::new(MOUNT).join(self.unit.trim_start_matches('/'));
        if file.is_empty() {
            unit
        } else {
            unit.join(file)
        }
    }

    /// Returns whether the group exists.
    pub(crate) fn exist(&self) -> bool {
        self.path("").exists()
    }

    /// Returns the content of a file; empty if it does not exist.
    pub(crate) fn read(&self, file: &str) -> String {
        let text = fs::read_to_string(self.path(file));
        text.unwrap_or_default().trim_end().to_owned()
    }

    /// Writes a file, as another program would.
    pub(crate) fn write(&self, file: &str, text: &str) {
        let written = fs::write(self.path(file), text);
        written.unwrap_or_else(|error| panic!("{text:?} into {file}: {error}"));
    }

    /// Returns the content of a file of the group of a vCPU.
    pub(crate) fn of_vcpu(&self, vcpu: u32, file: &str) -> String {
        self.read(&format!("vcpud/vcpu{vcpu}/{file}"))
    }

    /// Returns the number of a key in a file of keys and numbers.
    pub(crate) fn number(&self, file: &str, key: &str) -> u64 {
        let [number] = self.numbers(file, [key]);
        number
    }

    /// Returns the numbers of some keys in a file of keys and numbers, from one read.
    pub(crate) fn numbers<const N: usize>(&self, file: &str, keys: [&str; N]) -> [u64; N] {
        let text = self.read(file);
        keys.map(|key| {
            let mut lines = text.lines().filter_map(|line| line.split_once(' '));
            let found = lines.find(|(name, _)| *name == key);
            let (_, number) = found.unwrap_or_else(|| panic!("no {key} in {file}: {text}"));
            number.parse().expect("a number")
        })
    }

    /// Returns the groups directly below `group`.
    pub(crate) fn below(&self, group: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(group)).into_iter().flatten();
        let entries = entries.map(|entry| entry.expect("the entry can be read"));
        let groups = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
        let mut names: Vec<String> = groups
            .map(|group| group.file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort_unstable();
        names
    }

    /// Returns the group of each thread of QEMU, by the name of the thread, relative to the group of the unit.
    pub(crate) fn threads(&self, guest: &Guest) -> BTreeMap<String, String> {
        let tasks = guest.tasks();
        let placed = tasks.iter().filter_map(|(thread, name)| {
            let group = group_of(&format!("/proc/{}/task/{thread}/cgroup", guest.pid()))?;
            let below = group
                .strip_prefix(&self.unit)
                .map(|b| b.trim_start_matches('/'));
            // Several threads can have the same name.
            Some((
                format!("{name} {thread}"),
                below.unwrap_or(&group).to_owned(),
            ))
        });
        placed.collect()
    }

    /// Returns the threads that are not in the expected group: those of `vcpus` in their own groups, and all
    /// others in the group of the emulator.
    pub(crate) fn misplaced(&self, guest: &Guest) -> BTreeMap<String, String> {
        let mut threads = self.threads(guest);
        threads.retain(|name, group| *group != belongs(name));
        threads
    }
}

/// Returns the expected group of a thread with this name.
fn belongs(name: &str) -> String {
    let vcpu = name
        .strip_prefix("CPU ")
        .and_then(|rest| rest.split_once("/KVM"));
    match vcpu {
        Some((vcpu, _)) => format!("vcpud/vcpu{vcpu}"),
        None => "vcpud/emulator".to_owned(),
    }
}

/// Returns the group of version 2, from a `cgroup` file of procfs.
fn group_of(file: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let mut lines = text.lines();
    lines
        .find_map(|line| line.strip_prefix("0::"))
        .map(str::to_owned)
}

/// Returns the host CPUs that `thread` can run on.
pub(crate) fn list_of(thread: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let mut lines = status.lines();
    let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.unwrap_or_default().trim().to_owned()
}

/// Returns the scheduler of `thread` and its priority, such as `SCHED_FIFO 5`.
pub(crate) async fn scheduling_of(thread: u32) -> String {
    let printed = output("chrt", &["--pid", &thread.to_string()]).await;
    let values = printed.lines().filter_map(|line| line.rsplit_once(": "));
    let values: Vec<&str> = values.map(|(_, value)| value).take(2).collect();
    values.join(" ")
}
