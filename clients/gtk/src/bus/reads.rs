//! Owns the calls that only read: the message of each, the event of its reply, and its time limit. The caller sends the
//! messages, and passes the replies in the order of the bus. It must not send or wait.

use std::collections::HashMap;
use std::num::NonZero;
use std::time::Duration;

use tokio::time::Instant;
use zbus::message::{Flags, Type};
use zbus::{Message, OwnedObjectPath, Variant};

use super::errors;
use super::{AUTOSCALE, AUTOSCALE_PATH, MACHINE, ROOT, SERVICE};
use crate::model::dict::Dict;
use crate::model::message::{Command, Event};
use crate::model::plan::Plan;
use crate::model::scaling::Scaling;

const MANAGER: &str = "org.freedesktop.DBus.ObjectManager";

/// A service that has not answered a read after this time hangs.
const LIMIT: Duration = Duration::from_secs(5);

/// The reads without a reply.
#[derive(Default)]
pub(super) struct Reads {
    waiting: HashMap<NonZero<u32>, Read>,
    /// When vcpud has answered for the last time.
    answered: Option<Instant>,
    is_silent: bool,
}

/// A read that has been sent.
struct Read {
    command: Command,
    sent: Instant,
    is_late: bool,
}

impl Read {
    /// Returns whether vcpud, and not the autoscaler, has to answer.
    fn is_of_vcpud(&self) -> bool {
        !matches!(
            self.command,
            Command::Explain { .. } | Command::Settings { .. }
        )
    }
}

/// Returns the message of a command that only reads, or `None` if the command changes something.
pub(super) fn message(command: &Command) -> zbus::Result<Option<Message>> {
    let none: HashMap<&str, Variant<'_>> = HashMap::new();
    let call = |service, path, interface, method| {
        let call = Message::method_call(path, method).destination(service);
        call.interface(interface)
    };
    // A read alone is no reason to start a service, which an administrator may have stopped.
    let machine = |path, method| {
        let call = call(SERVICE, path, MACHINE, method);
        call.with_flags(Flags::NO_AUTO_START)
    };
    let message = match command {
        Command::Connect => call(SERVICE, ROOT, MANAGER, "GetManagedObjects").build(&()),
        Command::List(path) => machine(path, "ListVcpus").build(&()),
        Command::Tuning(path) => machine(path, "GetTuning").build(&()),
        Command::Sample(path) => machine(path, "GetStatistics").build(&none),
        Command::Plan(path, question) => machine(path, "Plan").build(&(question.count, none)),
        Command::Explain { name, .. } => {
            let call = call(AUTOSCALE, AUTOSCALE_PATH, AUTOSCALE, "Explain");
            call.with_flags(Flags::NO_AUTO_START).build(name)
        }
        Command::Settings { name, .. } => {
            call(AUTOSCALE, AUTOSCALE_PATH, AUTOSCALE, "Explain").build(name)
        }
        _ => return Ok(None),
    };
    message.map(Some)
}

impl Reads {
    /// Notes that the message of `command` with this serial number is sent `now`.
    pub(super) fn add(&mut self, serial: NonZero<u32>, command: Command, now: Instant) {
        let read = Read {
            command,
            sent: now,
            is_late: false,
        };
        self.waiting.insert(serial, read);
    }

    /// Returns the events of a message, if it is the reply to a read. Late replies count, so that the application knows
    /// when the service answers again.
    pub(super) fn answer(&mut self, message: &Message, now: Instant) -> Vec<Event> {
        // Every user can send a signal, also one that has the serial number of a call. The bus delivers a reply only from
        // the process that was called.
        if !matches!(message.message_type(), Type::MethodReturn | Type::Error) {
            return Vec::new();
        }
        let serial = message.header().reply_serial();
        let Some(read) = serial.and_then(|serial| self.waiting.remove(&serial)) else {
            return Vec::new();
        };
        let mut events = Vec::new();
        if read.is_of_vcpud() {
            self.answered = Some(now);
            if std::mem::take(&mut self.is_silent) {
                events.push(Event::Silent(false));
            }
        }
        let event = match message.message_type() {
            Type::Error => Err(message.clone().into()),
            _ => event(&read.command, message),
        };
        events.extend(event.unwrap_or_else(|error| failed(&read.command, &error)));
        events
    }

    /// Returns when the next time limit ends.
    pub(super) fn limit(&self) -> Option<Instant> {
        let open = self.waiting.values().filter(|read| !read.is_late);
        open.map(|read| read.sent + LIMIT).min()
    }

    /// Returns the events of the time limits that have ended.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        for read in self.waiting.values_mut() {
            if read.is_late || read.sent + LIMIT > now {
                continue;
            }
            read.is_late = true;
            if let Command::Explain { path, .. } | Command::Settings { path, .. } = &read.command {
                events.push(Event::Explained(path.clone(), Scaling::NoAnswer));
            } else if self.answered.is_none_or(|answered| answered < read.sent) && !self.is_silent {
                // Otherwise vcpud answers, and only this read takes long.
                self.is_silent = true;
                events.push(Event::Silent(true));
            }
        }
        events
    }
}

/// Returns the event of a reply.
fn event(command: &Command, reply: &Message) -> zbus::Result<Vec<Event>> {
    let body = reply.body();
    let event = match command {
        Command::Connect => Event::Machines(machines(body.deserialize()?)),
        Command::List(path) => Event::Listed(path.clone(), body.deserialize()?),
        Command::Tuning(path) => Event::Tuned(path.clone(), body.deserialize()?),
        Command::Sample(path) => {
            let (own, vcpus) = body.deserialize()?;
            Event::Sampled(path.clone(), own, vcpus)
        }
        Command::Plan(path, question) => {
            let plan = Plan::new(&body.deserialize()?);
            Event::Planned(path.clone(), *question, plan)
        }
        Command::Explain { path, .. } => {
            let explanation: Dict = body.deserialize()?;
            Event::Explained(path.clone(), Scaling::new(&explanation))
        }
        Command::Settings { path, .. } => {
            Event::SettingsRead(path.clone(), Scaling::new(&body.deserialize()?))
        }
        _ => return Ok(Vec::new()),
    };
    Ok(vec![event])
}

fn machines(objects: HashMap<OwnedObjectPath, HashMap<String, Dict>>) -> Vec<(String, Dict)> {
    let machine = |(path, mut interfaces): (OwnedObjectPath, HashMap<String, Dict>)| {
        Some((path.to_string(), interfaces.remove(MACHINE)?))
    };
    objects.into_iter().filter_map(machine).collect()
}

/// Returns the events of an error.
fn failed(command: &Command, error: &zbus::Error) -> Vec<Event> {
    match command {
        Command::Connect => vec![Event::Lost(errors::loss(error))],
        Command::Plan(path, question) => {
            let plan = Plan::Failed(errors::failure(error));
            vec![Event::Planned(path.clone(), *question, plan)]
        }
        // After a sample that fails, the use is not known.
        Command::Sample(path) => vec![Event::Sampled(path.clone(), Dict::new(), Vec::new())],
        Command::Explain { path, .. } => {
            let (name, text) = errors::name_and_text(error);
            let scaling = Scaling::from_error(&name, text);
            vec![Event::Explained(path.clone(), scaling)]
        }
        Command::Settings { path, name } => {
            let (error_name, text) = errors::name_and_text(error);
            match Scaling::from_error(&error_name, text) {
                Scaling::Off => vec![Event::SettingsRead(path.clone(), Scaling::Off)],
                _ => {
                    let failure = errors::failure_of_autoscaler(error);
                    vec![Event::Failed(path.clone(), name.clone(), failure)]
                }
            }
        }
        // The machine has ended, and a signal follows.
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bus::owners::Owners;
    use crate::bus::signals::{self, Signal};
    use crate::model::choice::Question;
    use crate::model::dict::dict;
    use crate::model::fleet::{Fleet, View};

    const WEB: &str = "/org/vcpud1/machine/web";
    const OWNER: &str = ":1.5";

    /// Returns a sent call for a command.
    fn sent(reads: &mut Reads, command: Command, now: Instant) -> Message {
        let call = message(&command).unwrap().unwrap();
        reads.add(call.primary_header().serial_num(), command, now);
        call
    }

    fn machines_reply(call: &Message, vcpus: u32) -> Message {
        let properties = dict([("Name", "web".into()), ("Vcpus", vcpus.into())]);
        let path = OwnedObjectPath::try_from(WEB).unwrap();
        let objects = HashMap::from([(path, HashMap::from([(MACHINE, properties)]))]);
        let reply = Message::method_return(&call.header());
        reply.build(&objects).unwrap()
    }

    fn vcpus_changed(vcpus: u32) -> Message {
        let signal = Message::signal(WEB, "org.freedesktop.DBus.Properties", "PropertiesChanged");
        let signal = signal.sender(OWNER);
        let changed = dict([("Vcpus", vcpus.into())]);
        signal
            .build(&(MACHINE, changed, Vec::<String>::new()))
            .unwrap()
    }

    /// Applies messages as the follow loop does.
    fn apply(reads: &mut Reads, messages: &[Message]) -> Fleet {
        let (mut fleet, mut owners) = (Fleet::default(), Owners::default());
        owners.change(SERVICE, OWNER);
        for message in messages {
            let mut events = reads.answer(message, Instant::now());
            if let Some(Signal::Event(event)) = signals::read(message, &mut owners) {
                events.push(event);
            }
            for event in events {
                fleet.apply(event);
            }
        }
        fleet
    }

    #[test]
    fn the_last_message_counts() {
        let mut reads = Reads::default();
        let call = sent(&mut reads, Command::Connect, Instant::now());
        let fleet = apply(&mut reads, &[vcpus_changed(1), machines_reply(&call, 2)]);
        assert_eq!(fleet.get(WEB).unwrap().present(), 2);
        let call = sent(&mut reads, Command::Connect, Instant::now());
        let fleet = apply(&mut reads, &[machines_reply(&call, 2), vcpus_changed(3)]);
        assert_eq!(fleet.get(WEB).unwrap().present(), 3);
    }

    #[test]
    fn only_a_new_connection_starts_the_service() {
        let (path, name) = (WEB.to_owned(), "web".to_owned());
        let question = Question {
            count: 3,
            version: 1,
            serial: 1,
        };
        let reads = [
            Command::List(path.clone()),
            Command::Tuning(path.clone()),
            Command::Sample(path.clone()),
            Command::Plan(path.clone(), question),
            Command::Explain { path, name },
        ];
        let starts = |command: &Command| {
            let call = message(command).unwrap().unwrap();
            !call.primary_header().flags().contains(Flags::NO_AUTO_START)
        };
        assert!(starts(&Command::Connect));
        for read in reads {
            assert!(read.is_read() && !starts(&read), "{read:?}");
        }
    }

    #[test]
    fn a_signal_is_not_a_reply() {
        let mut reads = Reads::default();
        let call = sent(&mut reads, Command::List(WEB.into()), Instant::now());
        let forged = Message::signal(WEB, MACHINE, "Reply")
            .reply_serial(Some(call.primary_header().serial_num()));
        let forged = forged.build(&Vec::<Dict>::new()).unwrap();
        assert!(reads.answer(&forged, Instant::now()).is_empty());
        assert!(reads.limit().is_some(), "the call waits for its reply");
    }

    #[test]
    fn a_read_without_a_reply_ends_with_a_late_reply() {
        let (mut reads, mut fleet) = (Reads::default(), Fleet::default());
        let start = Instant::now();
        let call = sent(&mut reads, Command::Connect, start);
        assert_eq!(reads.limit(), Some(start + LIMIT));
        assert!(reads.expire(start + Duration::from_secs(1)).is_empty());
        for event in reads.expire(start + LIMIT) {
            fleet.apply(event);
        }
        assert!(matches!(fleet.view(), View::Lost(_)));
        assert_eq!(reads.limit(), None, "one report is enough");
        for event in reads.answer(&machines_reply(&call, 2), start + 2 * LIMIT) {
            fleet.apply(event);
        }
        assert_eq!(fleet.view(), View::Machines);
    }

    #[test]
    fn a_service_that_answers_other_reads_is_not_silent() {
        let mut reads = Reads::default();
        let start = Instant::now();
        let question = Question {
            count: 3,
            version: 0,
            serial: 1,
        };
        sent(&mut reads, Command::Plan(WEB.into(), question), start);
        let call = sent(&mut reads, Command::Connect, start);
        reads.answer(&machines_reply(&call, 2), start + Duration::from_secs(4));
        assert!(reads.expire(start + LIMIT).is_empty());
    }
}
