//! Control groups of version 1, in the hierarchies `cpu` and `cpuset` of this host. Each test creates a group of
//! its own there, and removes it.

mod change;
mod life;
mod refusals;
mod watch;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vcpud::ids::Tid;
use vcpud::placement::{Kind, UnitPlacement};
use vcpud::placer::{Host, Placer};
use vcpud::process::Tasks;

use super::parts::{NotRun, Qemu, Test, has_version_1, has_version_2, remove_groups};

pub(super) fn tests() -> Vec<Test> {
    let tests = [
        change::tests(),
        life::tests(),
        refusals::tests(),
        watch::tests(),
    ];
    tests.into_iter().flatten().collect()
}

/// Groups in the hierarchies of version 1, with a QEMU in them. Each test has its own.
struct World {
    qemu: Qemu,
    host: Host,
    name: String,
    cpu: PathBuf,
    cpuset: PathBuf,
}

impl World {
    /// Fails on a host without version 1.
    fn new() -> Result<Self, NotRun> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut host = Host::this().unwrap();
        if !has_version_1(&host) {
            return Err(NotRun {
                reason: "this host has no hierarchies of version 1 for cpu and cpuset",
                is_expected: has_version_2(&host),
            });
        }
        let controllers = &mut Arc::make_mut(&mut host.mounts).controllers;
        controllers.retain(|name, _| name == "cpu" || name == "cpuset");
        let (cpu, cpuset) = (&controllers["cpu"], &controllers["cpuset"]);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vcpud-test-{}-{next}", std::process::id());
        let (cpu, cpuset) = (cpu.point.join(&name), cpuset.point.join(&name));
        // As systemd leaves a unit: a group for CPU time, none of the cpuset hierarchy.
        fs::create_dir(&cpu).expect("control groups can be made; these tests run as root");
        let world = Self {
            qemu: Qemu::start(),
            host,
            name,
            cpu,
            cpuset,
        };
        fs::write(world.cpu.join("cgroup.procs"), world.qemu.pid().to_string()).unwrap();
        Ok(world)
    }

    fn placer(&self) -> Placer {
        let home = UnitPlacement {
            kind: Kind::Unit,
            unit: self.name.clone(),
            control_group: format!("/{}", self.name),
        };
        Placer::new(self.host.clone(), "test", home).unwrap()
    }

    /// The group of the unit in the hierarchy of systemd, which only some tests create.
    fn systemd(&self) -> PathBuf {
        Path::new("/sys/fs/cgroup/systemd").join(&self.name)
    }

    /// A file of a vCPU's group.
    fn vcpu(&self, vcpu: u32, file: &str) -> PathBuf {
        let hierarchy = if file.starts_with("cpuset") {
            &self.cpuset
        } else {
            &self.cpu
        };
        hierarchy.join(format!("vcpud/vcpu{vcpu}/{file}"))
    }

    fn read(&self, vcpu: u32, file: &str) -> String {
        let text = fs::read_to_string(self.vcpu(vcpu, file)).unwrap();
        text.trim().to_owned()
    }

    /// Period and quota of a vCPU's group.
    fn bandwidth(&self, vcpu: u32) -> (String, String) {
        let read = |file| self.read(vcpu, file);
        (read("cpu.cfs_period_us"), read("cpu.cfs_quota_us"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.qemu.child.kill();
        let _ = self.qemu.child.wait();
        for group in [&self.cpu, &self.cpuset, &self.systemd()] {
            remove_groups(group);
        }
    }
}

/// Returns the threads in a group.
fn threads_in(group: &Path) -> BTreeSet<Tid> {
    super::parts::threads_in(&group.join("tasks"))
}
