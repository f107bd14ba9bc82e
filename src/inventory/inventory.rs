//! The vCPUs of one machine, from the replies of QEMU.

use std::collections::BTreeMap;

use super::props::Props;
use super::reply::{self, CpuInfoFast, HotpluggableCpu};
use super::slot::{
    HostThread, HotplugMethod, HotplugSlot, MAX_VCPUS_PER_SLOT, Presence, PresentSlot, Thread, Vcpu,
};
use super::topology::Topology;
use crate::ids::{MAX_VCPUS, Pid, SlotId, Tid, VcpuId};
use crate::text::Text;

/// The possible CPUs of a machine, as far as its QEMU reports them.
#[derive(Clone, Debug)]
pub enum Slots {
    /// The reply of `query-hotpluggable-cpus`.
    Listed(Vec<HotpluggableCpu>),
    /// A QEMU before 2.7 reports their number only.
    Counted(u32),
    /// No CPUs can be plugged beside those that are present.
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

/// The error of replies that are impossible or contradict each other.
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

impl Inventory {
    /// Joins the possible and the present CPUs by QOM path.
    ///
    /// # Errors
    ///
    /// Fails if the replies are impossible.
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

        let mut torn = false;
        // QEMU lists the slots in descending order, so its first is the last one.
        let numbered = reported.into_iter().zip((0..count).rev());
        let slots = numbered
            .map(|(reported, acpi_slot)| slot(reported, acpi_slot, &mut running, &mut torn));
        let mut slots: Vec<HotplugSlot> = slots.collect::<Result<_, _>>()?;
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

    /// Returns the inventory with other present CPUs. A machine always has the same slots, and QEMU takes longer
    /// to list them than to list the CPUs.
    ///
    /// The result is `None` if the reply of `query-cpus-fast` does not say which slots the CPUs are in: QEMU may
    /// report no positions, or threads of a core instead of slots (pseries). The same holds if a slot is not in use
    /// any more: then the list of slots decides.
    pub fn with_cpus(&self, cpus: &[CpuInfoFast]) -> Option<Self> {
        if self.method != HotplugMethod::DeviceAdd || self.vcpus_per_slot() != 1 {
            return None;
        }
        let mut next = self.clone();
        next.torn = false;
        for slot in &mut next.slots {
            slot.presence = None;
        }
        for (cpu, order) in cpus.iter().zip(1..) {
            if cpu.is_thread() {
                return None;
            }
            let slot = next.free_slot_mut(cpu.props.as_ref()?)?;
            slot.presence = Some(Presence {
                qom_path: cpu.qom_path.clone(),
                order,
                threads: vec![cpu.thread()],
            });
        }
        let mut slots = self.slots.iter().zip(&next.slots);
        let is_kept = slots.all(|(old, new)| old.presence.is_none() || new.presence.is_some());
        (is_kept && check_paths(&next.slots).is_ok()).then_some(next)
    }

    /// Returns the free slot with `props`, if there is one.
    fn free_slot_mut(&mut self, props: &Props) -> Option<&mut HotplugSlot> {
        let rank = Topology::of(props).rank();
        let first = self.slots.partition_point(|s| s.topology.rank() < rank);
        let slot = self.slots.get_mut(first)?;
        (slot.props == *props && slot.presence.is_none()).then_some(slot)
    }

    /// Returns whether the two replies disagree, because a CPU was plugged or unplugged between them. Then
    /// a refresh is needed.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// Returns the plugged slots as they are saved.
    pub fn to_saved(&self) -> Vec<PresentSlot> {
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
    pub fn from_saved(mut saved: Vec<PresentSlot>) -> Self {
        saved.sort_by_key(|row| row.id);
        saved.dedup_by_key(|row| row.id);
        let host = HostThread::Unknown;
        let thread = |id| Thread { id, host };
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
            slots: saved.into_iter().map(slot).collect(),
            ..Self::default()
        }
    }

    /// Returns the command that plugs vCPUs into this machine.
    pub fn method(&self) -> HotplugMethod {
        self.method
    }

    /// Returns QEMU's name of the target, such as `x86_64`.
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

    /// Returns whether `vcpu` is present here and in `other`, and the same CPU.
    pub fn has_same(&self, other: &Self, vcpu: VcpuId) -> bool {
        let presence = |of: &Self| {
            let mut present = of.present();
            let found = present.find(|(slot, _)| slot.vcpus().any(|id| id == vcpu));
            found.map(|(_, presence)| presence.clone())
        };
        match (presence(self), presence(other)) {
            (Some(own), Some(other)) => own.is_same(&other),
            _ => false,
        }
    }

    /// Returns the number of vCPUs that are present.
    pub fn vcpu_count(&self) -> u32 {
        self.present().map(|(slot, _)| slot.width).sum()
    }

    /// Returns the maximum number of vCPUs.
    pub fn max_vcpus(&self) -> u32 {
        self.slots.iter().map(|slot| slot.width).sum()
    }

    /// Returns the number of vCPUs in the largest slot.
    pub fn vcpus_per_slot(&self) -> u32 {
        self.slots.iter().map(|slot| slot.width).max().unwrap_or(0)
    }

    /// Returns all vCPUs, present and possible, by number.
    pub fn vcpus(&self) -> impl Iterator<Item = Vcpu<'_>> {
        self.slots.iter().flat_map(|slot| {
            let threads = slot.presence.as_ref().map_or(&[][..], |p| &p.threads);
            slot.vcpus().enumerate().map(move |(i, id)| {
                let reported = threads.get(i).copied();
                Vcpu {
                    id,
                    slot,
                    thread: reported.and_then(|thread| match thread.host {
                        HostThread::Own(thread) => Some(thread),
                        _ => None,
                    }),
                    reported,
                }
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

    /// Returns whether this kind of machine can unplug vCPUs.
    pub fn can_unplug(&self) -> bool {
        self.method == HotplugMethod::DeviceAdd
            && matches!(
                self.architecture(),
                "x86_64" | "i386" | "ppc64" | "loongarch64"
            )
    }

    /// Notes the threads on the host, which `task` returns for the ids that QEMU reported if they are
    /// tasks of `leader`. A thread that several vCPUs share or that is the main thread of `leader` is not
    /// used (single-threaded TCG: then no vCPU has a thread of its own). Returns the reported ids that are
    /// not tasks of `leader`.
    pub fn trust_threads(&mut self, leader: Pid, task: impl Fn(Tid) -> Option<Tid>) -> Vec<Tid> {
        let mut uses: BTreeMap<Tid, u32> = BTreeMap::new();
        for (_, presence) in self.present() {
            for thread in &presence.threads {
                *uses.entry(thread.id).or_default() += 1;
            }
        }
        let mut missing = Vec::new();
        let present = self.slots.iter_mut().filter_map(|s| s.presence.as_mut());
        for thread in present.flat_map(|presence| &mut presence.threads) {
            let task = task(thread.id);
            thread.host = match task {
                _ if uses[&thread.id] > 1 => HostThread::Shared,
                Some(task) if task == leader.main_thread() => HostThread::Shared,
                Some(task) => HostThread::Own(task),
                None => HostThread::Missing,
            };
            if thread.host == HostThread::Missing {
                missing.push(thread.id);
            }
        }
        missing
    }
}

/// The order of enabling and the threads of a slot.
type Running = (u32, Vec<Thread>);

/// Groups the CPUs of `query-cpus-fast` by the QOM path of their slot.
fn group_by_slot(cpus: &[CpuInfoFast]) -> BTreeMap<String, Running> {
    let mut groups: BTreeMap<String, Running> = BTreeMap::new();
    for cpu in cpus {
        let order = groups.len() as u32 + 1;
        let group = groups.entry(cpu.slot_path().to_owned());
        let (_, threads) = group.or_insert((order, Vec::new()));
        threads.push(cpu.thread());
    }
    groups
}

/// Returns the slot that QEMU `reported`, with what it lists as `running` there. Sets `torn` if QEMU lists
/// nothing for a slot in use.
fn slot(
    reported: HotpluggableCpu,
    acpi_slot: u32,
    running: &mut BTreeMap<String, Running>,
    torn: &mut bool,
) -> Result<HotplugSlot, InconsistentReply> {
    let presence = reported.qom_path.map(|qom_path| {
        let found = running.remove(qom_path.as_str());
        *torn |= found.is_none();
        let (order, threads) = found.unwrap_or_default();
        Presence {
            qom_path,
            order,
            threads,
        }
    });
    Ok(HotplugSlot {
        id: SlotId(0),
        width: u32::try_from(reported.vcpus_count).map_err(|_| InconsistentReply::Count)?,
        acpi_slot,
        driver: reported.driver,
        topology: Topology::of(&reported.props),
        props: reported.props,
        presence,
    })
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
