//! The inventory: what QEMU's answers say about the vCPUs of a machine.
//!
//! Pure data and arithmetic. QEMU plugs vCPUs into *slots*: on most machines a slot holds one vCPU, on
//! pseries a core of several. The inventory numbers the vCPUs, and [`plan`] selects the slots that
//! must be filled or emptied to reach a wanted number of vCPUs. Nothing here talks to QEMU; a wrong
//! answer of QEMU becomes an [`InconsistentReply`], never a panic.

mod plan;
mod props;
mod reply;
#[cfg(test)]
mod tests;
mod topology;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::ids::MAX_VCPUS;
use crate::ids::{Pid, SlotId, Tid, VcpuId};
use crate::text::Text;

pub(crate) use plan::numbers;
pub use plan::{Plan, PlanError, Target, count_after, nearest, plan};
pub use props::{Prop, Props};
pub use reply::{CpuInfoFast, HotpluggableCpu};
pub use topology::{Level, Topology};

/// More vCPUs than one slot has on any machine (8 on pseries).
pub const MAX_VCPUS_PER_SLOT: u32 = 64;

/// How vCPUs are plugged into this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HotplugMethod {
    /// `device_add`, QEMU 2.7 and later.
    DeviceAdd,
    /// `cpu-add`, before QEMU 2.7; what came cannot go.
    CpuAdd,
    /// Not at all.
    #[default]
    None,
}

impl HotplugMethod {
    /// The word for it on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DeviceAdd => "device-add",
            Self::CpuAdd => "cpu-add",
            Self::None => "none",
        }
    }
}

/// What QEMU says of the CPUs that could be there.
#[derive(Clone, Debug)]
pub enum Slots {
    /// The reply of `query-hotpluggable-cpus`.
    Listed(Vec<HotpluggableCpu>),
    /// It only counts them (before QEMU 2.7): there can be this many.
    Counted(u32),
    /// There are none but those that are there.
    Fixed,
}

/// The vCPUs of a machine, present and possible, by number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    slots: Vec<HotplugSlot>,
    method: HotplugMethod,
    architecture: Text,
    torn: bool,
}

/// One entry of `query-hotpluggable-cpus`. QEMU plugs and unplugs it as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct HotplugSlot {
    /// Its name within the inventory: the number of its first vCPU.
    pub id: SlotId,
    /// The number of vCPUs in it.
    pub width: u32,
    /// Its position in QEMU's own list, from the end. ACPI calls this the slot.
    pub acpi_slot: u32,
    /// The QOM type, the `driver` of `device_add`.
    pub driver: Text,
    /// The properties that `device_add` needs.
    pub props: Props,
    /// The members of `props` that say where the slot is.
    pub topology: Topology,
    /// Where it is plugged in.
    pub presence: Option<Presence>,
}

/// How a slot is plugged.
#[derive(Clone, Debug, PartialEq)]
pub struct Presence {
    /// Its QOM path, by which it can be unplugged.
    pub qom_path: Text,
    /// When it was enabled among the others, from 1; 0 where QEMU did not list it.
    pub order: u32,
    /// The thread ids that QEMU gives for its vCPUs, in order; fewer where QEMU names fewer.
    pub threads: Vec<Thread>,
}

/// A host thread that QEMU says runs a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    /// The thread id that QEMU gave.
    pub id: Tid,
    /// Whether it was found to be a thread of the leader and of no other vCPU.
    pub trusted: bool,
}

/// A plugged slot, as it is saved across restarts of the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresentSlot {
    /// Its name within the inventory.
    #[serde(rename = "first")]
    pub id: SlotId,
    /// The number of vCPUs in it.
    pub width: u32,
    /// Its position in QEMU's own list, from the end.
    #[serde(rename = "slot")]
    pub acpi_slot: u32,
    /// Its QOM path.
    pub qom_path: Text,
    /// The thread ids that QEMU gave for its vCPUs.
    pub threads: Vec<Tid>,
}

/// One vCPU, present or possible.
#[derive(Clone, Copy, Debug)]
pub struct Vcpu<'a> {
    /// Its number, from 0.
    pub id: VcpuId,
    /// The slot that holds it.
    pub slot: &'a HotplugSlot,
    /// Its thread, if it is present and the thread is trusted.
    pub thread: Option<Tid>,
}

/// QEMU's answers cannot be true.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InconsistentReply {
    /// A slot with no or too many vCPUs, or too many vCPUs in total.
    #[error(
        "QEMU reports an impossible number of vCPUs (at most {MAX_VCPUS} are believed, and {MAX_VCPUS_PER_SLOT} in a slot)"
    )]
    Count,
    /// Two slots at one path.
    #[error("QEMU reports two hotpluggable CPUs at {0}")]
    SharedPath(Text),
}

impl HotplugSlot {
    /// Returns its vCPUs, in ascending order.
    pub fn vcpus(&self) -> impl Iterator<Item = VcpuId> + use<> {
        let first = self.id.get();
        (first..first + self.width).map(VcpuId)
    }

    /// The id that it was plugged with: the last part of `/machine/peripheral/ID`.
    pub fn alias(&self) -> Option<&str> {
        let path = self.presence.as_ref()?.qom_path.as_str();
        path.strip_prefix("/machine/peripheral/")
            .filter(|id| !id.is_empty() && !id.contains('/'))
    }
}

impl Presence {
    /// Whether `other` is the same plugged CPU, not its successor in the same place.
    pub fn is_same(&self, other: &Self) -> bool {
        let ids = |p: &Self| p.threads.iter().map(|t| t.id).collect::<Vec<_>>();
        // QEMU may not name a CPU's threads in a torn answer, which makes it no other CPU.
        let unknown = self.threads.is_empty() || other.threads.is_empty();
        self.qom_path == other.qom_path && (unknown || ids(self) == ids(other))
    }
}

impl Inventory {
    /// Joins what can be there and what is there by QOM path.
    pub fn read(slots: Slots, cpus: Vec<CpuInfoFast>) -> Result<Self, InconsistentReply> {
        let architecture = cpus
            .iter()
            .find_map(|cpu| cpu.target.clone())
            .unwrap_or_default();
        let mut running = group_by_slot(&cpus);
        let (method, reported) = match slots {
            Slots::Listed(list) => (HotplugMethod::DeviceAdd, list),
            Slots::Counted(max) if max > MAX_VCPUS => return Err(InconsistentReply::Count),
            Slots::Counted(max) => (HotplugMethod::CpuAdd, reply::as_counted_slots(&cpus, max)),
            Slots::Fixed => (HotplugMethod::None, reply::as_fixed_slots(&cpus)),
        };
        let count = u32::try_from(reported.len()).map_err(|_| InconsistentReply::Count)?;

        let mut slots = Vec::with_capacity(reported.len());
        let mut torn = false;
        // QEMU lists the slots in descending order, so its first is the last one.
        for (reported, acpi_slot) in reported.into_iter().zip((0..count).rev()) {
            let presence = match reported.qom_path {
                None => None,
                Some(qom_path) => {
                    let found = running.remove(qom_path.as_str());
                    torn |= found.is_none();
                    let (order, threads) = found.unwrap_or_default();
                    Some(Presence {
                        qom_path,
                        order,
                        threads,
                    })
                }
            };
            slots.push(HotplugSlot {
                id: SlotId(0),
                width: u32::try_from(reported.vcpus_count).map_err(|_| InconsistentReply::Count)?,
                acpi_slot,
                driver: reported.driver,
                topology: Topology::of(&reported.props),
                props: reported.props,
                presence,
            });
        }
        torn |= !running.is_empty();
        number(&mut slots)?;
        check_paths(&slots)?;
        Ok(Self {
            slots,
            method,
            architecture,
            torn,
        })
    }

    /// Whether the two answers that made this inventory disagree: a CPU came or went between
    /// them. Asking again settles it.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// Returns the plugged slots as they are saved.
    pub fn to_record(&self) -> Vec<PresentSlot> {
        let row = |(slot, presence): (&HotplugSlot, &Presence)| PresentSlot {
            id: slot.id,
            width: slot.width,
            acpi_slot: slot.acpi_slot,
            qom_path: presence.qom_path.clone(),
            threads: presence.threads.iter().map(|thread| thread.id).collect(),
        };
        self.present().map(row).collect()
    }

    /// Returns an inventory of the slots that were saved and nothing else, to compare another with.
    pub fn from_record(mut recorded: Vec<PresentSlot>) -> Self {
        recorded.sort_by_key(|row| row.id);
        recorded.dedup_by_key(|row| row.id);
        let trusted = false;
        let thread = |id| Thread { id, trusted };
        let slot = |row: PresentSlot| HotplugSlot {
            id: row.id,
            width: row.width.min(MAX_VCPUS_PER_SLOT),
            acpi_slot: row.acpi_slot,
            driver: Text::default(),
            props: Props::default(),
            topology: Topology::default(),
            presence: Some(Presence {
                qom_path: row.qom_path,
                order: 0,
                threads: row.threads.into_iter().map(thread).collect(),
            }),
        };
        Self {
            slots: recorded.into_iter().map(slot).collect(),
            ..Self::default()
        }
    }

    /// How vCPUs are plugged here.
    pub fn method(&self) -> HotplugMethod {
        self.method
    }

    /// QEMU's name of the target, such as `x86_64`.
    pub fn architecture(&self) -> &str {
        self.architecture.as_str()
    }

    /// Returns all slots, in the order of their vCPU numbers.
    pub fn slots(&self) -> &[HotplugSlot] {
        &self.slots
    }

    /// Returns the slot `id`, if the machine has it.
    pub fn slot(&self, id: SlotId) -> Option<&HotplugSlot> {
        let index = self.slots.binary_search_by_key(&id, |slot| slot.id);
        index.ok().map(|index| &self.slots[index])
    }

    /// Returns the plugged slots, with their presence.
    pub fn present(&self) -> impl Iterator<Item = (&HotplugSlot, &Presence)> {
        let slots = self.slots.iter();
        slots.filter_map(|slot| Some((slot, slot.presence.as_ref()?)))
    }

    /// Returns whether `vcpu` is present.
    pub fn is_present(&self, vcpu: VcpuId) -> bool {
        self.present()
            .any(|(slot, _)| slot.vcpus().any(|id| id == vcpu))
    }

    /// The number of vCPUs that are present.
    pub fn vcpu_count(&self) -> u32 {
        self.present().map(|(slot, _)| slot.width).sum()
    }

    /// The number of vCPUs that can be present.
    pub fn max_vcpus(&self) -> u32 {
        self.slots.iter().map(|slot| slot.width).sum()
    }

    /// Returns the number of vCPUs in the largest slot.
    pub fn vcpus_per_slot(&self) -> u32 {
        self.slots.iter().map(|slot| slot.width).max().unwrap_or(0)
    }

    /// Every vCPU, present or possible, by number.
    pub fn vcpus(&self) -> impl Iterator<Item = Vcpu<'_>> {
        self.slots.iter().flat_map(|slot| {
            let threads = slot.presence.as_ref().map_or(&[][..], |p| &p.threads);
            slot.vcpus().enumerate().map(move |(i, id)| Vcpu {
                id,
                slot,
                thread: threads.get(i).filter(|t| t.trusted).map(|t| t.id),
            })
        })
    }

    /// Returns whether QEMU can be asked to unplug `slot`.
    ///
    /// Only targets that can unplug are ever asked (QEMU 7.2 for aarch64 aborts when asked), and
    /// the slot of vCPU 0 stays: all of those targets refuse to unplug the boot CPU.
    pub fn is_removable(&self, slot: &HotplugSlot) -> bool {
        slot.presence.is_some() && slot.id != 0 && self.can_unplug()
    }

    /// Whether this kind of machine can unplug vCPUs.
    pub fn can_unplug(&self) -> bool {
        self.method == HotplugMethod::DeviceAdd
            && matches!(
                self.architecture(),
                "x86_64" | "i386" | "ppc64" | "loongarch64"
            )
    }

    /// Trusts the threads that are tasks of `leader` according to `is_task`, unless two vCPUs share
    /// a thread or it is the main thread of `leader` (single-threaded TCG: then no vCPU has a thread
    /// of its own). Returns the ids that are not tasks of `leader`.
    pub fn trust_threads(&mut self, leader: Pid, is_task: impl Fn(Tid) -> bool) -> Vec<Tid> {
        let mut uses: BTreeMap<Tid, u32> = BTreeMap::new();
        for (_, presence) in self.present() {
            for thread in &presence.threads {
                *uses.entry(thread.id).or_default() += 1;
            }
        }
        let mut untrusted = Vec::new();
        let present = self.slots.iter_mut().filter_map(|s| s.presence.as_mut());
        for thread in present.flat_map(|presence| &mut presence.threads) {
            let own = thread.id != leader.main_thread() && uses[&thread.id] == 1;
            thread.trusted = own && is_task(thread.id);
            if own && !thread.trusted {
                untrusted.push(thread.id);
            }
        }
        untrusted
    }
}

/// The order of enabling and the threads of a slot.
type Running = (u32, Vec<Thread>);

/// Groups what `query-cpus-fast` lists by the QOM path of the slot.
fn group_by_slot(cpus: &[CpuInfoFast]) -> BTreeMap<String, Running> {
    let mut groups: BTreeMap<String, Running> = BTreeMap::new();
    for cpu in cpus {
        let order = groups.len() as u32 + 1;
        let group = groups.entry(cpu.slot_path().to_owned());
        let (_, threads) = group.or_insert((order, Vec::new()));
        threads.push(Thread {
            id: Tid(u32::try_from(cpu.thread_id).unwrap_or(0)),
            trusted: false,
        });
    }
    groups
}

/// Sorts the slots by topology and numbers their vCPUs.
fn number(slots: &mut [HotplugSlot]) -> Result<(), InconsistentReply> {
    slots.sort_by_key(|slot| (slot.topology.rank(), slot.acpi_slot));
    let mut next = 0;
    for slot in slots {
        slot.id = SlotId(next);
        next = match next.checked_add(slot.width) {
            Some(sum) if is_possible(slot.width) && sum <= MAX_VCPUS => sum,
            _ => return Err(InconsistentReply::Count),
        };
    }
    Ok(())
}

fn is_possible(width: u32) -> bool {
    (1..=MAX_VCPUS_PER_SLOT).contains(&width)
}

/// Checks that no two slots have one path.
fn check_paths(slots: &[HotplugSlot]) -> Result<(), InconsistentReply> {
    let present = slots.iter().filter_map(|slot| slot.presence.as_ref());
    let mut paths: Vec<&Text> = present.map(|presence| &presence.qom_path).collect();
    paths.sort();
    match paths.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(InconsistentReply::SharedPath(pair[0].clone())),
        None => Ok(()),
    }
}
