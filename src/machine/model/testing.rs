//! Inventories and models for unit tests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::effect::Effect;
use super::evidence::Clues;
use super::input::{Exchanged, Input, Opened, QemuState, SaveId, UnitFound};
use super::numbering::Numbering;
use super::request::{Command, Request, RequestId, Until, Wait};
use super::saved_state::SavedState;
use super::{Facts, Model};
use crate::config::Limits;
use crate::ids::{Pid, Uid, VcpuId};
use crate::inventory::{Inventory, Slots, Target};
use crate::machine::spec::{Lifetime, MachineConfig, PlacementConfig};
use crate::process::ProcessId;
use crate::qmp::Identity;
use crate::text::Text;

/// Returns an inventory of `slots` slots of one vCPU each. Those in `plugged` are present, with these
/// threads.
pub(in crate::machine) fn inventory(slots: u32, plugged: &[(u32, u32)]) -> Inventory {
    let path = |n: u32| format!("/machine/peripheral/vcpu{n}");
    let at = |n: u32| plugged.iter().any(|(p, _)| *p == n).then(|| path(n));
    let slots = (0..slots).rev().map(
        |n| json!({"type": "cpu", "vcpus-count": 1, "props": {"core-id": n}, "qom-path": at(n)}),
    );
    let slots = slots.map(|slot| serde_json::from_value(slot).unwrap());
    let cpus = plugged.iter().map(|&(n, thread)| {
        json!({"cpu-index": n, "qom-path": path(n), "thread-id": thread, "target": "x86_64"})
    });
    let cpus = cpus.map(|cpu| serde_json::from_value(cpu).unwrap());
    Inventory::read(Slots::Listed(slots.collect()), cpus.collect()).unwrap()
}

/// Returns the numbering of a guest that booted with `equal` vCPUs.
pub(in crate::machine) fn numbering(equal: u32) -> Numbering {
    let boot: Vec<(u32, u32)> = (0..equal).map(|n| (n, 10 + n)).collect();
    let boot = inventory(8, &boot);
    let reset = Clues {
        reset: true,
        ..Clues::default()
    };
    Numbering::default().next(&boot, &boot, &reset)
}

/// The QEMU process of [`Driver`].
pub(in crate::machine) const PROCESS: ProcessId = ProcessId {
    pid: Pid(7),
    start: 9,
};

/// A model without a placer, at a time that only [`Driver::pass`] changes. Each method returns the effects.
pub(super) struct Driver {
    pub model: Model,
    pub now: Instant,
}

impl Driver {
    /// Returns a machine that begins to connect.
    pub(super) fn new(lifetime: Lifetime) -> Self {
        let facts = Facts {
            lifetime,
            is_reconnectable: true,
            uuid: None,
        };
        let config = MachineConfig {
            limits: Limits::default(),
            placement: PlacementConfig::default(),
        };
        let now = Instant::now();
        let model = Model::new(facts, config, now);
        Self { model, now }
    }

    /// Returns a machine that reached a QEMU, and has read the state `saved`.
    pub(super) fn loaded(saved: Option<SavedState>) -> Self {
        let mut driver = Self::new(Lifetime::Endpoint);
        driver.input(Input::Reached(PROCESS));
        driver.input(Input::Loaded(Ok(saved.map(Box::new))));
        driver
    }

    /// Returns a machine that is connected to a QEMU with the vCPUs 0 to `count` - 1 of 4, after the state
    /// `saved` was read. vCPUs that are reported first are saved, and started.
    pub(super) fn connected(count: u32, saved: Option<SavedState>) -> (Self, Vec<Effect>) {
        let is_first = saved.as_ref().is_none_or(|saved| saved.present.is_empty());
        let mut driver = Self::loaded(saved);
        driver.input(Input::UnitFound(UnitFound::default()));
        let mut effects = driver.input(opened(count));
        if is_first {
            effects.extend(driver.save(&effects));
            driver.start_all(count);
        }
        (driver, effects)
    }

    /// Lets the guest agent report all vCPUs as online.
    fn start_all(&mut self, count: u32) {
        let inventory = self.model.snapshot().inventory.clone();
        let vcpus = (0..count).map(VcpuId).collect();
        let online = Command::GuestOnline(inventory, vcpus);
        self.input(Input::Command(RequestId(0), online));
        self.pass(10);
        let effects = self.answer(count);
        self.save(&effects);
    }

    pub(super) fn input(&mut self, input: Input) -> Vec<Effect> {
        self.model.handle(self.now, input);
        std::iter::from_fn(|| self.model.next_effect()).collect()
    }

    /// Lets `milliseconds` pass.
    pub(super) fn pass(&mut self, milliseconds: u64) -> Vec<Effect> {
        self.now += Duration::from_millis(milliseconds);
        self.input(Input::Tick)
    }

    /// Lets a caller ask for `count` vCPUs, and wait for `wait`.
    pub(super) fn set_vcpus(&mut self, id: u64, count: u32, wait: Wait) -> Vec<Effect> {
        let request = Request {
            target: Target::Count(count),
            subject: self.model.snapshot().subject(),
            authorized_count: count,
            expected_count: None,
            wait,
            until: Until::Present,
            guest_online: false,
            uid: Uid(1000),
        };
        self.input(Input::Command(RequestId(id), Command::SetVcpus(request)))
    }

    /// Lets all writes of `effects` succeed.
    pub(super) fn save(&mut self, effects: &[Effect]) -> Vec<Effect> {
        let saves = effects.iter().filter_map(|effect| match effect {
            Effect::Save(id, _) => Some(*id),
            _ => None,
        });
        let saves: Vec<SaveId> = saves.collect();
        let saved = saves.into_iter().map(|id| Input::Saved(id, Ok(())));
        saved.flat_map(|input| self.input(input)).collect()
    }

    /// Lets QEMU answer that it has the vCPUs 0 to `count` - 1.
    pub(super) fn answer(&mut self, count: u32) -> Vec<Effect> {
        self.input(Input::Exchanged(Box::new(Exchanged {
            refused: Vec::new(),
            ospm: Vec::new(),
            state: state(count),
        })))
    }
}

/// Returns the state of a QEMU with the vCPUs 0 to `count` - 1 of 4.
pub(super) fn state(count: u32) -> QemuState {
    let plugged: Vec<(u32, u32)> = (0..count).map(|n| (n, 10 + n)).collect();
    QemuState {
        inventory: Arc::new(inventory(4, &plugged)),
        run_state: Text::lossy("running"),
        ..QemuState::default()
    }
}

/// Returns the first answers of a QEMU with the vCPUs 0 to `count` - 1.
pub(super) fn opened(count: u32) -> Input {
    Input::Opened(Box::new(Opened {
        identity: Identity::default(),
        state: state(count),
        ospm: Vec::new(),
        created: 0,
    }))
}
