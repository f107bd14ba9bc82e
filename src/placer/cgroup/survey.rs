//! The control group of a unit that has no groups of vcpud yet: whose processes it has.

use super::groups::numbers;
use super::mounts::Mounts;
use crate::ids::Pid;
use crate::placement::Step;
use crate::process::Dir;

/// The maximum depth of groups, and of ancestors, that are read.
const DEPTH: usize = 32;

/// Returns whether the group `unit` of systemd, or one below, has a process that is neither `leader` nor a
/// descendant of it. Groups that cannot be read have none.
pub(in super::super) fn is_shared(mounts: &Mounts, unit: &str, leader: Pid) -> bool {
    let systemd = mounts.controllers.get("name=systemd");
    let opened = systemd.or(mounts.unified.as_ref()).and_then(|mount| {
        let root = Dir::open(&mount.point).ok()?;
        root.descend(mount.relative(unit)?).ok()
    });
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

/// Returns whether `process` is `leader`, a descendant of it, or has exited. The kernel writes 0 for a process
/// of another PID namespace.
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

/// Returns the parent of `process`; `None` if the process has exited.
fn parent(process: Pid) -> Option<Pid> {
    let status = Dir::open(format!("/proc/{process}"))
        .and_then(|dir| dir.read("status"))
        .ok()?;
    let parent = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok()
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
        assert!(shared(&[own, child], &[], child), "the parent of the leader");
        assert!(shared(&[], &[own], child));
        assert!(shared(&[child, 0], &[], child), "another PID namespace");
        assert!(!shared(&[child, u32::MAX - 1], &[], child), "it has exited");
        assert!(!is_shared(&mounts, "/y.scope", Pid(own)));
    }
}
