//! The end of a story: everything goes on, and the model must find out what is true.

use std::collections::BTreeSet;
use std::time::Duration;

use vcpud::ids::VcpuId;
use vcpud::machine::model::request::Command;
use vcpud::placement::Kind;

use crate::host::Trouble;
use crate::world::World;

/// Everything settles within this time: the longest pauses are those before a connection to a QEMU that
/// broke the protocol, and between attempts to restore guest CPUs.
const LONGEST: Duration = Duration::from_secs(12 * 60);
/// A machine looks for evidence that the guest has started vCPUs within this time.
const LOOKS: Duration = Duration::from_secs(61);
/// How long a settled machine is observed.
const IDLE: Duration = Duration::from_secs(31);
/// A settled machine needs a pass of the placer every 5 s, and a refresh every 10 s for removals.
const IDLE_TICKS: u32 = 14;
/// Evidence needs two reads: the first of another instance of the service is what the second is compared with.
const READS: u32 = 3;
/// The time between them.
const READ_PAUSE: Duration = Duration::from_secs(2);
/// So many jobs are a loop.
const MANY: usize = 10_000;

impl World {
    /// Lets everything settle, and checks the result.
    pub(crate) fn settle(mut self) {
        if self.is_cancelled {
            return;
        }
        self.trouble = Trouble::default();
        self.is_listening = true;
        self.deliver();
        if let Some(qemu) = &mut self.qemu {
            qemu.is_migrating = false;
            qemu.is_paused = false;
        }
        if !self.setup.is_registered && !self.is_over() {
            self.launch();
        }
        self.release(false);
        let end = self.now + LONGEST;
        while let Some(lack) = self.lack() {
            let deadline = self.model.next_deadline(self.now);
            assert!(deadline.is_some_and(|at| at <= end), "not settled: {lack}");
            deadline.into_iter().for_each(|at| self.tick(at));
        }
        // From here on, the machine looks for evidence only if a caller reads.
        self.pass(LOOKS);
        if !self.is_over() {
            self.observe();
            self.read();
        }
        assert_eq!(self.promises.ready, 1, "Ready comes once");
    }

    /// Observes the settled machine.
    fn observe(&mut self) {
        let end = self.now + IDLE;
        let looks = self.promises.looks;
        let mut ticks = 0;
        while let Some(deadline) = self.model.next_deadline(self.now)
            && deadline <= end
        {
            ticks += 1;
            self.tick(deadline);
            self.run_all();
        }
        assert!(ticks <= IDLE_TICKS, "{ticks} ticks of an idle machine");
        let looks = self.promises.looks - looks;
        assert_eq!(looks, 0, "looks at the vCPUs of an idle machine");
        let lack = self.lack();
        assert!(lack.is_none(), "no longer settled: {lack:?}");
    }

    /// Lets a caller read, until all evidence is found.
    fn read(&mut self) {
        for _ in 0..READS {
            self.command(Command::Refresh);
            self.run_all();
            self.pass(READ_PAUSE);
            self.run_all();
        }
        let Some(qemu) = &self.qemu else {
            return;
        };
        let started = qemu.started();
        let snapshot = self.model.snapshot();
        let shown = snapshot.inventory.vcpus();
        let shown = shown.filter(|vcpu| snapshot.is_started(vcpu) == Some(true));
        let shown: BTreeSet<VcpuId> = shown.map(|vcpu| vcpu.id).collect();
        assert_eq!(shown, started, "the vCPUs that the guest started");
        let unreported: Vec<_> = self.ledger.awaited.intersection(&started).collect();
        assert!(
            unreported.is_empty(),
            "no start is reported of {unreported:?}"
        );
    }

    fn run_all(&mut self) {
        let mut left = MANY;
        while !self.ready().is_empty() {
            self.run(1);
            left -= 1;
            assert!(left > 0, "the jobs never end");
        }
    }

    /// Returns what is not settled.
    fn lack(&mut self) -> Option<String> {
        if !self.is_over() {
            self.run_all();
        }
        if self.calls.open() > 0 {
            return Some(format!("{} calls are not answered", self.calls.open()));
        }
        if self.is_over() {
            return None;
        }
        let Some(qemu) = &self.qemu else {
            return Some("the process exited".into());
        };
        let snapshot = self.model.snapshot();
        if snapshot.version.is_none() || snapshot.disconnected.is_some() {
            return Some(format!("no connection: {:?}", snapshot.disconnected));
        }
        let kind = snapshot.unit.as_ref().map(|unit| unit.kind);
        if self.setup.has_unit && kind != Some(Kind::Scope) {
            return Some(format!("the unit: {:?}", snapshot.unit));
        }
        let vcpus = snapshot.inventory.vcpus();
        let shown = vcpus.filter(|vcpu| vcpu.slot.presence.is_some());
        let shown: BTreeSet<VcpuId> = shown.map(|vcpu| vcpu.id).collect();
        let present = qemu.present();
        if shown != present || self.ledger.present.as_ref() != Some(&present) {
            let reported = &self.ledger.present;
            return Some(format!(
                "{present:?} are present, {shown:?} shown and {reported:?} reported"
            ));
        }
        let pending: BTreeSet<VcpuId> = snapshot.pending.iter().copied().collect();
        for (n, plugged) in qemu.plugged() {
            let is_pending = qemu.vcpus(n).iter().any(|vcpu| pending.contains(vcpu));
            let must_be = plugged.is_held && plugged.is_known && !plugged.is_ambiguous;
            let may_be = plugged.is_held || plugged.is_doubtful;
            if (must_be && !is_pending) || (is_pending && !may_be) {
                return Some(format!("the removal of slot {n}: {is_pending}"));
            }
        }
        let mut left = self.guest.left();
        let left = left.find(|vcpu| !pending.contains(vcpu));
        left.map(|vcpu| format!("the guest CPU of vCPU {vcpu} is offline"))
    }
}
