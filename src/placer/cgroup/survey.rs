//! The control group of a unit that has no groups of vcpud yet: its limits, and whose processes it has.

use super::groups::{numbers, read};
use super::mounts::{Mount, Mounts};
use crate::ids::Pid;
use crate::placement::Step;
use crate::process::Dir;

/// The maximum depth of groups, and of ancestors, that are read.
const DEPTH: usize = 32;

/// The files of limits in version 2, and the settings of systemd (`systemd.resource-control(5)`).
const LIMITS: [(&str, &str); 7] = [
    ("cpu.max", "CPUQuota="),
    ("cpuset.cpus", "AllowedCPUs="),
    ("cpuset.mems", "AllowedMemoryNodes="),
    ("memory.high", "MemoryHigh="),
    ("memory.max", "MemoryMax="),
    ("memory.swap.max", "MemorySwapMax="),
    ("io.max", "the limits of block devices"),
];
/// The same in version 1, with the controllers. systemd has no settings for cpusets there.
const LIMITS_V1: [(&str, &str, &str); 2] = [
    ("cpu", "cpu.cfs_quota_us", "CPUQuota="),
    ("memory", "memory.limit_in_bytes", "MemoryMax="),
];

/// Returns the limits of the group `unit`. The number of tasks is not one of them, because systemd limits it
/// for all units.
pub(in super::super) fn limits(mounts: &Mounts, unit: &str) -> Vec<&'static str> {
    if !mounts.are_v1() {
        let group = mounts.unified.as_ref().and_then(|it| open(it, unit));
        let has = |file: &str| group.as_ref().is_some_and(|group| is_limit(group, file));
        let limits = LIMITS.iter().filter(|(file, _)| has(file));
        return limits.map(|(_, setting)| *setting).collect();
    }
    let has = |controller: &str, file: &str| {
        let mount = mounts.controllers.get(controller);
        let group = mount.and_then(|mount| open(mount, unit));
        group.is_some_and(|group| is_limit(&group, file))
    };
    let limits = LIMITS_V1.iter();
    let limits = limits.filter(|(controller, file, _)| has(controller, file));
    limits.map(|(_, _, setting)| *setting).collect()
}

fn open(mount: &Mount, unit: &str) -> Option<Dir> {
    let root = Dir::open(&mount.point).ok()?;
    root.descend(mount.relative(unit)?).ok()
}

/// Returns whether `file` has a limit. Version 2 writes "max" or nothing for none, and version 1 writes -1 or
/// the number of bytes of all possible pages.
fn is_limit(group: &Dir, file: &str) -> bool {
    let text = read(Step::Group, group, file).unwrap_or_default();
    let is_unlimited = match text.parse::<i64>() {
        Ok(number) => !(0..=i64::MAX / 2).contains(&number),
        Err(_) => text.is_empty() || text.starts_with("max"),
    };
    !is_unlimited
}

/// Returns whether the group `unit` of systemd, or one below, has a process that is neither `leader` nor a
/// descendant of it. Groups that cannot be read have none.
pub(in super::super) fn is_shared(mounts: &Mounts, unit: &str, leader: Pid) -> bool {
    let systemd = mounts.controllers.get("name=systemd");
    let mount = systemd.or(mounts.unified.as_ref());
    let opened = mount.and_then(|mount| open(mount, unit));
    opened.is_some_and(|group| has_others(&group, leader, DEPTH))
}

fn has_others(group: &Dir, leader: Pid, depth: usize) -> bool {
    let processes: Vec<Pid> = numbers(Step::Group, group, "cgroup.procs").unwrap_or_default();
    if processes.iter().any(|pid| !is_of(*pid, leader)) {
        return true;
    }
    let Some(depth) = depth.checked_sub(1) else {
        return false;
    };
    let children = group.children().unwrap_or_default();
    let mut children = children.iter().filter_map(|name| group.child(name).ok());
    children.any(|child| has_others(&child, leader, depth))
}

/// Returns whether `process` is `leader`, a descendant of it, a kernel thread, or has exited. KVM (before Linux 6.12)
/// and vhost (before 6.4) put their kernel threads into the groups of QEMU. The kernel writes 0 for a process of
/// another PID namespace.
fn is_of(process: Pid, leader: Pid) -> bool {
    let mut process = process;
    for _ in 0..DEPTH {
        if process == leader {
            return true;
        }
        if process == 0 || process == 1 {
            return false;
        }
        match parent(process) {
            Some(parent) => process = parent,
            None => return true,
        }
    }
    false
}

/// Returns the parent of `process`; `None` for a kernel thread, and if the process has exited.
fn parent(process: Pid) -> Option<Pid> {
    let status = Dir::open(format!("/proc/{process}"))
        .and_then(|dir| dir.read("status"))
        .ok()?;
    parent_in(&status)
}

/// Returns the parent of the process with this `/proc/PID/status`, if it has memory (`proc_pid_status(5)`).
fn parent_in(status: &str) -> Option<Pid> {
    let value = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    value("VmSize:")?;
    value("PPid:")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A child of the test, which is killed when this is dropped.
    struct Waiting(Child);

    impl Waiting {
        fn start() -> Self {
            let cat = Command::new("cat").stdin(Stdio::piped()).spawn();
            Self(cat.unwrap())
        }
    }

    impl Drop for Waiting {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_kernel_thread_is_no_other_process() {
        let thread = "Name:\tkvm-nx-lpage-re\nPid:\t1042\nPPid:\t2\nThreads:\t1\n";
        assert_eq!(parent_in(thread), None);
        let process = "Name:\tsh\nPPid:\t812\nVmPeak:\t8 kB\nVmSize:\t8 kB\n";
        assert_eq!(parent_in(process), Some(Pid(812)));
    }

    #[test]
    fn names_the_limits_of_a_unit() {
        let root = tempfile::tempdir().unwrap();
        let unit = root.path().join("x.scope");
        fs::create_dir(&unit).unwrap();
        let put = |file: &str, text: &str| fs::write(unit.join(file), text).unwrap();
        let point = root.path().display();
        let v2 = Mounts::parse(&format!("29 25 0:26 / {point} rw - cgroup2 cgroup2 rw\n"));
        for (file, text) in [
            ("cpu.max", "max 100000\n"),
            ("cpuset.cpus", "\n"),
            ("memory.max", "max\n"),
            ("io.max", ""),
            ("pids.max", "4915\n"),
        ] {
            put(file, text);
        }
        assert_eq!(limits(&v2, "/x.scope"), Vec::<&str>::new());
        put("cpu.max", "50000 100000\n");
        put("cpuset.cpus", "0\n");
        put("memory.max", "0\n");
        let all = ["CPUQuota=", "AllowedCPUs=", "MemoryMax="];
        assert_eq!(limits(&v2, "/x.scope"), all);
        assert_eq!(limits(&v2, "/y.scope"), Vec::<&str>::new());

        let line = |name| format!("1 2 0:3 / {point} rw - cgroup cgroup rw,{name}\n");
        let v1 = Mounts::parse(&(line("cpu") + &line("memory")));
        put("cpu.cfs_quota_us", "-1\n");
        put("memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limits(&v1, "/x.scope"), Vec::<&str>::new());
        put("cpu.cfs_quota_us", "20000\n");
        put("memory.limit_in_bytes", "4294967296\n");
        assert_eq!(limits(&v1, "/x.scope"), ["CPUQuota=", "MemoryMax="]);
    }

    #[test]
    fn a_unit_with_a_process_that_is_not_of_the_leader_is_shared() {
        let root = tempfile::tempdir().unwrap();
        let unit = root.path().join("x.scope");
        fs::create_dir_all(unit.join("payload")).unwrap();
        let point = root.path().display();
        let mounts = format!("29 25 0:26 / {point} rw - cgroup2 cgroup2 rw\n");
        let mounts = Mounts::parse(&mounts);
        let child = Waiting::start();
        let (own, child) = (std::process::id(), child.0.id());
        let shared = |unit_has: &[u32], below_has: &[u32], leader: u32| {
            for (group, processes) in [(&unit, unit_has), (&unit.join("payload"), below_has)] {
                let lines: String = processes.iter().map(|pid| format!("{pid}\n")).collect();
                fs::write(group.join("cgroup.procs"), lines).unwrap();
            }
            is_shared(&mounts, "/x.scope", Pid(leader))
        };
        assert!(!shared(&[own], &[], own));
        assert!(!shared(&[own], &[child], own), "a child of the leader");
        assert!(
            shared(&[own, child], &[], child),
            "the parent of the leader"
        );
        assert!(shared(&[], &[own], child));
        assert!(shared(&[child, 0], &[], child), "another PID namespace");
        assert!(!shared(&[child, u32::MAX - 1], &[], child), "it has exited");
        assert!(!is_shared(&mounts, "/y.scope", Pid(own)));
    }
}
