//! What each step of a story does to the world.

use std::collections::BTreeSet;
use std::time::Duration;

use vcpud::ids::{Uid, VcpuId};
use vcpud::inventory::Target;
use vcpud::machine::model::Model;
use vcpud::machine::model::input::Input;
use vcpud::machine::model::request::{AwaitStart, Command, Request};
use vcpud::machine::model::tuning::TuningChange;
use vcpud::machine::{Lifetime, StopReason, Until, Wait};
use vcpud::placement::Bandwidth;
use vcpud::qmp::{Closed, Event};

use crate::guest::{Guest, offline_cpu};
use crate::host::Host;
use crate::jobs::Ready;
use crate::qemu::{Qemu, pick};
use crate::step::{Part, Step};
use crate::world::{World, facts};

/// The number of looks for evidence in that time.
const LOOKS: u32 = 3;
/// The number of events of a flood.
const FLOOD: u32 = 60;

impl World {
    /// Takes one step.
    pub(crate) fn take(&mut self, step: &Step) {
        match step {
            Step::SetVcpus(target, wait, uid) => self.set_vcpus(target.clone(), *wait, *uid),
            Step::Tune(choice) => self.tune(*choice),
            Step::Configure(choice) => self.configure(*choice),
            Step::ApplyConfig => {
                self.inputs(vec![Input::ConfigChanged(self.config.clone())]);
                self.command(Command::ApplyConfig);
            }
            Step::Offline(choice) => self.take_offline(*choice),
            Step::Release(is_restored) => self.release(*is_restored),
            Step::AwaitStart(choice, left) => self.await_start(*choice, *left),
            Step::Online(choice) => self.report_online(*choice),
            Step::Fail(fault) => {
                self.trouble.faults.insert(*fault);
            }
            Step::Stall(part, stalls) => self.stall(*part, *stalls),
            Step::Go(choice) => {
                if let Some(ready) = pick(&self.ready(), *choice) {
                    self.go(ready);
                }
            }
            Step::Run(count) => self.run((*count).into()),
            Step::Pass(time) => self.pass(*time),
            Step::HangUp {
                is_breach,
                is_received,
            } => self.hang_up(*is_breach, *is_received),
            Step::Listen(listens) => self.is_listening = *listens,
            Step::Restart {
                is_sent,
                is_kept,
                is_received,
            } => self.restart(*is_sent, *is_kept, *is_received),
            Step::Exit => self.exit(),
            Step::Launch => self.launch(),
            Step::Stop => self.inputs(vec![Input::Stop(StopReason::Unregistered)]),
            step => self.take_in_qemu(step),
        }
    }

    /// Takes a step of QEMU and its guest.
    fn take_in_qemu(&mut self, step: &Step) {
        let Some(qemu) = &mut self.qemu else {
            return;
        };
        match *step {
            Step::GiveUp(choice) => {
                if let Some(n) = qemu.pick(choice, |_, plugged| plugged.is_held) {
                    self.give_up(n);
                }
            }
            Step::Refuse(choice) => {
                if let Some(n) = qemu.pick(choice, |_, plugged| plugged.is_held) {
                    let event = qemu.refuse(n);
                    event.into_iter().for_each(|event| self.send(event));
                }
            }
            Step::Eject(choice) => {
                if let Some(n) = qemu.pick(choice, |n, _| n > 0) {
                    let report = qemu.ost(n, 0x103, 0);
                    self.remove(n);
                    self.send(Event::AcpiCpuOst(report));
                }
            }
            Step::Reset(starts_all) => {
                while let Some(qemu) = &self.qemu
                    && let Some(n) = qemu.pick(0, |_, plugged| plugged.is_held)
                {
                    self.give_up(n);
                }
                self.reset(starts_all);
            }
            Step::Start(choice) => {
                if let Some(n) = qemu.pick(choice, |_, _| true) {
                    qemu.start(self.now, n);
                }
            }
            Step::Pause(pauses) => {
                qemu.is_paused = pauses;
                qemu.wake();
                self.send(Event::RunState);
            }
            Step::Plug(choice) => {
                if let Some(n) = qemu.pick_free(choice) {
                    let event = qemu.plug(n);
                    self.send(event);
                }
            }
            Step::Stale(choice) => {
                if let Some(n) = qemu.pick(choice, |_, _| true) {
                    let event = qemu.stale(n);
                    self.send(event);
                }
            }
            Step::Flood(choice) => self.flood(choice),
            Step::Migrate(begins) => {
                qemu.is_migrating = begins;
                self.send(Event::RunState);
            }
            _ => {}
        }
    }

    fn set_vcpus(&mut self, target: Target, wait: Wait, uid: Uid) {
        let snapshot = self.model.snapshot();
        let plan = snapshot.plan(&target);
        let authorized_count = plan.map_or(0, |(_, count)| count);
        self.command(Command::SetVcpus(Request {
            target,
            subject: snapshot.subject(),
            authorized_count,
            expected_count: None,
            wait,
            until: Until::Present,
            guest_online: false,
            uid,
        }));
    }

    /// Lets a caller wait until the guest has started one vCPU, or all vCPUs.
    fn await_start(&mut self, choice: u8, left: Duration) {
        let inventory = self.model.snapshot().inventory.clone();
        let present = inventory.present().flat_map(|(slot, _)| slot.vcpus());
        let present: Vec<VcpuId> = present.collect();
        let vcpus: BTreeSet<VcpuId> = match choice % 2 {
            0 => pick(&present, choice / 2).into_iter().collect(),
            _ => present.into_iter().collect(),
        };
        self.command(Command::AwaitStart(AwaitStart {
            asked: Target::Present(vcpus.clone()),
            added: Vec::new(),
            vcpus,
            left,
            patience: left,
        }));
    }

    /// Lets the guest agent report one of the CPUs that the guest started.
    fn report_online(&mut self, choice: u8) {
        let inventory = self.model.snapshot().inventory.clone();
        let started = inventory.vcpus().filter(|vcpu| {
            let thread = vcpu.reported.map(|thread| i64::from(thread.id.get()));
            let qemu = self.qemu.as_ref();
            qemu.zip(thread)
                .and_then(|(qemu, thread)| qemu.is_started(thread))
                == Some(true)
        });
        let started: Vec<VcpuId> = started.map(|vcpu| vcpu.id).collect();
        if let Some(vcpu) = pick(&started, choice) {
            self.command(Command::GuestOnline(inventory, vec![vcpu]));
        }
    }

    /// Lets QEMU reset the guest, which starts all CPUs or none.
    fn reset(&mut self, starts_all: bool) {
        if let Some(qemu) = &mut self.qemu {
            qemu.wake();
            let all: Vec<usize> = qemu.plugged().map(|(n, _)| n).collect();
            for n in all.into_iter().filter(|_| starts_all) {
                qemu.start(self.now, n);
            }
        }
        self.send(Event::Reset);
    }

    fn tune(&mut self, choice: u8) {
        let subject = self.model.snapshot().subject();
        let change = match choice % 3 {
            0 => TuningChange::Pin([VcpuId(u32::from(choice % 8))].into(), None),
            1 => TuningChange::Pin([].into(), Some("0".parse().expect("it is a list"))),
            _ => TuningChange::Bandwidth(Bandwidth::UNLIMITED),
        };
        self.command(Command::Tune(change, subject));
    }

    fn configure(&mut self, choice: u8) {
        let affinity = ["0", "0-1"][usize::from(choice % 2)].parse();
        self.config.placement.tuning.affinity = affinity.ok();
        self.config.limits.removal_timeout = Duration::from_secs(u64::from(choice % 8));
        self.inputs(vec![Input::ConfigChanged(self.config.clone())]);
    }

    fn take_offline(&mut self, choice: u8) {
        let inventory = self.model.snapshot().inventory.clone();
        let slots = inventory.present().filter(|(slot, _)| slot.id != 0);
        let threads = slots.filter_map(|(slot, presence)| {
            let thread = presence.threads.first()?.id.get();
            Some((slot.id.first(), i64::from(thread)))
        });
        if let Some((vcpu, thread)) = pick(&threads.collect::<Vec<_>>(), choice) {
            self.command(Command::GuestOffline(vec![offline_cpu(vcpu)]));
            self.calls.note_thread(thread);
        }
    }

    /// Ends the calls that took guest CPUs offline.
    pub(crate) fn release(&mut self, restored: bool) {
        for cpu in self.guest.end_calls() {
            let cpus = vec![cpu];
            if restored {
                self.guest.bring_online(&cpus);
            }
            self.command(Command::GuestReleased { cpus, restored });
        }
    }

    fn stall(&mut self, part: Part, stalls: bool) {
        if stalls {
            self.trouble.stalled.insert(part);
        } else {
            self.trouble.stalled.remove(&part);
        }
        self.deliver();
    }

    /// Lets up to `count` things happen.
    pub(crate) fn run(&mut self, count: usize) {
        for _ in 0..count {
            let ready = self.ready().into_iter();
            let Some(next) = ready
                .into_iter()
                .find(|next| !matches!(next, Ready::Work(_)))
            else {
                break;
            };
            self.go(next);
        }
    }

    fn give_up(&mut self, n: usize) {
        if let Some(qemu) = &mut self.qemu {
            let vcpus = qemu.vcpus(n);
            if let Some(plugged) = qemu.at(n).filter(|plugged| plugged.is_explained()) {
                let asked = plugged.asked.clone();
                let rows = vcpus.into_iter().map(|vcpu| (vcpu, asked.clone()));
                self.ledger.given_up.extend(rows);
            }
        }
        self.remove(n);
    }

    fn remove(&mut self, n: usize) {
        if let Some(qemu) = &mut self.qemu {
            self.guest.remove(&qemu.vcpus(n));
            let event = qemu.take_away(self.now, n);
            self.send(event);
        }
    }

    /// Lets the guest cause an event each millisecond.
    fn flood(&mut self, choice: u8) {
        let before = self.promises.exchanges + 2 * self.calls.open() as u32;
        for n in 0..FLOOD {
            let event = self.qemu.as_ref().map(|qemu| match n % 2 {
                0 => qemu.stale(0),
                _ => Event::AcpiCpuOst(qemu.ost(0, u64::from(choice), 1)),
            });
            event.into_iter().for_each(|event| self.send(event));
            self.run(8);
            self.pass(Duration::from_millis(1));
        }
        let count = self.promises.exchanges.saturating_sub(before);
        assert!(
            count <= FLOOD / 10 + 4 + LOOKS,
            "{FLOOD} events cause {count} refreshes"
        );
    }

    fn hang_up(&mut self, is_breach: bool, is_received: bool) {
        if is_received {
            self.receive();
        }
        if let Some(connection) = self.connection.as_mut().filter(|c| c.closed.is_none()) {
            connection.closed = Some(if is_breach {
                Closed::Malformed("it is not JSON".into())
            } else {
                Closed::Hangup
            });
        }
    }

    /// Restarts the service after a crash.
    fn restart(&mut self, is_sent: bool, is_kept: bool, is_received: bool) {
        if self.setup.is_registered && self.promises.ready == 0 {
            // Its registration is not saved.
            self.is_cancelled = true;
            return;
        }
        if is_sent {
            self.trouble.stalled.remove(&Part::Bus);
            self.deliver();
        }
        if is_received {
            self.receive();
        }
        let connection = self.connection.take();
        let connection = connection.filter(|c| is_kept && c.is_open && c.closed.is_none());
        self.kept = connection.map(|connection| connection.events);
        self.doubt();
        self.crash();
        let lifetime = if self.setup.is_registered {
            Lifetime::Restored
        } else {
            Lifetime::Endpoint
        };
        self.model = Model::new(facts(lifetime), self.config.clone(), self.now);
        self.perform_all();
    }

    /// Ends the service, and checks that the next instance can continue.
    fn crash(&mut self) {
        let id = self.qemu.as_ref().map(|qemu| qemu.id);
        let content = self.disk.content.as_ref();
        let content = content.filter(|state| Some(state.leader) == id);
        self.ledger.crash(content, self.disk.is_behind);
        self.promises.crash(self.now, content);
        self.guest.end_calls();
        let offline = content.iter().flat_map(|state| &state.offline);
        let saved: Vec<VcpuId> = offline.map(|cpu| cpu.vcpu).collect();
        let is_known = self.guest.left().all(|vcpu| saved.contains(&vcpu));
        assert!(
            is_known || self.disk.is_behind,
            "offline CPUs are not saved"
        );
        if !is_known {
            self.guest = Guest::default();
        }
        self.note_saved_removals();
        if self
            .disk
            .content
            .as_ref()
            .is_none_or(|state| state.present.is_empty())
        {
            self.lose_state();
        }
        self.disk.crash();
        self.jobs.clear();
        self.host = Host::default();
        self.bus = Default::default();
        self.calls.crash();
        self.leader = None;
    }

    fn exit(&mut self) {
        self.qemu = None;
        self.kept = None;
        self.guest = Guest::default();
        self.ledger.given_up.clear();
        self.hang_up(false, false);
    }

    /// Starts a QEMU process, unless one runs.
    pub(crate) fn launch(&mut self) {
        if self.qemu.is_none() {
            self.processes += 1;
            let qemu = Qemu::new(self.now, self.processes, self.setup);
            self.qemu = Some(qemu);
        }
    }
}
