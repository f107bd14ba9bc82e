//! The jobs that the effects start, and what ends them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use vcpud::ids::{SlotId, Uid};
use vcpud::machine::ConnectError;
use vcpud::machine::model::effect::Batch;
use vcpud::machine::model::input::{Exchanged, Input, Opened, SaveError};
use vcpud::machine::model::saved_state::AskedRemoval;
use vcpud::process::SocketError;
use vcpud::qmp::{AcpiOst, Closed, CommandError, Event, Identity, Version};

use crate::promises::slot_of;
use crate::qemu::{Qemu, refusal};
use crate::step::{Fault, Part};
use crate::world::World;

/// A connection to QEMU.
#[derive(Default)]
pub(crate) struct Connection {
    /// Whether QEMU sends events.
    pub is_negotiated: bool,
    /// Whether the service has QEMU's first answer.
    pub is_open: bool,
    pub events: VecDeque<Event>,
    /// Why it ended, after the events.
    pub closed: Option<Closed>,
}

/// A job of the connection.
pub(crate) enum Job {
    Connect,
    Load,
    Open {
        with_ospm: bool,
        opened: Option<Box<Opened>>,
    },
    Exchange {
        batch: Batch,
        uids: BTreeMap<SlotId, Uid>,
        stage: Stage,
    },
    Restore {
        cpus: Vec<u32>,
        is_online: bool,
    },
}

/// How far QEMU is with a batch.
pub(crate) enum Stage {
    Sent,
    Executed(Vec<(SlotId, CommandError)>, Vec<AcpiOst>),
    Answered(Box<Exchanged>),
}

/// Something that can happen now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ready {
    Exit,
    Event,
    Closed,
    Work(usize),
    Finish(usize),
    Save,
    Place,
    Search,
    Appear,
    Flushed,
}

impl World {
    /// Returns what can happen now.
    pub(crate) fn ready(&self) -> Vec<Ready> {
        let mut ready = Vec::new();
        let mut add = |condition, what| {
            if condition {
                ready.push(what);
            }
        };
        add(self.has_exited(), Ready::Exit);
        let connection = self.connection.as_ref().filter(|c| c.is_open);
        if let Some(connection) = connection {
            add(!connection.events.is_empty(), Ready::Event);
            let is_closed = connection.events.is_empty() && connection.closed.is_some();
            add(is_closed, Ready::Closed);
        }
        let is_stalled = |part| self.trouble.is_stalled(part);
        for n in 0..self.jobs.len() {
            add(!is_stalled(Part::Qemu), Ready::Finish(n));
        }
        for n in 0..self.jobs.len() {
            add(!is_stalled(Part::Qemu), Ready::Work(n));
        }
        add(
            !is_stalled(Part::Disk) && self.disk.is_writing(),
            Ready::Save,
        );
        let is_placing = !self.host.placing.is_empty();
        add(!is_stalled(Part::Placer) && is_placing, Ready::Place);
        add(
            !is_stalled(Part::Units) && self.host.is_searching,
            Ready::Search,
        );
        add(
            !is_stalled(Part::Units) && self.host.is_awaiting,
            Ready::Appear,
        );
        add(!self.bus.flushed.is_empty(), Ready::Flushed);
        ready
    }

    /// Lets `ready` happen.
    pub(crate) fn go(&mut self, ready: Ready) {
        let inputs = match ready {
            Ready::Exit => vec![Input::ProcessExited],
            Ready::Event => {
                let events = self.connection.as_mut().map(|c| &mut c.events);
                let event = events.and_then(VecDeque::pop_front);
                event.map(Input::Event).into_iter().collect()
            }
            Ready::Closed => {
                let closed = self.connection.as_ref().and_then(|c| c.closed.clone());
                closed.map(Input::Disconnected).into_iter().collect()
            }
            Ready::Work(n) => {
                self.work(n);
                Vec::new()
            }
            Ready::Finish(n) => self.finish(n),
            Ready::Save => {
                let result = if self.trouble.takes(Fault::Save) {
                    Err(SaveError::Io("the disk is full".into()))
                } else if self.trouble.takes(Fault::TooLarge) {
                    Err(SaveError::TooLarge)
                } else {
                    Ok(())
                };
                self.disk.end(result)
            }
            Ready::Place => {
                let input = self.host.end_placing(&mut self.trouble);
                input.into_iter().collect()
            }
            Ready::Search => {
                let has_unit = self.setup.has_unit;
                vec![self.host.end_search(has_unit, &mut self.trouble)]
            }
            Ready::Appear => {
                self.host.is_awaiting = false;
                vec![Input::UnitsAppeared]
            }
            Ready::Flushed => {
                let flush = self.bus.flushed.pop_front();
                flush.map(Input::Flushed).into_iter().collect()
            }
        };
        self.inputs(inputs);
    }

    fn is_closed(&self) -> bool {
        self.connection.as_ref().is_none_or(|c| c.closed.is_some())
    }

    /// Lets QEMU do the next part of the job `n`.
    pub(crate) fn work(&mut self, n: usize) {
        if self.is_closed() {
            return;
        }
        let (Some(qemu), Some(connection)) = (&mut self.qemu, &mut self.connection) else {
            return;
        };
        match &mut self.jobs[n] {
            Job::Restore { cpus, is_online } if !self.trouble.faults.contains(&Fault::Restore) => {
                self.guest.bring_online(cpus);
                *is_online = true;
            }
            Job::Open { with_ospm, opened } if opened.is_none() => {
                connection.is_negotiated = true;
                let ospm = if *with_ospm { qemu.ospm() } else { Vec::new() };
                *opened = Some(Box::new(Opened {
                    identity: identity(),
                    state: qemu.state(),
                    ospm,
                    created: 0,
                }));
            }
            Job::Exchange { batch, uids, stage } => {
                let next = match std::mem::replace(stage, Stage::Sent) {
                    Stage::Sent => {
                        let ospm = match batch {
                            Batch::Remove(..) => qemu.ospm(),
                            _ => Vec::new(),
                        };
                        Stage::Executed(execute(qemu, batch, uids, &mut self.trouble), ospm)
                    }
                    Stage::Executed(refused, ospm) => {
                        let mut state = qemu.state();
                        if let Batch::Refresh(vcpus) | Batch::Look(_, vcpus) = batch {
                            state.readings = qemu.readings(self.now, vcpus);
                        }
                        Stage::Answered(Box::new(Exchanged {
                            refused,
                            ospm,
                            state,
                        }))
                    }
                    answered => answered,
                };
                *stage = next;
            }
            _ => {}
        }
    }

    /// Lets QEMU receive the commands that it owes replies for.
    pub(crate) fn receive(&mut self) {
        for n in 0..self.jobs.len() {
            if let Job::Exchange {
                stage: Stage::Sent, ..
            } = self.jobs[n]
            {
                self.work(n);
            }
        }
    }

    /// Ends the job `n`. Returns the inputs.
    fn finish(&mut self, n: usize) -> Vec<Input> {
        while !self.is_closed() && !self.is_answered(n) {
            self.work(n);
        }
        let closed = self.connection.as_ref().and_then(|c| c.closed.clone());
        match self.jobs.remove(n) {
            Job::Connect => vec![self.connect()],
            Job::Load => vec![self.load()],
            Job::Restore { is_online, .. } => {
                if is_online {
                    return vec![Input::GuestRestored(Ok(()))];
                }
                self.trouble.takes(Fault::Restore);
                vec![Input::GuestRestored(
                    Err("the agent does not answer".into()),
                )]
            }
            Job::Open { opened, .. } => {
                let silence = Closed::Timeout {
                    command: "query-version",
                    after: Duration::from_secs(10),
                };
                let fault = self.trouble.takes(Fault::Open).then_some(silence);
                let Some(connection) = &mut self.connection else {
                    return Vec::new();
                };
                connection.is_open = true;
                match (fault.or(closed), opened) {
                    (None, Some(opened)) => vec![Input::Opened(opened)],
                    (closed, _) => {
                        let closed = closed.unwrap_or(Closed::Hangup);
                        vec![Input::ConnectFailed(closed.into())]
                    }
                }
            }
            Job::Exchange { batch, stage, .. } => match (closed, stage) {
                (None, Stage::Answered(exchanged)) => {
                    self.note_accepted(&batch, &exchanged.refused);
                    vec![Input::Exchanged(exchanged)]
                }
                (closed, _) => vec![Input::Disconnected(closed.unwrap_or(Closed::Hangup))],
            },
        }
    }

    fn is_answered(&self, n: usize) -> bool {
        match &self.jobs[n] {
            Job::Open { opened, .. } => opened.is_some(),
            Job::Exchange { stage, .. } => matches!(stage, Stage::Answered(_)),
            Job::Restore { is_online, .. } => {
                *is_online || self.trouble.faults.contains(&Fault::Restore)
            }
            Job::Connect | Job::Load => true,
        }
    }

    /// Notes that the service knows which removals QEMU accepted.
    fn note_accepted(&mut self, batch: &Batch, refused: &[(SlotId, CommandError)]) {
        let (Some(qemu), Batch::Remove(_, slots)) = (&mut self.qemu, batch) else {
            return;
        };
        for (slot, _) in slots {
            let n = qemu.index(*slot);
            let is_accepted = !refused.iter().any(|(of, _)| of == slot);
            if !is_accepted {
                self.promises.refuse(*slot);
            }
            if let Some(plugged) = qemu.at(n).filter(|_| is_accepted) {
                plugged.is_known = true;
            }
        }
    }

    fn connect(&mut self) -> Input {
        let refused = self.trouble.takes(Fault::Connect) || !self.is_listening;
        let Some(qemu) = self.qemu.as_ref().filter(|_| !refused) else {
            self.kept = None;
            return Input::ConnectFailed(ConnectError::Connect(SocketError::Refused));
        };
        let id = qemu.id;
        let kept = self.kept.take();
        self.connection = Some(Connection {
            is_negotiated: kept.is_some(),
            events: kept.unwrap_or_default(),
            ..Connection::default()
        });
        Input::Reached(id)
    }

    fn load(&mut self) -> Input {
        let content = self.disk.content.clone();
        if content.is_some() && self.trouble.takes(Fault::Load) {
            self.lose_state();
            self.disk.is_behind = true;
            return Input::Loaded(Err("it is damaged".into()));
        }
        Input::Loaded(Ok(content.map(Box::new)))
    }

    /// Notes which removals the service cannot know after a restart: its state file lacks them, or also has a
    /// later request without QEMU's reply, so that the last refusal may be one of this request.
    pub(crate) fn note_saved_removals(&mut self) {
        let rows: Vec<&AskedRemoval> = self.disk.content.iter().flat_map(|s| &s.removals).collect();
        let Some(qemu) = &mut self.qemu else {
            return;
        };
        let saved = |agreed| -> BTreeSet<usize> {
            let rows = rows.iter().filter(|row| row.agreed == agreed);
            let slots = rows.filter_map(|row| slot_of(row));
            slots.map(|slot| qemu.index(slot)).collect()
        };
        let (agreed, unanswered) = (saved(true), saved(false));
        for (n, plugged) in qemu.plugged_mut() {
            let is_unclear = plugged.is_refused && unanswered.contains(&n);
            plugged.is_known &= agreed.contains(&n) && !is_unclear;
        }
    }
}

/// Executes `batch`. Returns QEMU's refusals.
fn execute(
    qemu: &mut Qemu,
    batch: &Batch,
    uids: &BTreeMap<SlotId, Uid>,
    trouble: &mut crate::host::Trouble,
) -> Vec<(SlotId, CommandError)> {
    let mut refused = Vec::new();
    match batch {
        Batch::Refresh(_) | Batch::Look(..) => {}
        Batch::Add(_, slots) => {
            for slot in slots {
                let result = if trouble.takes(Fault::Add) {
                    Err(refusal("CPU hotplug is not allowed while migrating"))
                } else {
                    qemu.device_add(slot)
                };
                refused.extend(result.err().map(|error| (slot.id, error)));
            }
        }
        Batch::Remove(_, slots) => {
            for (slot, path) in slots {
                let uid = uids.get(slot).copied().unwrap_or_default();
                let result = if trouble.takes(Fault::Remove) {
                    Err(refusal("unplug request for not supported device type"))
                } else {
                    qemu.device_del(path.as_str(), uid)
                };
                refused.extend(result.err().map(|error| (*slot, error)));
            }
        }
    }
    refused
}

fn identity() -> Identity {
    Identity {
        version: Version {
            major: 10,
            minor: 0,
            micro: 2,
        },
        ..Identity::default()
    }
}
