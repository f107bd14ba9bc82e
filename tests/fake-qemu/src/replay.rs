//! Replays a recorded conversation with a real QEMU.
//!
//! `tests/fixtures/conversations` contains the recordings: a line with the machine at the start, then a line
//! for each command that changed something, each reply and each event, in their order. Times and queries are
//! left out. The results of queries are in `came`, `gone` and `status`, at the moment of the change, and in
//! `listed` and `is`, at the moment of the query.
//!
//! The service sends its own queries, and gets the inventory of the moment. Its `device_add`s and
//! `device_del`s take the place of the recorded ones. The recorded events about a CPU then have the id that
//! the service chose. All other commands of the recording are those of another client.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Map, Value};

use super::model::Model;
use super::tape::{Command, Next, Sent, Tape};
use super::{Peer, lock};

/// A peer that repeats the behaviour of a real QEMU.
pub struct Replay {
    /// The peer that speaks with the service.
    pub peer: Peer,
    tape: Arc<Mutex<Tape>>,
}

impl Replay {
    /// Listens at `socket` and plays the recording `name`.
    pub fn start(socket: &Path, name: &str) -> Self {
        let tape = Arc::new(Mutex::new(Tape::read(name)));
        let peer = Peer::start(socket, Model::x86(1, 1));
        let player = tape.clone();
        peer.script(move |_, call| player.lock().expect("no test failed").answer(call));
        Self { peer, tape }
    }

    /// Returns the next part of the recording.
    pub fn next(&self) -> Next {
        self.tape().next()
    }

    /// Returns the QOM paths of the CPUs that are present.
    pub fn paths(&self) -> Vec<String> {
        let tape = self.tape();
        tape.plugged.iter().map(|cpu| cpu.path.clone()).collect()
    }

    /// Returns the run state, as QEMU names it.
    pub fn status(&self) -> String {
        self.tape().status.clone()
    }

    /// Returns the run state at the start.
    pub fn first_status(&self) -> String {
        let tape = self.tape();
        tape.head["status"].as_str().expect("a word").to_owned()
    }

    /// Returns the properties of the slot that the recorded `device_add` plugs.
    pub fn props(&self, command: &Command) -> Map<String, Value> {
        let tape = self.tape();
        let slot = tape.slot_of(command);
        let props = tape.slots[slot].0["props"].as_object();
        props.expect("QEMU writes objects").clone()
    }

    /// Executes the next command as another client, and returns the events.
    pub fn by_another_client(&self) -> Vec<Sent> {
        let (messages, sent) = self.tape().by_another_client();
        for message in messages {
            self.peer.send(&message);
        }
        sent
    }

    /// Sends the next event.
    pub fn send_event(&self) -> Sent {
        let mut tape = self.tape();
        let step = tape.steps.pop_front().expect("an event is next");
        let (message, sent) = tape.play_event(&step);
        // The state changes before the event.
        self.peer.send(&message);
        tape.check();
        sent
    }

    /// Closes the connection, and makes the changes that the recorded client missed. Returns the paths of
    /// the CPUs that were removed.
    pub fn detach(&self) -> Vec<String> {
        self.peer.hang_up();
        let mut tape = self.tape();
        let step = tape.steps.pop_front().expect("a pause is next");
        let gone = tape.take_away(&step);
        tape.check();
        gone
    }

    fn tape(&self) -> MutexGuard<'_, Tape> {
        lock(&self.tape)
    }
}
