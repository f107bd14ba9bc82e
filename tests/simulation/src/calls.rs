//! The callers: each is answered exactly once, and in time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use vcpud::inventory::Target;
use vcpud::machine::Wait;
use vcpud::machine::model::request::{Command, OfflineCpu, RequestId};

/// A caller that limits its time gives QEMU at least this time.
const QEMU_TIME: Duration = Duration::from_secs(1);

/// A call.
pub(crate) struct Call {
    /// When it has to be answered.
    bound: Option<Instant>,
    /// Whether it may add vCPUs, which takes as long as QEMU does once it has begun.
    may_add: bool,
    /// The number of events before it.
    pub since: u64,
    /// The guest CPU that it is about to take offline.
    pub offline: Option<OfflineCpu>,
    /// The thread of its vCPU.
    pub thread: Option<i64>,
}

/// All calls.
#[derive(Default)]
pub(crate) struct Calls {
    last: u64,
    open: BTreeMap<RequestId, Call>,
    answered: BTreeMap<RequestId, Call>,
}

impl Calls {
    /// Begins a call with `command`, after `since` events.
    pub(crate) fn begin(&mut self, now: Instant, command: &Command, since: u64) -> RequestId {
        self.last += 1;
        let (limit, may_add, offline) = match command {
            Command::SetVcpus(request) => {
                let limit = match request.wait {
                    Wait::UpTo(limit) => limit,
                    Wait::No => None,
                };
                let may_add = !matches!(request.target, Target::Absent(_));
                (limit, may_add, None)
            }
            Command::GuestOffline(cpus) => (None, true, cpus.first().copied()),
            _ => (None, true, None),
        };
        let call = Call {
            bound: limit.map(|limit| now + limit.max(QEMU_TIME)),
            may_add,
            since,
            offline,
            thread: None,
        };
        self.open.insert(RequestId(self.last), call);
        RequestId(self.last)
    }

    /// Notes the thread of the vCPU whose CPU the last call is about to take offline.
    pub(crate) fn note_thread(&mut self, thread: i64) {
        if let Some(call) = self.open.get_mut(&RequestId(self.last)) {
            call.thread = Some(thread);
        }
    }

    /// Notes that the model answered `id`.
    pub(crate) fn answer(&mut self, id: RequestId) {
        let call = self.open.remove(&id);
        let call = call.unwrap_or_else(|| panic!("{id:?} is answered twice"));
        self.answered.insert(id, call);
    }

    /// Takes the call whose answer arrives.
    pub(crate) fn arrive(&mut self, id: RequestId) -> Call {
        self.answered.remove(&id).expect("it was answered")
    }

    /// Checks that no call waits for too long. One that adds vCPUs may, as QEMU has its commands.
    pub(crate) fn check(&self, now: Instant) {
        let is_late = |call: &&Call| call.bound.is_some_and(|bound| bound <= now);
        let late: Vec<&Call> = self.open.values().filter(is_late).collect();
        let excused = late.iter().filter(|call| call.may_add).count().min(1);
        assert!(
            late.len() <= excused,
            "{} calls wait for too long",
            late.len()
        );
    }

    pub(crate) fn open(&self) -> usize {
        self.open.len()
    }

    /// Drops all calls, as a crash does.
    pub(crate) fn crash(&mut self) {
        self.open.clear();
        self.answered.clear();
    }
}
