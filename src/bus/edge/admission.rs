//! Which calls the service takes, and when.
//!
//! Pure: no socket, and the time is passed in. Calls that change something are taken at once up to
//! a limit, and polkit is asked about them. All other calls are free to everybody: a few of each user are
//! taken at a time, some more wait, as bytes, without a reply in memory. Reply bytes that a user
//! has not read yet are limited too, because a bus daemon stops reading from a service whose
//! replies nobody reads (`max_incoming_bytes` in `dbus-daemon(1)`).
//!
//! root has limits of its own, so no other user can use them up, and is trusted to read.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::time::{Duration, Instant};

use super::count::{self, Class, Count};
use super::decision::{Arrival, Reply};
use super::frame::Frame;
use super::limits::{
    BYTES_OF_GROUP, HELD_OF_SENDER, LONGEST_PAUSE, PAUSE_FACTOR, READS_OF_GROUP, READS_OF_USER,
    SENDERS, SLOW, UNREAD_OF_GROUP, UNREAD_OF_USER, UNREAD_UNASKED, WAITING_OF_GROUP,
};
use crate::ids::Uid;
use crate::names::error_name;

/// The calls of each user, and the senders.
#[derive(Debug, Default)]
pub(super) struct Admission {
    senders: HashMap<String, Sender>,
    users: BTreeMap<Uid, User>,
    /// Calls of senders whose user is not known yet.
    unknown: HashMap<String, Vec<Frame>>,
    /// Number of calls in `unknown`, and their bytes.
    held: (usize, usize),
    under_way: HashMap<(String, u32), UnderWay>,
    /// Calls that change something and are not handed over yet.
    ready: VecDeque<Frame>,
    root: Total,
    others: Total,
    /// The user that was served last.
    last: Uid,
}

#[derive(Debug)]
struct Sender {
    uid: Uid,
    under_way: usize,
    /// Reply bytes that it may not have read.
    unread: u64,
    is_asked_about: bool,
}

#[derive(Debug, Default)]
struct User {
    waiting: VecDeque<Frame>,
    /// Whether it called, or was sent something, since the bus daemon was asked about it.
    is_active: bool,
    /// When its next free call may be taken, after replies that were slow.
    paused_until: Option<Instant>,
    count: Count,
}

/// The count of a group: root, or all other users.
type Total = Count;

#[derive(Debug)]
struct UnderWay {
    uid: Uid,
    class: Class,
    no_reply: bool,
    member: String,
}

impl Admission {
    /// Takes `call`, lets it wait, or refuses it.
    pub(super) fn arrive(&mut self, call: Frame, class: Class) -> Arrival {
        let Some(sender) = self.senders.get(&call.sender) else {
            return self.hold(call);
        };
        let uid = sender.uid;
        let key = (call.sender.clone(), call.serial);
        if let Some(user) = self.users.get_mut(&uid) {
            user.is_active = true;
        }
        if self.is_deaf(uid) || self.under_way.contains_key(&key) {
            return Arrival::Dropped;
        }
        let exceeded = || {
            let text = self.exceeded(uid, class, call.bytes.len())?;
            Some((error_name::LIMIT_EXCEEDED, text))
        };
        if let Some((name, text)) = call.refusal.clone().or_else(exceeded) {
            return if call.no_reply {
                Arrival::Dropped
            } else {
                Arrival::Refused(name, text)
            };
        }
        match class {
            Class::Change => {
                self.begin(uid, &call, class);
                self.ready.push_back(call);
            }
            Class::Read => {
                let bytes = call.bytes.len();
                self.count(uid, |count| {
                    count.waiting += 1;
                    count.bytes += bytes;
                });
                self.users.entry(uid).or_default().waiting.push_back(call);
            }
        }
        Arrival::Accepted
    }

    /// Keeps a call of a sender whose user is not known.
    fn hold(&mut self, call: Frame) -> Arrival {
        let (calls, bytes) = (self.held.0 + 1, self.held.1 + call.bytes.len());
        if calls > WAITING_OF_GROUP || bytes > BYTES_OF_GROUP {
            return Arrival::Dropped;
        }
        let held = self.unknown.get(&call.sender).map_or(0, Vec::len);
        if held >= HELD_OF_SENDER {
            return Arrival::Dropped;
        }
        self.held = (calls, bytes);
        let held = self.unknown.entry(call.sender.clone()).or_default();
        held.push(call);
        match held.len() {
            1 => Arrival::UnknownSender,
            _ => Arrival::Accepted,
        }
    }

    /// Records the user of `sender`, and returns its calls, which arrive now. Without a user the
    /// sender has left the bus.
    pub(super) fn identify(&mut self, sender: &str, uid: Option<Uid>) -> Vec<Frame> {
        let held = self.unknown.remove(sender).unwrap_or_default();
        self.held.0 -= held.len();
        self.held.1 -= held.iter().map(|call| call.bytes.len()).sum::<usize>();
        let Some(uid) = uid else {
            return Vec::new();
        };
        if self.senders.len() >= SENDERS {
            let waits = |uid: Uid| {
                let user = self.users.get(&uid);
                user.is_some_and(|user| !user.waiting.is_empty())
            };
            self.senders
                .retain(|_, sender| sender.under_way > 0 || sender.unread > 0 || waits(sender.uid));
        }
        self.senders.insert(
            sender.to_owned(),
            Sender {
                uid,
                under_way: 0,
                unread: 0,
                is_asked_about: false,
            },
        );
        held
    }

    /// The user of `sender`, where it is known.
    pub(super) fn user_of(&self, sender: &str) -> Option<Uid> {
        self.senders.get(sender).map(|sender| sender.uid)
    }

    /// The next call to hand over, if one may be taken now. root comes first, then the users in
    /// turn.
    pub(super) fn next(&mut self, now: Instant) -> Option<Frame> {
        self.end_pauses(now);
        if let Some(call) = self.ready.pop_front() {
            return Some(call);
        }
        loop {
            let uid = self.next_reader()?;
            let call = self.users.get_mut(&uid)?.waiting.pop_front()?;
            let bytes = call.bytes.len();
            self.count(uid, |count| {
                count.waiting -= 1;
                count.bytes -= bytes;
            });
            // The reply to another call with its serial is the reply to both.
            let key = (call.sender.clone(), call.serial);
            if !self.under_way.contains_key(&key) {
                self.begin(uid, &call, Class::Read);
                return Some(call);
            }
        }
    }

    /// The user whose turn it is.
    fn next_reader(&mut self) -> Option<Uid> {
        let after = self
            .users
            .range((Excluded(self.last), Unbounded))
            .map(|(uid, _)| *uid);
        let before = self.users.range(..=self.last).map(|(uid, _)| *uid);
        let mut turns = std::iter::once(Uid::ROOT).chain(after).chain(before);
        let uid = turns.find(|uid| self.may_read(*uid))?;
        if !uid.is_root() {
            self.last = uid;
        }
        Some(uid)
    }

    /// Lets users whose pause is over call again.
    fn end_pauses(&mut self, now: Instant) {
        let is_over = |user: &User| user.paused_until.is_some_and(|end| end <= now);
        let over = self.users.iter().filter(|(_, user)| is_over(user));
        let over: Vec<Uid> = over.map(|(uid, _)| *uid).collect();
        for uid in over {
            if let Some(user) = self.users.get_mut(&uid) {
                user.paused_until = None;
            }
            self.forget_idle(uid);
        }
    }

    /// When the first pause of a user whose calls wait ends.
    pub(super) fn end_of_pause(&self) -> Option<Instant> {
        let users = self.users.values();
        let users = users.filter(|user| !user.waiting.is_empty());
        users.filter_map(|user| user.paused_until).min()
    }

    /// Notes that the bus daemon took `time` to read a reply to `sender`.
    pub(super) fn written(&mut self, sender: &str, time: Duration, now: Instant) {
        let uid = self
            .user_of(sender)
            .filter(|uid| !uid.is_root() && time >= SLOW);
        if let Some(uid) = uid {
            let pause = (time * PAUSE_FACTOR).min(LONGEST_PAUSE);
            self.users.entry(uid).or_default().paused_until = Some(now + pause);
        }
    }

    fn may_read(&self, uid: Uid) -> bool {
        let Some(user) = self.users.get(&uid) else {
            return false;
        };
        let group = self.group(uid);
        let limit = match uid {
            Uid::ROOT => READS_OF_GROUP,
            _ => READS_OF_USER,
        };
        !user.waiting.is_empty()
            && user.paused_until.is_none()
            && user.count.reads < limit
            && group.reads < READS_OF_GROUP
            && !self.is_deaf(uid)
    }

    /// Ends the call that the reply of `bytes` bytes to `sender` answers.
    pub(super) fn answered(&mut self, sender: &str, serial: u32, bytes: usize) -> Reply {
        let key = (sender.to_owned(), serial);
        let Some(call) = self.under_way.remove(&key) else {
            return Reply::Unknown;
        };
        if let Some(sender) = self.senders.get_mut(sender) {
            sender.under_way = sender.under_way.saturating_sub(1);
        }
        self.count(call.uid, |count| match call.class {
            Class::Change => count.changes -= 1,
            Class::Read => count.reads -= 1,
        });
        if call.no_reply {
            return Reply::Unwanted;
        }
        self.sent(sender, bytes);
        Reply::Expected {
            member: call.member,
        }
    }

    /// Counts `bytes` that are sent to `sender`.
    pub(super) fn sent(&mut self, sender: &str, bytes: usize) {
        let Some(sender) = self.senders.get_mut(sender).filter(|s| !s.uid.is_root()) else {
            return;
        };
        sender.unread += bytes as u64;
        let uid = sender.uid;
        self.count(uid, |count| count.unread += bytes as u64);
        if let Some(user) = self.users.get_mut(&uid) {
            user.is_active = true;
        }
    }

    /// Chooses the sender to ask the bus daemon about: how many bytes does it still hold for it?
    ///
    /// It is the one with most bytes, of a user that may have left much unread, and that either
    /// waits or was active since the last question.
    pub(super) fn ask_about(&mut self) -> Option<String> {
        let may_ask = |sender: &Sender| {
            let user = self.users.get(&sender.uid);
            sender.unread > 0
                && !sender.is_asked_about
                && user.is_some_and(|user| {
                    let is_waiting = user.is_active || !user.waiting.is_empty();
                    let is_much = user.count.unread >= UNREAD_UNASKED
                        || self.others.unread >= UNREAD_OF_GROUP;
                    is_much && is_waiting
                })
        };
        let candidates = self.senders.iter().filter(|(_, sender)| may_ask(sender));
        let (name, _) = candidates.max_by_key(|(_, sender)| sender.unread)?;
        let name = name.clone();
        let sender = self.senders.get_mut(&name)?;
        sender.is_asked_about = true;
        self.users.get_mut(&sender.uid)?.is_active = false;
        Some(name)
    }

    /// Records that the bus daemon holds `unread` bytes for `sender`.
    pub(super) fn told(&mut self, sender: &str, unread: u64) {
        let Some(known) = self.senders.get_mut(sender) else {
            return;
        };
        known.is_asked_about = false;
        // Messages of other services do not count here.
        let read = known.unread.saturating_sub(unread);
        known.unread -= read;
        let uid = known.uid;
        self.count(uid, |count| count.unread -= read);
    }

    /// Forgets a sender that has left the bus, which dropped all that it held for it.
    pub(super) fn gone(&mut self, sender: &str) {
        self.told(sender, 0);
        if self.senders.get(sender).is_some_and(|s| s.under_way == 0) {
            self.senders.remove(sender);
        }
    }

    /// Whether a user leaves too much unread.
    fn is_deaf(&self, uid: Uid) -> bool {
        let unread = self.users.get(&uid).map_or(0, |user| user.count.unread);
        !uid.is_root()
            && (unread >= UNREAD_OF_USER || (self.others.unread >= UNREAD_OF_GROUP && unread > 0))
    }

    /// The limit that one more call of `class` and `bytes` would exceed, in words.
    fn exceeded(&self, uid: Uid, class: Class, bytes: usize) -> Option<String> {
        let none = Count::default();
        let user = self.users.get(&uid).map_or(&none, |user| &user.count);
        count::exceeded(uid, user, self.group(uid), class, bytes)
    }

    fn group(&self, uid: Uid) -> &Total {
        match uid {
            Uid::ROOT => &self.root,
            _ => &self.others,
        }
    }

    /// Changes the counts of a user and of its group.
    fn count(&mut self, uid: Uid, change: impl Fn(&mut Count)) {
        change(&mut self.users.entry(uid).or_default().count);
        change(match uid {
            Uid::ROOT => &mut self.root,
            _ => &mut self.others,
        });
        self.forget_idle(uid);
    }

    fn begin(&mut self, uid: Uid, call: &Frame, class: Class) {
        self.count(uid, |count| match class {
            Class::Change => count.changes += 1,
            Class::Read => count.reads += 1,
        });
        if let Some(sender) = self.senders.get_mut(&call.sender) {
            sender.under_way += 1;
        }
        let under_way = UnderWay {
            uid,
            class,
            no_reply: call.no_reply,
            member: call.member.clone(),
        };
        let key = (call.sender.clone(), call.serial);
        self.under_way.insert(key, under_way);
    }

    /// Forgets a user without calls and without unread bytes.
    fn forget_idle(&mut self, uid: Uid) {
        let Some(user) = self.users.get(&uid) else {
            return;
        };
        let User { waiting, count, .. } = user;
        let has_nothing = count.changes + count.reads + count.waiting == 0 && count.unread == 0;
        if has_nothing && waiting.is_empty() && user.paused_until.is_none() {
            self.users.remove(&uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::BYTES_OF_USER;
    use super::*;
    use crate::bus::edge::frame::Kind;

    fn call(sender: &str, serial: u32) -> Frame {
        Frame {
            kind: Kind::Call,
            no_reply: false,
            serial,
            sender: sender.to_owned(),
            member: "Do".to_owned(),
            bytes: vec![0; 100],
            fds: Default::default(),
            refusal: None,
        }
    }

    fn with(senders: &[(&str, u32)]) -> Admission {
        let mut admission = Admission::default();
        for (sender, uid) in senders {
            assert!(admission.identify(sender, Some(Uid(*uid))).is_empty());
        }
        admission
    }

    fn accept(
        admission: &mut Admission,
        sender: &str,
        serials: std::ops::Range<u32>,
        class: Class,
    ) {
        for serial in serials {
            let arrival = admission.arrive(call(sender, serial), class);
            assert_eq!(arrival, Arrival::Accepted, "{sender} {serial}");
        }
    }

    fn taken(admission: &mut Admission) -> Vec<(String, u32)> {
        std::iter::from_fn(|| admission.next(Instant::now()))
            .map(|call| (call.sender, call.serial))
            .collect()
    }

    #[test]
    fn a_user_is_answered_a_few_reads_at_a_time_and_others_are_not_delayed() {
        let mut admission = with(&[(":1.1", 1000), (":1.2", 1001), (":1.3", 0)]);
        accept(&mut admission, ":1.1", 1..101, Class::Read);
        let first = taken(&mut admission);
        assert_eq!(first.len(), READS_OF_USER);
        accept(&mut admission, ":1.2", 1..2, Class::Read);
        accept(&mut admission, ":1.3", 1..2, Class::Read);
        let next = taken(&mut admission);
        assert_eq!(next, [(":1.3".to_owned(), 1), (":1.2".to_owned(), 1)]);
        let expected = Reply::Expected {
            member: "Do".to_owned(),
        };
        assert_eq!(admission.answered(":1.1", first[0].1, 10), expected);
        assert_eq!(taken(&mut admission).len(), 1);
        assert_eq!(admission.answered(":1.1", first[0].1, 10), Reply::Unknown);
    }

    #[test]
    fn many_users_leave_the_share_of_root() {
        let mut admission = with(&[(":1.0", 0)]);
        for uid in 1..20 {
            admission.identify(&format!(":1.{uid}"), Some(Uid(uid)));
            accept(&mut admission, &format!(":1.{uid}"), 1..20, Class::Read);
        }
        assert_eq!(taken(&mut admission).len(), READS_OF_GROUP);
        accept(&mut admission, ":1.0", 1..20, Class::Read);
        let of_root = taken(&mut admission);
        assert_eq!(of_root.len(), READS_OF_GROUP);
        assert!(of_root.iter().all(|(sender, _)| sender == ":1.0"));
    }

    #[test]
    fn changes_are_taken_at_once_up_to_the_limits() {
        let mut admission = with(&[(":1.1", 1000), (":1.2", 0)]);
        accept(&mut admission, ":1.1", 1..65, Class::Change);
        let refused = admission.arrive(call(":1.1", 65), Class::Change);
        let Arrival::Refused(_, text) = refused else {
            panic!("{refused:?}")
        };
        assert!(text.contains("64 calls of user 1000"), "{text}");
        accept(&mut admission, ":1.2", 1..513, Class::Change);
        assert_eq!(taken(&mut admission).len(), 64 + 512);
        admission.answered(":1.1", 3, 10);
        accept(&mut admission, ":1.1", 66..67, Class::Change);
    }

    #[test]
    fn waiting_calls_have_a_limit() {
        let mut admission = with(&[(":1.1", 1000)]);
        accept(&mut admission, ":1.1", 1..513, Class::Read);
        let refused = admission.arrive(call(":1.1", 600), Class::Read);
        assert!(matches!(refused, Arrival::Refused(..)));
        let mut long = call(":1.1", 601);
        long.bytes = vec![0; BYTES_OF_USER];
        let mut admission = with(&[(":1.1", 1000)]);
        accept(&mut admission, ":1.1", 1..2, Class::Read);
        let refused = admission.arrive(long, Class::Read);
        assert!(matches!(refused, Arrival::Refused(..)));
    }

    #[test]
    fn calls_of_a_new_connection_wait_for_its_user() {
        let mut admission = Admission::default();
        let first = admission.arrive(call(":1.1", 1), Class::Read);
        assert_eq!(first, Arrival::UnknownSender);
        let second = admission.arrive(call(":1.1", 2), Class::Read);
        assert_eq!(second, Arrival::Accepted);
        assert!(admission.next(Instant::now()).is_none());
        assert_eq!(admission.identify(":1.1", Some(Uid(7))).len(), 2);
        assert_eq!(admission.user_of(":1.1"), Some(Uid(7)));
        admission.arrive(call(":1.2", 1), Class::Read);
        assert_eq!(admission.identify(":1.2", None).len(), 0);
        assert_eq!(admission.held, (0, 0));
    }

    #[test]
    fn who_leaves_replies_unread_is_not_answered_until_some_are_read() {
        let mut admission = with(&[(":1.1", 1000), (":1.2", 1001)]);
        accept(&mut admission, ":1.1", 1..3, Class::Read);
        taken(&mut admission);
        assert_eq!(admission.ask_about(), None);
        admission.answered(":1.1", 1, UNREAD_OF_USER as usize);
        let dropped = admission.arrive(call(":1.1", 3), Class::Read);
        assert_eq!(dropped, Arrival::Dropped);
        accept(&mut admission, ":1.2", 1..2, Class::Read);
        assert_eq!(taken(&mut admission), [(":1.2".to_owned(), 1)]);
        assert_eq!(admission.ask_about().as_deref(), Some(":1.1"));
        assert_eq!(admission.ask_about(), None, "asked already");
        admission.told(":1.1", UNREAD_UNASKED);
        assert_eq!(admission.ask_about(), None, "it asked for nothing since");
        accept(&mut admission, ":1.1", 4..5, Class::Read);
        assert_eq!(admission.ask_about().as_deref(), Some(":1.1"));
        admission.told(":1.1", 0);
        assert_eq!(taken(&mut admission), [(":1.1".to_owned(), 4)]);
    }

    #[test]
    fn a_user_whose_replies_are_slow_to_pass_pauses() {
        let mut admission = with(&[(":1.1", 1000), (":1.2", 1001), (":1.3", 0)]);
        let now = Instant::now();
        accept(&mut admission, ":1.1", 1..5, Class::Read);
        let call = admission.next(now).unwrap();
        admission.answered(":1.1", call.serial, 10);
        admission.written(":1.1", SLOW / 2, now);
        let call = admission.next(now).unwrap();
        admission.answered(":1.1", call.serial, 10);
        admission.written(":1.1", SLOW, now);
        assert!(admission.next(now).is_none());
        let end = now + SLOW * PAUSE_FACTOR;
        assert_eq!(admission.end_of_pause(), Some(end));
        accept(&mut admission, ":1.2", 1..2, Class::Read);
        assert_eq!(admission.next(now).unwrap().sender, ":1.2");
        assert_eq!(admission.next(end).unwrap().sender, ":1.1");
        admission.written(":1.3", SLOW * 100, now);
        accept(&mut admission, ":1.3", 1..2, Class::Read);
        assert_eq!(admission.next(now).unwrap().sender, ":1.3");
    }

    #[test]
    fn a_serial_that_is_used_twice_takes_one_place() {
        let mut admission = with(&[(":1.1", 1000)]);
        for _ in 0..100 {
            admission.arrive(call(":1.1", 1), Class::Read);
            admission.arrive(call(":1.1", 1), Class::Change);
        }
        while let Some(call) = admission.next(Instant::now()) {
            admission.answered(&call.sender, call.serial, 0);
        }
        assert!(admission.users.is_empty() && admission.under_way.is_empty());
    }

    #[test]
    fn a_refused_call_does_not_end_another_with_its_serial() {
        let mut admission = with(&[(":1.1", 1000)]);
        accept(&mut admission, ":1.1", 1..2, Class::Change);
        let mut refused = call(":1.1", 1);
        refused.refusal = Some((error_name::LIMIT_EXCEEDED, "too long".to_owned()));
        let arrival = admission.arrive(refused, Class::Read);
        assert_eq!(arrival, Arrival::Dropped);
        assert_eq!(admission.users[&Uid(1000)].count.changes, 1);
        let mut silent = call(":1.1", 2);
        silent.refusal = Some((error_name::LIMIT_EXCEEDED, "too long".to_owned()));
        silent.no_reply = true;
        assert_eq!(admission.arrive(silent, Class::Read), Arrival::Dropped);
    }

    #[test]
    fn a_sender_that_left_has_nothing_unread() {
        let mut admission = with(&[(":1.1", 1000)]);
        admission.sent(":1.1", UNREAD_OF_USER as usize);
        assert_eq!(admission.ask_about().as_deref(), Some(":1.1"));
        admission.gone(":1.1");
        assert!(admission.users.is_empty() && admission.senders.is_empty());
    }

    #[test]
    fn many_users_cannot_leave_more_unread_than_all_may() {
        let mut admission = Admission::default();
        let share = UNREAD_UNASKED as usize - 1;
        let users = UNREAD_OF_GROUP as usize / share + 1;
        for uid in 1..=users as u32 {
            admission.identify(&format!(":1.{uid}"), Some(Uid(uid)));
            admission.sent(&format!(":1.{uid}"), share);
        }
        let dropped = admission.arrive(call(":1.3", 1), Class::Read);
        assert_eq!(dropped, Arrival::Dropped);
        assert!(admission.ask_about().is_some());
        admission.identify(":2.1", Some(Uid(90_000)));
        accept(&mut admission, ":2.1", 1..2, Class::Read);
        assert!(admission.next(Instant::now()).is_some());
    }

    #[test]
    fn nothing_is_left_of_calls_that_ended() {
        let mut admission = with(&[(":1.1", 1000)]);
        let mut silent = call(":1.1", 1);
        silent.no_reply = true;
        admission.arrive(silent, Class::Read);
        accept(&mut admission, ":1.1", 2..3, Class::Change);
        assert_eq!(taken(&mut admission).len(), 2);
        assert_eq!(admission.answered(":1.1", 1, 10), Reply::Unwanted);
        admission.answered(":1.1", 2, 0);
        assert!(admission.users.is_empty() && admission.under_way.is_empty());
    }
}
