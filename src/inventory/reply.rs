//! The replies of QEMU that the inventory reads. Unknown members are ignored.

use serde::Deserialize;

use super::props::Props;
use super::slot::{HostThread, Thread};
use crate::ids::Tid;
use crate::text::Text;

/// One element of the reply of `query-hotpluggable-cpus` (`HotpluggableCPU`).
#[derive(Clone, Debug, Deserialize)]
pub struct HotpluggableCpu {
    /// The QOM type.
    #[serde(rename = "type")]
    pub driver: Text,
    /// The number of vCPUs in the slot.
    #[serde(rename = "vcpus-count")]
    pub vcpus_count: u64,
    /// The properties that `device_add` needs.
    pub props: Props,
    /// The QOM path of the vCPUs, if they are plugged.
    #[serde(rename = "qom-path", default)]
    pub qom_path: Option<Text>,
}

/// One element of the reply of `query-cpus-fast` (`CpuInfoFast`), or of its predecessor
/// `query-cpus` (before QEMU 2.12), which has other names for the members.
#[derive(Clone, Debug, Deserialize)]
pub struct CpuInfoFast {
    /// QEMU's own number of the CPU.
    #[serde(rename = "cpu-index", alias = "CPU")]
    pub cpu_index: i64,
    /// The QOM path of the CPU, which may be one thread of a slot.
    #[serde(rename = "qom-path", alias = "qom_path")]
    pub qom_path: Text,
    /// The host thread that runs it.
    #[serde(rename = "thread-id", alias = "thread_id")]
    pub thread_id: i64,
    /// Its position.
    #[serde(default)]
    pub props: Option<Props>,
    /// The architecture that QEMU emulates.
    #[serde(default)]
    pub target: Option<Text>,
    /// The QOM type (QEMU 11.1 and later).
    #[serde(rename = "qom-type", default)]
    pub qom_type: Option<Text>,
}

impl CpuInfoFast {
    /// Returns its thread.
    pub(super) fn thread(&self) -> Thread {
        Thread {
            id: Tid(u32::try_from(self.thread_id).unwrap_or(0)),
            host: HostThread::Unknown,
        }
    }

    /// Returns whether it is a part of a slot.
    pub(super) fn is_thread(&self) -> bool {
        self.slot_path() != self.qom_path.as_str()
    }

    /// Returns the QOM path of the slot: one pseries core holds `…/thread[0]`, `…/thread[1]`, ….
    pub fn slot_path(&self) -> &str {
        let path = self.qom_path.as_str();
        match path.rsplit_once('/') {
            Some((slot, last)) if is_thread(last) => slot,
            _ => path,
        }
    }
}

/// Returns whether `element` is `thread[N]`.
fn is_thread(element: &str) -> bool {
    element
        .strip_prefix("thread[")
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Returns the CPUs of a machine without hotpluggable ones, each as a slot, in the descending
/// order of `query-hotpluggable-cpus`.
pub(super) fn as_fixed_slots(cpus: &[CpuInfoFast]) -> Vec<HotpluggableCpu> {
    cpus.iter().rev().map(CpuInfoFast::as_slot).collect()
}

/// Returns the CPUs 0 to `max` - 1 of a QEMU that only reports their number, in the same order.
pub(super) fn as_counted_slots(cpus: &[CpuInfoFast], max: u32) -> Vec<HotpluggableCpu> {
    let slot = |index: u32| {
        let present = cpus.iter().find(|cpu| cpu.cpu_index == i64::from(index));
        present.map_or_else(HotpluggableCpu::default, CpuInfoFast::as_slot)
    };
    (0..max).rev().map(slot).collect()
}

impl CpuInfoFast {
    fn as_slot(&self) -> HotpluggableCpu {
        HotpluggableCpu {
            driver: self.qom_type.clone().unwrap_or_default(),
            props: self.props.clone().unwrap_or_default(),
            qom_path: Some(self.qom_path.clone()),
            ..HotpluggableCpu::default()
        }
    }
}

impl Default for HotpluggableCpu {
    /// Returns a free slot for one vCPU of an unknown type.
    fn default() -> Self {
        Self {
            driver: Text::default(),
            vcpus_count: 1,
            props: Props::default(),
            qom_path: None,
        }
    }
}
