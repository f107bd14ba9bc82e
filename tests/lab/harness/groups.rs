//! What the kernel of the host has for the threads of a machine, past the service: control groups,
//! affinity and schedulers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::guest::Guest;
use super::host::output;
use super::machine::Machine;

const MOUNT: &str = "/sys/fs/cgroup";

/// The control group of a machine's unit, and those below.
#[derive(Clone, Debug)]
pub(crate) struct Groups {
    /// As `/proc/PID/cgroup` writes it.
    pub(crate) unit: String,
}

impl Groups {
    /// Those of the machine, as the service names them.
    pub(crate) async fn of(machine: &Machine) -> Self {
        let unit = machine.control_group().await;
        Self {
            unit: unit.expect("the property is there"),
        }
    }

    /// Those of the group that process `pid` is in.
    pub(crate) fn around(pid: u32) -> Self {
        Self {
            unit: group_of(&format!("/proc/{pid}/cgroup")).expect("the process runs"),
        }
    }

    /// Where a file of the unit's group is.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        let unit = Path::new(MOUNT).join(self.unit.trim_start_matches('/'));
        if file.is_empty() {
            unit
        } else {
            unit.join(file)
        }
    }

    /// Whether there is such a group at all.
    pub(crate) fn exist(&self) -> bool {
        self.path("").exists()
    }

    /// What such a file says; where there is none, nothing.
    pub(crate) fn read(&self, file: &str) -> String {
        let text = fs::read_to_string(self.path(file));
        text.unwrap_or_default().trim_end().to_owned()
    }

    /// Writes such a file, as somebody from outside.
    pub(crate) fn write(&self, file: &str, text: &str) {
        let written = fs::write(self.path(file), text);
        written.unwrap_or_else(|error| panic!("{text:?} into {file}: {error}"));
    }

    /// A file of the group of a vCPU.
    pub(crate) fn of_vcpu(&self, vcpu: u32, file: &str) -> String {
        self.read(&format!("vcpud/vcpu{vcpu}/{file}"))
    }

    /// A number in a file of lines of a key and a number.
    pub(crate) fn number(&self, file: &str, key: &str) -> u64 {
        let text = self.read(file);
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(name, _)| *name == key);
        let (_, number) = found.unwrap_or_else(|| panic!("no {key} in {file}: {text}"));
        number.parse().expect("a number")
    }

    /// The groups below `group`, and no deeper.
    pub(crate) fn below(&self, group: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(group)).into_iter().flatten();
        let entries = entries.map(|entry| entry.expect("it can be read"));
        let groups = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
        let mut names: Vec<String> = groups
            .map(|group| group.file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort_unstable();
        names
    }

    /// The group of each thread of QEMU, by the thread's name: below the unit's, where it is.
    pub(crate) fn threads(&self, guest: &Guest) -> BTreeMap<String, String> {
        let tasks = guest.tasks();
        let placed = tasks.iter().filter_map(|(thread, name)| {
            let group = group_of(&format!("/proc/{}/task/{thread}/cgroup", guest.pid()))?;
            let below = group
                .strip_prefix(&self.unit)
                .map(|b| b.trim_start_matches('/'));
            // Some have the same name.
            Some((
                format!("{name} {thread}"),
                below.unwrap_or(&group).to_owned(),
            ))
        });
        placed.collect()
    }

    /// The threads that are not where they belong: those of `vcpus` in the group of theirs, and
    /// all others in the emulator's.
    pub(crate) fn misplaced(&self, guest: &Guest) -> BTreeMap<String, String> {
        let mut threads = self.threads(guest);
        threads.retain(|name, group| *group != belongs(name));
        threads
    }
}

/// Where a thread of that name belongs.
fn belongs(name: &str) -> String {
    let vcpu = name
        .strip_prefix("CPU ")
        .and_then(|rest| rest.split_once("/KVM"));
    match vcpu {
        Some((vcpu, _)) => format!("vcpud/vcpu{vcpu}"),
        None => "vcpud/emulator".to_owned(),
    }
}

/// The group in version 2 that such a file of procfs names.
fn group_of(file: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let mut lines = text.lines();
    lines
        .find_map(|line| line.strip_prefix("0::"))
        .map(str::to_owned)
}

/// The host CPUs that `thread` may run on.
pub(crate) fn list_of(thread: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let mut lines = status.lines();
    let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.unwrap_or_default().trim().to_owned()
}

/// The scheduler of `thread` and its priority, such as `SCHED_FIFO 5`.
pub(crate) async fn scheduling_of(thread: u32) -> String {
    let printed = output("chrt", &["--pid", &thread.to_string()]).await;
    let values = printed.lines().filter_map(|line| line.rsplit_once(": "));
    let values: Vec<&str> = values.map(|(_, value)| value).take(2).collect();
    values.join(" ")
}
