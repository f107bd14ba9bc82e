//! The world of a story: the model, what it acts on, and the clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use vcpud::config::Limits;
use vcpud::machine::model::effect::{Batch, Effect};
use vcpud::machine::model::input::Input;
use vcpud::machine::model::request::Command;
use vcpud::machine::model::saved_state::AskedRemoval;
use vcpud::machine::model::{Facts, Model};
use vcpud::machine::{Lifetime, MachineConfig, PlacementConfig, Snapshot};
use vcpud::process::ProcessId;
use vcpud::qmp::Event;

use crate::bus::{Bus, Message};
use crate::calls::Calls;
use crate::disk::Disk;
use crate::guest::Guest;
use crate::host::{Host, Placing, Trouble};
use crate::jobs::{Connection, Job, Stage};
use crate::ledger::Ledger;
use crate::promises::{Promises, slot_of};
use crate::qemu::Qemu;
use crate::step::{Part, Setup};

/// The world.
pub(crate) struct World {
    pub now: Instant,
    pub setup: Setup,
    pub config: MachineConfig,
    pub model: Model,
    pub qemu: Option<Qemu>,
    /// The number of QEMU processes so far.
    pub processes: u32,
    pub is_listening: bool,
    pub connection: Option<Connection>,
    /// The events of a connection that outlives the service.
    pub kept: Option<VecDeque<Event>>,
    pub jobs: Vec<Job>,
    /// The process whose exit the service notices.
    pub leader: Option<ProcessId>,
    pub disk: Disk,
    pub host: Host,
    pub trouble: Trouble,
    pub bus: Bus,
    pub guest: Guest,
    pub calls: Calls,
    pub ledger: Ledger,
    pub promises: Promises,
    /// Whether the service restarted before a registration was complete.
    pub is_cancelled: bool,
}

impl World {
    pub(crate) fn new(setup: Setup) -> Self {
        let now = Instant::now();
        let config = MachineConfig {
            limits: Limits::default(),
            placement: PlacementConfig::default(),
        };
        let lifetime = if setup.is_registered {
            Lifetime::Registered
        } else {
            Lifetime::Endpoint
        };
        let mut world = Self {
            now,
            setup,
            model: Model::new(facts(lifetime), config.clone(), now),
            config,
            qemu: Some(Qemu::new(now, 1, setup)),
            processes: 1,
            is_listening: true,
            connection: None,
            kept: None,
            jobs: Vec::new(),
            leader: None,
            disk: Disk::default(),
            host: Host::default(),
            trouble: Trouble::default(),
            bus: Bus::default(),
            guest: Guest::default(),
            calls: Calls::default(),
            ledger: Ledger::default(),
            promises: Promises::new(now),
            is_cancelled: false,
        };
        world.perform_all();
        world
    }

    /// Returns whether nothing can happen any more.
    pub(crate) fn is_over(&self) -> bool {
        self.model.is_gone() || self.is_cancelled
    }

    /// Returns whether the process exited that the service knows.
    pub(crate) fn has_exited(&self) -> bool {
        let qemu = self.qemu.as_ref().map(|qemu| qemu.id);
        self.leader.is_some() && self.leader != qemu
    }

    /// Hands `inputs` to the model as the task does, and performs the effects.
    pub(crate) fn inputs(&mut self, inputs: Vec<Input>) {
        for input in inputs {
            self.input(input);
        }
        self.perform_all();
    }

    fn input(&mut self, input: Input) {
        let ends_connection = matches!(input, Input::Disconnected(_) | Input::ConnectFailed(_));
        let mut closed = None;
        if matches!(input, Input::Exchanged(_)) || ends_connection {
            // Events that came before explain it.
            let connection = self.connection.as_mut().filter(|c| c.is_open);
            if let Some(connection) = connection {
                closed.clone_from(&connection.closed);
                for event in std::mem::take(&mut connection.events) {
                    self.model.handle(self.now, Input::Event(event));
                }
            }
        }
        let input = if ends_connection && self.has_exited() {
            Input::ProcessExited
        } else {
            input
        };
        self.model.handle(self.now, input);
        if let Some(closed) = closed.filter(|_| !ends_connection) {
            self.model.handle(self.now, Input::Disconnected(closed));
        }
    }

    /// Sends `command` to the model, if it takes one.
    pub(crate) fn command(&mut self, command: Command) {
        if !self.model.is_busy() {
            let id = self.calls.begin(self.now, &command, self.ledger.count);
            self.inputs(vec![Input::Command(id, command)]);
        }
    }

    /// Lets `time` pass.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(deadline) = self.model.next_deadline(self.now)
            && deadline <= end
        {
            self.tick(deadline);
        }
        self.now = end;
    }

    /// Lets the time `deadline` come.
    pub(crate) fn tick(&mut self, deadline: Instant) {
        self.now = self.now.max(deadline);
        self.promises.tick(self.now);
        self.inputs(vec![Input::Tick]);
        if self
            .model
            .next_deadline(self.now)
            .is_none_or(|next| next > self.now)
        {
            self.calls.check(self.now);
        }
    }

    /// Performs all effects of the model.
    pub(crate) fn perform_all(&mut self) {
        while let Some(effect) = self.model.next_effect() {
            self.perform(effect);
        }
        self.deliver();
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Connect => self.jobs.push(Job::Connect),
            Effect::Load => {
                self.adopt();
                self.jobs.push(Job::Load);
            }
            Effect::Open { with_ospm, .. } => {
                self.adopt();
                let opened = None;
                self.jobs.push(Job::Open { with_ospm, opened });
            }
            Effect::KeepConnection | Effect::Log(_) | Effect::End => {}
            Effect::Close => self.close(),
            Effect::FindUnit(_) => self.host.is_searching = true,
            Effect::AwaitUnits => self.host.is_awaiting = true,
            Effect::Exchange(batch) => self.exchange(batch),
            Effect::Save(id, state) => {
                let snapshot = self.model.snapshot();
                self.promises.save(self.now, &state, snapshot);
                self.note_requests(&state.removals);
                self.disk.save(id, *state);
            }
            Effect::Prepare(_) => self.host.placing.push_back(Placing::Prepare),
            Effect::Place(_, threads, _) => self.host.placing.push_back(Placing::Place(threads)),
            Effect::CheckTuning(..) => self.host.placing.push_back(Placing::Check),
            Effect::ChangeTuning(switch) => {
                self.host.placing.push_back(Placing::Change(switch.threads));
            }
            Effect::RestoreGuest(cpus) => {
                self.promises.restore_guest(&cpus, self.model.snapshot());
                let is_online = false;
                self.jobs.push(Job::Restore { cpus, is_online });
            }
            Effect::Publish(snapshot) => {
                self.check_started(&snapshot);
                self.bus.queue.push_back(Message::Published(snapshot));
            }
            Effect::Emit(event) => {
                self.ledger.check_cause(&event);
                self.bus.queue.push_back(Message::Event(event));
            }
            Effect::Flush(flush) => self.bus.queue.push_back(Message::Flush(flush)),
            Effect::Reply(id, answer) => {
                self.calls.answer(id);
                self.bus.queue.push_back(Message::Reply(id, answer));
            }
            Effect::Ready(_) => self.promises.report_ready(),
            Effect::Forget => self.forget(),
        }
    }

    /// Checks that every vCPU that is shown as started was started by the guest.
    fn check_started(&self, snapshot: &Snapshot) {
        let Some(qemu) = self
            .qemu
            .as_ref()
            .filter(|q| Some(q.id) == snapshot.process)
        else {
            return;
        };
        for vcpu in snapshot.inventory.vcpus() {
            let thread = vcpu.reported.map(|thread| i64::from(thread.id.get()));
            let is_started = thread.and_then(|thread| qemu.is_started(thread));
            let is_shown = snapshot.is_started(&vcpu) == Some(true);
            assert!(
                !is_shown || is_started != Some(false),
                "vCPU {} is shown as started",
                vcpu.id
            );
        }
    }

    /// Notes the users of further requests for pending removals. The last one counts, even if QEMU does not receive
    /// its request, or the guest gave the vCPU up before. A removal without a known user does not get one from
    /// such a request.
    fn note_requests(&mut self, rows: &[AskedRemoval]) {
        for row in rows.iter().filter(|row| !row.agreed) {
            for vcpu in &row.vcpus {
                let asked = self.ledger.given_up.get_mut(vcpu);
                asked.map(|asked| asked.insert(row.uid));
            }
        }
        let Some(qemu) = &mut self.qemu else {
            return;
        };
        for row in rows.iter().filter(|row| !row.agreed) {
            let n = slot_of(row).map(|slot| qemu.index(slot));
            let plugged = n.and_then(|n| qemu.at(n));
            let plugged = plugged.filter(|plugged| plugged.is_held && !plugged.asked.is_empty());
            plugged.into_iter().for_each(|plugged| {
                plugged.asked.insert(row.uid);
            });
        }
    }

    fn adopt(&mut self) {
        let id = self.qemu.as_ref().map(|qemu| qemu.id);
        self.leader = id.or(self.leader);
    }

    fn exchange(&mut self, batch: Batch) {
        if let Batch::Refresh(vcpus) | Batch::Look(_, vcpus) = &batch {
            self.promises.looks += u32::from(!vcpus.is_empty());
        }
        self.promises.exchange(&batch, self.disk.content.as_ref());
        let is_exchange = |job: &Job| matches!(job, Job::Exchange { .. });
        assert!(
            !self.jobs.iter().any(is_exchange),
            "two exchanges at a time"
        );
        let connection = self.connection.iter();
        let events = connection.flat_map(|connection| &connection.events);
        let is_report = |event: &Event| matches!(event, Event::AcpiCpuOst(_));
        let is_seen = !events.into_iter().any(is_report);
        for (_, plugged) in self.qemu.iter_mut().flat_map(Qemu::plugged_mut) {
            plugged.is_unseen &= !is_seen;
        }
        let rows = self.disk.content.iter().flat_map(|state| &state.removals);
        let rows = rows.filter(|row| !row.agreed);
        let uids = rows
            .filter_map(|row| Some((slot_of(row)?, row.uid)))
            .collect();
        let stage = Stage::Sent;
        self.jobs.push(Job::Exchange { batch, uids, stage });
    }

    /// Drops the connection, and the events that the service has not read.
    pub(crate) fn close(&mut self) {
        let connection = self.connection.take();
        if connection.is_some_and(|connection| !connection.events.is_empty()) {
            self.doubt();
        }
        self.jobs.clear();
    }

    /// Notes that the service may have missed a refusal that followed another one.
    pub(crate) fn doubt(&mut self) {
        let plugged = self.qemu.iter_mut().flat_map(Qemu::plugged_mut);
        for (_, plugged) in plugged {
            plugged.is_doubtful |= plugged.is_refused_again;
        }
    }

    fn forget(&mut self) {
        self.host = Host::default();
        self.disk.remove();
        self.leader = None;
    }

    /// Lets QEMU send `event`, which is lost without a connection.
    pub(crate) fn send(&mut self, event: Event) {
        let connection = self.connection.as_mut();
        let connection = connection.filter(|c| c.is_negotiated && c.closed.is_none());
        let events = connection.map(|connection| &mut connection.events);
        match events.or(self.kept.as_mut()) {
            Some(events) => events.push_back(event),
            None => self.doubt(),
        }
    }

    /// Lets the bus take the messages.
    pub(crate) fn deliver(&mut self) {
        while !self.trouble.is_stalled(Part::Bus)
            && let Some(message) = self.bus.queue.pop_front()
        {
            match message {
                Message::Event(event) => self.ledger.take(&event),
                Message::Published(snapshot) => self.ledger.publish(&snapshot),
                Message::Flush(flush) => self.bus.flushed.push_back(flush),
                Message::Reply(id, answer) => {
                    let call = self.calls.arrive(id);
                    self.ledger.check_answer(&answer, call.since);
                    if let Some(cpu) = call.offline.filter(|_| answer.is_ok()) {
                        let qemu = self.qemu.as_ref();
                        let thread = qemu.and_then(|qemu| qemu.thread(cpu.vcpu));
                        let is_same = thread.is_some() && thread == call.thread;
                        self.guest.take_offline(cpu, is_same);
                    }
                }
            }
        }
    }

    /// Notes that the service lost what it had saved.
    pub(crate) fn lose_state(&mut self) {
        self.ledger.lose();
        self.guest = Guest::default();
        for (_, plugged) in self.qemu.iter_mut().flat_map(Qemu::plugged_mut) {
            plugged.is_known = false;
            plugged.asked.clear();
        }
    }
}

/// Returns what does not change about a machine.
pub(crate) fn facts(lifetime: Lifetime) -> Facts {
    Facts {
        lifetime,
        is_reconnectable: true,
        uuid: None,
    }
}
