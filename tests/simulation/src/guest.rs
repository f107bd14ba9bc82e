//! The CPUs of a simulated guest that are offline, and the calls that took them offline.

use std::collections::BTreeSet;

use vcpud::ids::VcpuId;
use vcpud::machine::model::request::OfflineCpu;

/// The guest's number of the CPU of vCPU 0.
const FIRST: u32 = 100;

/// The guest.
#[derive(Default)]
pub(crate) struct Guest {
    /// The CPUs that are offline because of a call.
    offline: BTreeSet<u32>,
    /// The CPUs that calls are responsible for, one for each call.
    calls: Vec<u32>,
}

/// Returns the CPU of `vcpu` as the service persists it.
pub(crate) fn offline_cpu(vcpu: VcpuId) -> OfflineCpu {
    OfflineCpu {
        vcpu,
        cpu: FIRST + vcpu.get(),
    }
}

/// Returns the vCPU of the CPU `cpu`.
pub(crate) fn vcpu(cpu: u32) -> VcpuId {
    VcpuId(cpu - FIRST)
}

impl Guest {
    /// Lets a call take `cpu` offline, unless the CPU is another one in the meantime.
    pub(crate) fn take_offline(&mut self, cpu: OfflineCpu, is_same: bool) {
        if is_same {
            self.offline.insert(cpu.cpu);
        }
        self.calls.push(cpu.cpu);
    }

    pub(crate) fn bring_online(&mut self, cpus: &[u32]) {
        self.offline.retain(|cpu| !cpus.contains(cpu));
    }

    /// Forgets the CPU of a vCPU that was removed.
    pub(crate) fn remove(&mut self, vcpus: &[VcpuId]) {
        self.offline.retain(|cpu| !vcpus.contains(&vcpu(*cpu)));
    }

    /// Ends all calls. Returns the CPU of each.
    pub(crate) fn end_calls(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.calls)
    }

    /// Returns the vCPUs whose CPU is offline without a call.
    pub(crate) fn left(&self) -> impl Iterator<Item = VcpuId> {
        let left = self.offline.iter().filter(|cpu| !self.calls.contains(cpu));
        left.map(|cpu| vcpu(*cpu))
    }
}
