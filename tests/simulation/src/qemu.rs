//! A simulated QEMU: its slots, and what it does with commands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use vcpud::ids::{Pid, SlotId, Uid, VcpuId};
use vcpud::inventory::{CpuInfoFast, HotplugSlot, HotpluggableCpu, Inventory, Slots};
use vcpud::machine::model::input::QemuState;
use vcpud::machine::model::starts::Reading;
use vcpud::process::ProcessId;
use vcpud::qmp::{AcpiOst, CommandError, Event};
use vcpud::text::Text;

use crate::step::Setup;

/// The CPU time that the creation of a thread takes.
const CREATION: Duration = Duration::from_millis(4);
/// The CPU time for which QEMU wakes a thread.
const WAKE_UP: Duration = Duration::from_micros(100);
/// The time that the guest needs to start a CPU, as a time of an idle guest.
const BRING_UP: Duration = Duration::from_secs(2);

/// The status of `_OST` with which the guest refuses.
const BUSY: u64 = 0x82;

/// One QEMU process.
pub(crate) struct Qemu {
    pub id: ProcessId,
    pub is_migrating: bool,
    width: u32,
    slots: Vec<Slot>,
    last_thread: i64,
    plugs: u32,
    /// Whether the guest is paused.
    pub is_paused: bool,
    /// Whether the kernel counts exits.
    counts_exits: bool,
}

struct Slot {
    template: HotpluggableCpu,
    plugged: Option<Plugged>,
    /// The exits of the CPUs that were removed. KVM gives them to the next one.
    parked_exits: u64,
}

/// The CPU in a slot.
pub(crate) struct Plugged {
    path: String,
    first_thread: i64,
    /// When the guest started it.
    started: Option<Instant>,
    /// The CPU time of each thread without the guest.
    idle_time: Duration,
    /// Whether the guest was asked to give it up, and has not answered.
    pub is_held: bool,
    /// The users who asked.
    pub asked: BTreeSet<Uid>,
    /// Whether the service knows that QEMU accepted the removal.
    pub is_known: bool,
    /// Whether the last report of the guest about it is a refusal.
    pub is_refused: bool,
    /// Whether the guest refused twice in a row. QEMU's list shows no difference then.
    pub is_refused_again: bool,
    /// Whether the service may have missed such a refusal.
    pub is_doubtful: bool,
    /// Whether the service had not seen the last refusal at its next request.
    pub is_unseen: bool,
    /// Whether the service cannot know which of two requests the guest refused.
    pub is_ambiguous: bool,
}

impl Plugged {
    /// Returns whether the service can know that a caller asked for the removal.
    pub(crate) fn is_explained(&self) -> bool {
        !self.is_ambiguous && !self.asked.is_empty()
    }
}

impl Qemu {
    pub(crate) fn new(now: Instant, number: u32, setup: Setup) -> Self {
        let Setup {
            slots,
            width,
            plugged,
            counts_exits,
            is_paused,
            ..
        } = setup;
        let slot = |n: u32| Slot {
            template: template(n, width),
            plugged: None,
            parked_exits: 0,
        };
        let mut qemu = Self {
            id: ProcessId {
                pid: Pid(1_000 * number),
                start: u64::from(number),
            },
            is_migrating: false,
            width,
            slots: (0..slots).map(slot).collect(),
            last_thread: i64::from(1_000 * number),
            plugs: 0,
            is_paused,
            counts_exits,
        };
        for n in 0..plugged as usize {
            qemu.insert(n, format!("/machine/unattached/device[{n}]"));
            qemu.start(now, n);
        }
        qemu
    }

    fn insert(&mut self, n: usize, path: String) {
        self.wake();
        self.slots[n].plugged = Some(Plugged {
            path,
            first_thread: self.last_thread + 1,
            started: None,
            idle_time: CREATION,
            is_held: false,
            asked: BTreeSet::new(),
            is_known: false,
            is_refused: false,
            is_refused_again: false,
            is_doubtful: false,
            is_unseen: false,
            is_ambiguous: false,
        });
        self.last_thread += i64::from(self.width);
    }

    /// Returns the vCPUs of the slot `n`.
    pub(crate) fn vcpus(&self, n: usize) -> Vec<VcpuId> {
        let first = n as u32 * self.width;
        (first..first + self.width).map(VcpuId).collect()
    }

    fn slot_id(&self, n: usize) -> SlotId {
        SlotId(n as u32 * self.width)
    }

    pub(crate) fn index(&self, slot: SlotId) -> usize {
        (slot.get() / self.width) as usize
    }

    pub(crate) fn plugged(&self) -> impl Iterator<Item = (usize, &Plugged)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(n, slot)| Some((n, slot.plugged.as_ref()?)))
    }

    pub(crate) fn plugged_mut(&mut self) -> impl Iterator<Item = (usize, &mut Plugged)> {
        let slots = self.slots.iter_mut().enumerate();
        slots.filter_map(|(n, slot)| Some((n, slot.plugged.as_mut()?)))
    }

    pub(crate) fn at(&mut self, n: usize) -> Option<&mut Plugged> {
        self.slots.get_mut(n)?.plugged.as_mut()
    }

    /// Returns one of the slots that `is_candidate` accepts.
    pub(crate) fn pick(
        &self,
        choice: u8,
        is_candidate: impl Fn(usize, &Plugged) -> bool,
    ) -> Option<usize> {
        let candidates = self
            .plugged()
            .filter(|(n, plugged)| is_candidate(*n, plugged));
        let candidates: Vec<usize> = candidates.map(|(n, _)| n).collect();
        pick(&candidates, choice)
    }

    pub(crate) fn pick_free(&self, choice: u8) -> Option<usize> {
        let free = (0..self.slots.len()).filter(|n| self.slots[*n].plugged.is_none());
        pick(&free.collect::<Vec<_>>(), choice)
    }

    /// Returns the first thread of the slot of `vcpu`.
    pub(crate) fn thread(&self, vcpu: VcpuId) -> Option<i64> {
        let slot = self.slots.get((vcpu.get() / self.width) as usize)?;
        slot.plugged.as_ref().map(|plugged| plugged.first_thread)
    }

    /// Returns all vCPUs that are present.
    pub(crate) fn present(&self) -> BTreeSet<VcpuId> {
        self.plugged().flat_map(|(n, _)| self.vcpus(n)).collect()
    }

    /// Lets QEMU wake all threads for a moment.
    pub(crate) fn wake(&mut self) {
        for (_, plugged) in self.plugged_mut() {
            plugged.idle_time += WAKE_UP;
        }
    }

    /// Lets the guest start the CPU of the slot `n`, unless it is paused.
    pub(crate) fn start(&mut self, now: Instant, n: usize) {
        let is_paused = self.is_paused;
        if let Some(plugged) = self.at(n).filter(|_| !is_paused) {
            plugged.started.get_or_insert(now);
        }
    }

    /// Returns whether the guest started the CPU with the thread `thread`, if it is present.
    pub(crate) fn is_started(&self, thread: i64) -> Option<bool> {
        let threads =
            |plugged: &Plugged| plugged.first_thread..plugged.first_thread + i64::from(self.width);
        let mut plugged = self.plugged();
        let found = plugged.find(|(_, plugged)| threads(plugged).contains(&thread));
        found.map(|(_, plugged)| plugged.started.is_some())
    }

    /// Returns the vCPUs that the guest started.
    pub(crate) fn started(&self) -> BTreeSet<VcpuId> {
        let started = self.plugged().filter(|(_, p)| p.started.is_some());
        started.flat_map(|(n, _)| self.vcpus(n)).collect()
    }

    /// Returns the evidence about `vcpus`.
    pub(crate) fn readings(
        &self,
        now: Instant,
        vcpus: &BTreeSet<VcpuId>,
    ) -> BTreeMap<VcpuId, Reading> {
        let reading = |n: usize, plugged: &Plugged| {
            let ran = plugged
                .started
                .map_or(Duration::ZERO, |at| BRING_UP + (now - at));
            let exits = self.slots[n].parked_exits + exits(plugged.started, now);
            Reading {
                exits: self.counts_exits.then_some(exits),
                cpu_time: Some(plugged.idle_time + ran / 100),
            }
        };
        let rows = self.plugged().flat_map(|(n, plugged)| {
            let reading = reading(n, plugged);
            self.vcpus(n).into_iter().map(move |vcpu| (vcpu, reading))
        });
        rows.filter(|(vcpu, _)| vcpus.contains(vcpu)).collect()
    }

    /// Removes the CPU of the slot `n`. Returns the event.
    pub(crate) fn take_away(&mut self, now: Instant, n: usize) -> Event {
        let plugged = self.slots[n].plugged.take();
        let started = plugged.as_ref().and_then(|plugged| plugged.started);
        self.slots[n].parked_exits += exits(started, now);
        let path = plugged.map(|plugged| plugged.path).unwrap_or_default();
        let below = ["", "/lapic"][n % 2];
        Event::DeviceDeleted {
            device: None,
            path: Text::lossy(&format!("{path}{below}")),
        }
    }

    /// Lets the guest refuse to give up the CPU of the slot `n`. Returns the event.
    pub(crate) fn refuse(&mut self, n: usize) -> Option<Event> {
        let plugged = self.at(n)?;
        plugged.is_held = false;
        plugged.is_unseen = true;
        plugged.is_refused_again = plugged.is_refused;
        plugged.is_refused = true;
        Some(Event::AcpiCpuOst(self.ost(n, 3, BUSY)))
    }

    /// Plugs a CPU for another client. Returns the event of the guest.
    pub(crate) fn plug(&mut self, n: usize) -> Event {
        self.plugs += 1;
        let path = format!("/machine/peripheral/other{}", self.plugs);
        self.insert(n, path);
        Event::AcpiCpuOst(self.ost(n, 1, 0))
    }

    /// Returns a report of the guest about the slot `n`.
    pub(crate) fn ost(&self, n: usize, source: u64, status: u64) -> AcpiOst {
        let plugged = self.slots[n].plugged.as_ref();
        let id = plugged.and_then(|plugged| plugged.path.strip_prefix("/machine/peripheral/"));
        AcpiOst {
            device: id.map(Text::lossy),
            slot: Text::lossy(&n.to_string()),
            slot_type: Text::lossy("CPU"),
            source,
            status,
        }
    }

    /// Returns an event about the CPU of the slot `n` that means nothing.
    pub(crate) fn stale(&self, n: usize) -> Event {
        let plugged = self.slots[n].plugged.as_ref();
        let path = plugged.map_or("/machine/peripheral/gone", |plugged| &plugged.path);
        Event::DeviceDeleted {
            device: None,
            path: Text::lossy(path),
        }
    }

    /// Returns the last refusals of the guest, as `query-acpi-ospm-status` does.
    pub(crate) fn ospm(&self) -> Vec<AcpiOst> {
        let refused = self.plugged().filter(|(_, plugged)| plugged.is_refused);
        refused.map(|(n, _)| self.ost(n, 3, BUSY)).collect()
    }

    /// Executes `device_add`.
    ///
    /// # Errors
    /// The slot is occupied.
    pub(crate) fn device_add(&mut self, slot: &HotplugSlot) -> Result<(), CommandError> {
        let n = self.index(slot.id);
        if self.slots[n].plugged.is_some() {
            return Err(refusal("CPU exists"));
        }
        // The client chooses another id if a device has this one.
        let mut path = format!("/machine/peripheral/vcpu{}", slot.id);
        while self.plugged().any(|(_, plugged)| plugged.path == path) {
            path.push_str("-2");
        }
        self.insert(n, path);
        Ok(())
    }

    /// Executes `device_del` for `uid`.
    ///
    /// # Errors
    /// The device does not exist.
    pub(crate) fn device_del(&mut self, path: &str, uid: Uid) -> Result<(), CommandError> {
        let mut plugged = self.plugged_mut();
        let Some((_, plugged)) = plugged.find(|(_, plugged)| plugged.path == path) else {
            return Err(refusal(&format!("Device '{path}' not found")));
        };
        plugged.asked.insert(uid);
        plugged.is_ambiguous = plugged.is_unseen;
        if !plugged.is_held {
            plugged.is_held = true;
            plugged.is_known = false;
        }
        Ok(())
    }

    /// Returns what the queries after a batch find.
    pub(crate) fn state(&self) -> QemuState {
        let slots = self.slots.iter().rev().map(|slot| HotpluggableCpu {
            qom_path: slot.plugged.as_ref().map(|p| Text::lossy(&p.path)),
            ..slot.template.clone()
        });
        let slots = Slots::Listed(slots.collect());
        let cpus = self
            .plugged()
            .flat_map(|(n, plugged)| self.cpus(n, plugged));
        let inventory = Inventory::read(slots, cpus.collect());
        let mut inventory = inventory.expect("the replies agree");
        let _ = inventory.trust_threads(self.id.pid, Some);
        QemuState {
            inventory: Arc::new(inventory),
            run_state: Text::lossy(match (self.is_migrating, self.is_paused) {
                (true, _) => "inmigrate",
                (false, true) => "paused",
                (false, false) => "running",
            }),
            readings: BTreeMap::new(),
            no_hotplug: None,
            cost: Duration::ZERO,
        }
    }

    fn cpus(&self, n: usize, plugged: &Plugged) -> impl Iterator<Item = CpuInfoFast> {
        (0..self.width).map(move |thread| CpuInfoFast {
            cpu_index: i64::from(self.slot_id(n).get() + thread),
            qom_path: Text::lossy(&match self.width {
                1 => plugged.path.clone(),
                _ => format!("{}/thread[{thread}]", plugged.path),
            }),
            thread_id: plugged.first_thread + i64::from(thread),
            props: None,
            target: Some(Text::lossy("x86_64")),
            qom_type: None,
        })
    }
}

fn template(n: u32, width: u32) -> HotpluggableCpu {
    let slot = json!({"type": "cpu", "vcpus-count": width, "props": {"core-id": n}});
    serde_json::from_value(slot).expect("it is a slot")
}

/// Returns the exits of a CPU that the guest started at `started`.
fn exits(started: Option<Instant>, now: Instant) -> u64 {
    started.map_or(0, |at| 300 + (now - at).as_millis() as u64 / 100)
}

/// Returns QEMU's refusal with the text `text`.
pub(crate) fn refusal(text: &str) -> CommandError {
    CommandError {
        class: Text::lossy("GenericError"),
        desc: Text::lossy(text),
    }
}

/// Returns one of `items`, if there is one.
pub(crate) fn pick<T: Clone>(items: &[T], choice: u8) -> Option<T> {
    let n = usize::from(choice).checked_rem(items.len())?;
    items.get(n).cloned()
}
