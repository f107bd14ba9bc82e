//! The inventory: the vCPUs of a machine, present and possible, from the replies of QEMU.
//!
//! Pure data and arithmetic. QEMU plugs vCPUs into *slots*: on most machines a slot holds one vCPU, on
//! pseries a core of several. The inventory numbers the vCPUs, and [`plan`] selects the slots that
//! must be plugged or unplugged to reach a wanted number of vCPUs. The module does not talk to QEMU. A wrong
//! reply of QEMU becomes an [`InconsistentReply`], never a panic.

#[expect(
    clippy::module_inception,
    reason = "the type that does what the module is about"
)]
mod inventory;
mod plan;
mod props;
mod reply;
mod slot;
#[cfg(test)]
mod tests;
mod topology;

pub use crate::ids::MAX_VCPUS;
pub use inventory::{InconsistentReply, Inventory, Slots};
pub use plan::{Plan, PlanError, Target, count_after, nearest, plan};
pub(crate) use plan::{count_vcpus, name_vcpus, numbers};
pub use props::{Prop, Props};
pub use reply::{CpuInfoFast, HotpluggableCpu};
pub use slot::{
    HostThread, HotplugMethod, HotplugSlot, MAX_VCPUS_PER_SLOT, Presence, PresentSlot, Thread, Vcpu,
};
pub use topology::{Level, Topology};
