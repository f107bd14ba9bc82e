//! Placement of vCPUs: units of systemd, and control groups as the kernel of the host has them. The control
//! groups have version 2 in all modules except `v1`.

mod bandwidth;
mod kinds;
mod libvirt;
mod outside;
mod restart;
mod tuning;
mod users;
mod v1;

use std::collections::{BTreeMap, HashMap};
use std::fs;

use crate::harness::*;

/// The quota of `SetBandwidth` for no limit.
const UNLIMITED: i64 = -1;

/// Returns a booted guest with four vCPUs in a scope, which the service replaces by another scope.
async fn four_vcpus(host: &Host, name: &str) -> (Guest, Machine, Groups) {
    let mut guest = Guest::boot_in(Place::Scope, name).await;
    let machine = host.machine(name).await;
    assert_eq!(machine.set(4).await, Ok(Outcome::added([1, 2, 3])));
    guest.online("0-3").await;
    let groups = Groups::of(&machine).await;
    (guest, machine, groups)
}

async fn pin(machine: &Machine, vcpus: &[u32], cpus: &str) -> Result<(), Failure> {
    let call = machine.pin_vcpus(vcpus, cpus, HashMap::new());
    within("PinVcpus", call).await.map_err(Failure::of)
}

async fn limit(machine: &Machine, period: u64, quota: i64) -> Result<(), Failure> {
    let call = machine.set_bandwidth(period, quota, HashMap::new());
    within("SetBandwidth", call).await.map_err(Failure::of)
}

async fn schedule(
    machine: &Machine,
    vcpus: &[u32],
    policy: &str,
    priority: i32,
) -> Result<(), Failure> {
    let call = machine.set_scheduler(vcpus, policy, priority, HashMap::new());
    within("SetScheduler", call).await.map_err(Failure::of)
}

/// Asserts that each vCPU is in a group of its own, and all other threads in the group of the emulator.
#[track_caller]
fn assert_placed(groups: &Groups, guest: &Guest) {
    assert_eq!(groups.misplaced(guest), BTreeMap::new());
    let vcpus = guest.vcpu_threads();
    let mut wanted: Vec<String> = vcpus.iter().map(|vcpu| format!("vcpu{vcpu}")).collect();
    wanted.insert(0, "emulator".to_owned());
    assert_eq!(groups.below("vcpud"), wanted);
    assert_eq!(groups.below(""), ["vcpud"]);
    // Two levels below the group of systemd, threads can be in different groups.
    assert_eq!(groups.read("cgroup.type"), "domain");
    assert_eq!(groups.read("vcpud/cgroup.type"), "domain threaded");
    for group in wanted {
        assert_eq!(
            groups.read(&format!("vcpud/{group}/cgroup.type")),
            "threaded"
        );
    }
}

/// Returns the host CPUs of each vCPU with a thread. Asserts that they are the same for its group, for its
/// thread, and in the reply of the service.
async fn affinities(machine: &Machine, groups: &Groups, guest: &Guest) -> Vec<String> {
    let rows = machine.rows().await;
    let mut lists = Vec::new();
    for vcpu in guest.vcpu_threads() {
        let list = list_of(guest.thread(vcpu));
        assert_eq!(
            groups.of_vcpu(vcpu, "cpuset.cpus.effective"),
            list,
            "vCPU {vcpu}"
        );
        assert_eq!(rows[vcpu as usize]["affinity"], *list, "vCPU {vcpu}");
        lists.push(list);
    }
    lists
}

/// Returns the content of a file of the group of every vCPU.
fn of_all(groups: &Groups, guest: &Guest, file: &str) -> Vec<String> {
    let vcpus = guest.vcpu_threads();
    vcpus
        .iter()
        .map(|vcpu| groups.of_vcpu(*vcpu, file))
        .collect()
}

/// Returns the host CPUs that are online.
fn online() -> String {
    let text = fs::read_to_string("/sys/devices/system/cpu/online").expect("sysfs");
    text.trim().to_owned()
}

/// A host CPU that is offline until this is dropped.
struct Offline(u32);

impl Offline {
    fn new(cpu: u32) -> Self {
        Self::switch(cpu, "0");
        Self(cpu)
    }

    fn switch(cpu: u32, state: &str) {
        let file = format!("/sys/devices/system/cpu/cpu{cpu}/online");
        fs::write(file, state).expect("root can switch CPUs");
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        Self::switch(self.0, "1");
    }
}

/// The log of the service, from a point in time.
struct Log {
    cursor: String,
}

impl Log {
    async fn from_now() -> Self {
        output("journalctl", &["--sync"]).await;
        let printed = output("journalctl", &["--lines", "0", "--show-cursor"]).await;
        let (_, cursor) = printed.rsplit_once("-- cursor: ").expect("a cursor");
        Self {
            cursor: cursor.to_owned(),
        }
    }

    /// Returns the fields of the entries that contain `what`.
    async fn of(&self, what: &str) -> Vec<Dict> {
        output("journalctl", &["--sync"]).await;
        let after = format!("--after-cursor={}", self.cursor);
        let which = ["--unit", "vcpud.service", &after, "--output", "json"];
        let said = output("journalctl", &which).await;
        let lines = said.lines().filter(|line| line.contains(what));
        let fields = |line| serde_json::from_str(line).expect("journalctl writes JSON");
        lines.map(fields).collect()
    }

    /// Returns the values of `field` in the entries that contain `what`, in order.
    async fn values(&self, what: &str, field: &str) -> Vec<String> {
        let lines = self.of(what).await;
        let values = lines.iter().map(|line| line[field].as_str());
        let mut values: Vec<String> = values.map(|v| v.expect("text").to_owned()).collect();
        values.sort_unstable();
        values
    }
}
