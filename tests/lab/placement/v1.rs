//! Placement in a host with control groups of version 1, and a unified hierarchy without controllers. These
//! tests run in a separate boot: `tests/lab/boot --cgroup-v1`.

use std::path::Path;

use super::*;

const MOUNT: &str = "/sys/fs/cgroup";

/// The control groups of the unit of a machine in each hierarchy.
struct Hierarchies {
    /// The path, which is the same in all hierarchies.
    unit: String,
}

impl Hierarchies {
    /// Returns the content of a file of the group of the unit in a hierarchy; empty if it does not exist.
    fn read(&self, hierarchy: &str, file: &str) -> String {
        let text = fs::read_to_string(format!("{MOUNT}/{hierarchy}{}/{file}", self.unit));
        text.unwrap_or_default().trim_end().to_owned()
    }

    /// Returns the groups below the group of the unit.
    fn below(&self, hierarchy: &str) -> Vec<String> {
        let mut groups = Vec::new();
        let unit = format!("{MOUNT}/{hierarchy}{}", self.unit);
        walk(Path::new(&unit), &mut |group| {
            let below = group.strip_prefix(&unit).expect("the group is below");
            groups.push(below.trim_start_matches('/').to_owned());
        });
        groups.sort_unstable();
        groups
    }

    /// Asserts that each vCPU has a group of its own in the hierarchies with the CPU controllers, that all other
    /// threads are in the group of the emulator, and that the hierarchy of systemd is unchanged.
    #[track_caller]
    fn assert_placed(&self, guest: &Guest) {
        let mut wrong = BTreeMap::new();
        for (thread, name) in guest.tasks() {
            let file = format!("/proc/{}/task/{thread}/cgroup", guest.pid());
            // A thread may end at any time.
            let Ok(text) = fs::read_to_string(file) else {
                continue;
            };
            let vcpu = name.strip_prefix("CPU ");
            let vcpu = vcpu.and_then(|rest| rest.split_once("/KVM"));
            let ours = match vcpu {
                Some((vcpu, _)) => format!("{}/vcpud/vcpu{vcpu}", self.unit),
                None => format!("{}/vcpud/emulator", self.unit),
            };
            for (controller, group) in [
                ("cpu", &ours),
                ("cpuacct", &ours),
                ("cpuset", &ours),
                ("name=systemd", &self.unit),
                ("", &self.unit),
            ] {
                let is = group_in(&text, controller);
                if is.as_ref() != Some(group) {
                    wrong.insert(format!("{name} {thread} {controller}"), is);
                }
            }
        }
        assert_eq!(wrong, BTreeMap::new());

        let mut wanted = vec!["vcpud".to_owned(), "vcpud/emulator".to_owned()];
        let vcpus = guest.vcpu_threads();
        wanted.extend(vcpus.iter().map(|vcpu| format!("vcpud/vcpu{vcpu}")));
        for hierarchy in ["cpu", "cpuset"] {
            assert_eq!(self.below(hierarchy), wanted, "{hierarchy}");
        }
        for hierarchy in ["systemd", "unified"] {
            assert_eq!(self.below(hierarchy), Vec::<String>::new(), "{hierarchy}");
        }
    }

    /// Returns the host CPUs of each vCPU. Asserts that those of its group, of its thread and of the service agree.
    async fn affinities(&self, machine: &Machine, guest: &Guest) -> Vec<String> {
        let rows = machine.rows().await;
        let mut lists = Vec::new();
        for vcpu in guest.vcpu_threads() {
            let list = list_of(guest.thread(vcpu));
            let group = self.read("cpuset", &format!("vcpud/vcpu{vcpu}/cpuset.cpus"));
            assert_eq!(group, list, "vCPU {vcpu}");
            assert_eq!(rows[vcpu as usize]["affinity"], *list, "vCPU {vcpu}");
            lists.push(list);
        }
        lists
    }

    /// Returns quota and period of each vCPU, and last of the emulator.
    fn limits(&self, guest: &Guest) -> Vec<String> {
        let vcpus = guest.vcpu_threads();
        let groups = vcpus.iter().map(|vcpu| format!("vcpu{vcpu}"));
        let limit = |group: String| {
            let file = |file| self.read("cpu", &format!("vcpud/{group}/{file}"));
            format!("{} {}", file("cpu.cfs_quota_us"), file("cpu.cfs_period_us"))
        };
        groups.chain(["emulator".to_owned()]).map(limit).collect()
    }
}

/// Returns the group in the hierarchy of a controller, from a `cgroup` file of procfs.
fn group_in(text: &str, controller: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, group) = rest.split_once(':')?;
        let found = controllers.split(',').any(|name| name == controller);
        found.then(|| group.to_owned())
    })
}

/// Calls `see` with every group below `group`.
fn walk(group: &Path, see: &mut impl FnMut(&str)) {
    // Groups may be removed at any time.
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            see(entry.path().to_str().expect("UTF-8"));
            walk(&entry.path(), see);
        }
    }
}

/// Waits until no hierarchy has a group of a machine, or one in which QEMU was started.
async fn nothing_left() {
    until("groups of machines", Vec::<String>::new(), || {
        let mut left = Vec::new();
        walk(Path::new(MOUNT), &mut |group| {
            let (_, name) = group.rsplit_once('/').expect("the path is absolute");
            if name == "vcpud" || ["vcpud-web", "lab-web"].iter().any(|n| name.starts_with(n)) {
                left.push(group.to_owned());
            }
        });
        left
    })
    .await;
}

/// Waits until a machine is placed, and returns its groups. Asserts its unit and its control group.
async fn groups_of(machine: &Machine, placement: &str, unit: &str, group: &str) -> Hierarchies {
    machine.wait_for("Placement", placement.to_owned()).await;
    assert_eq!(machine.unit().await.as_deref(), Ok(unit));
    assert_eq!(machine.control_group().await.as_deref(), Ok(group));
    Hierarchies {
        unit: group.to_owned(),
    }
}

#[tokio::test]
async fn a_scope_of_its_own_has_groups_in_each_hierarchy_and_ends_with_its_qemu() {
    let host = Host::enter().await;
    let mut guest = Guest::boot_in(Place::Scope, "web").await;
    let machine = host.machine("web").await;
    let (scope, group) = ("vcpud-web.scope", "/machine.slice/vcpud-web.scope");
    let groups = groups_of(&machine, "scope", scope, group).await;
    let all = online();
    groups.assert_placed(&guest);
    assert_eq!(groups.affinities(&machine, &guest).await, [all.as_str()]);
    assert_eq!(groups.limits(&guest), ["-1 100000"; 2]);

    // For one present vCPU, and for one that is added later.
    assert_eq!(pin(&machine, &[0], "1").await, Ok(()));
    assert_eq!(pin(&machine, &[2], "2-3").await, Ok(()));
    assert_eq!(limit(&machine, 50_000, 40_000).await, Ok(()));
    assert_eq!(machine.set(3).await, Ok(Outcome::added([1, 2])));
    guest.online("0-2").await;
    groups.assert_placed(&guest);
    let pinned = ["1", &all, "2-3"];
    assert_eq!(groups.affinities(&machine, &guest).await, pinned);
    let limited = ["40000 50000", "40000 50000", "40000 50000", "-1 100000"];
    assert_eq!(groups.limits(&guest), limited);

    // systemd writes the limits of the unit again, and not those of the groups in it.
    output("systemctl", &["daemon-reload"]).await;
    groups.assert_placed(&guest);
    assert_eq!(groups.affinities(&machine, &guest).await, pinned);
    assert_eq!(groups.limits(&guest), limited);

    // The service restarts.
    host.stop_service().await;
    let machine = host.machine("web").await;
    let groups = groups_of(&machine, "scope", scope, group).await;
    groups.assert_placed(&guest);
    assert_eq!(groups.affinities(&machine, &guest).await, pinned);
    assert_eq!(groups.limits(&guest), limited);

    let shrunk = machine.set_patiently(1).await;
    assert_eq!(shrunk, Ok(Outcome::removed([1, 2])));
    guest.has_threads(&[0]).await;
    for hierarchy in ["cpu", "cpuset"] {
        let one = ["vcpud", "vcpud/emulator", "vcpud/vcpu0"].map(str::to_owned);
        until("the groups", one.to_vec(), || groups.below(hierarchy)).await;
    }
    groups.assert_placed(&guest);
    assert_eq!(limit(&machine, 100_000, UNLIMITED).await, Ok(()));
    assert_eq!(groups.limits(&guest), ["-1 100000"; 2]);
    assert_eq!(pin(&machine, &[0], "").await, Ok(()));
    assert_eq!(groups.affinities(&machine, &guest).await, [all.as_str()]);

    guest.kill().await;
    nothing_left().await;
}

#[tokio::test]
async fn a_delegated_service_is_used_as_it_is() {
    let host = Host::enter().await;
    let mut guest = Guest::paused_in(Place::DelegatedService, "web").await;
    let machine = host.machine("web").await;
    let (service, group) = ("lab-web.service", "/system.slice/lab-web.service");
    let groups = groups_of(&machine, "unit", service, group).await;
    groups.assert_placed(&guest);
    assert_eq!(pin(&machine, &[], "0-1").await, Ok(()));
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
    groups.assert_placed(&guest);
    assert_eq!(groups.affinities(&machine, &guest).await, ["0-1"; 2]);

    guest.kill().await;
    nothing_left().await;
}

/// Reads and writes the host CPUs of the slice of machines.
struct Slice;

impl Slice {
    const FILE: &str = "/sys/fs/cgroup/cpuset/machine.slice/cpuset.cpus";

    fn cpus() -> String {
        let text = fs::read_to_string(Self::FILE).expect("vcpud created it");
        text.trim_end().to_owned()
    }

    fn set(cpus: &str) {
        fs::write(Self::FILE, cpus).expect("the kernel takes it");
    }
}

#[tokio::test]
async fn host_cpus_that_come_back_are_given_back_by_any_instance() {
    let host = Host::enter().await;
    let mut guest = Guest::paused_in(Place::Scope, "web").await;
    let machine = host.machine("web").await;
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
    assert_eq!(pin(&machine, &[1], "1").await, Ok(()));
    let all = online();
    let lists = |guest: &Guest| [0, 1].map(|vcpu| list_of(guest.thread(vcpu)));
    assert_eq!(lists(&guest), [all.as_str(), "1"]);

    // While the service does not run.
    host.stop_service().await;
    drop(Offline::new(1));
    host.machine("web").await;
    let wanted = [all.clone(), "1".to_owned()];
    until("both vCPUs", wanted.clone(), || lists(&guest)).await;
    // Offline before a restart, and online after it.
    let offline = Offline::new(1);
    let machine = host.machine("web").await;
    let rest = online();
    until("the others", rest.clone(), || list_of(guest.thread(0))).await;
    host.stop_service().await;
    host.machine("web").await;
    drop(offline);
    until("both vCPUs again", wanted, || lists(&guest)).await;
    drop(machine);

    // Without a machine.
    guest.kill().await;
    nothing_left().await;
    drop(Offline::new(1));
    let mut guest = Guest::paused_in(Place::Scope, "web").await;
    let machine = host.machine_of(&guest).await;
    assert_eq!(pin(&machine, &[0], "1").await, Ok(()));
    assert_eq!(Slice::cpus(), all);
    guest.kill().await;
    nothing_left().await;

    // An administrator narrows the slice.
    Slice::set("2-3");
    let mut guest = Guest::paused_in(Place::Scope, "web").await;
    let machine = host.machine_of(&guest).await;
    drop(Offline::new(1));
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
    assert_eq!(lists(&guest), ["2-3", "2-3"]);
    assert_eq!(Slice::cpus(), "2-3");
    guest.kill().await;
    nothing_left().await;
    Slice::set(&all);
}

/// Linux before 6.2 forgets the affinity of a thread that moves to another cpuset.
#[tokio::test]
async fn other_threads_keep_their_affinity() {
    let host = Host::enter().await;
    host.stop_service().await;
    let mut guest = Guest::paused_in(Place::Scope, "web").await;
    let main = guest.pid();
    output("taskset", &["--cpu-list", "--pid", "2", &main.to_string()]).await;
    let machine = host.machine("web").await;
    let (scope, group) = ("vcpud-web.scope", "/machine.slice/vcpud-web.scope");
    let groups = groups_of(&machine, "scope", scope, group).await;
    groups.assert_placed(&guest);
    assert_eq!(list_of(main), "2");
    assert_eq!(list_of(guest.thread(0)), online());
    guest.kill().await;
    nothing_left().await;
}
