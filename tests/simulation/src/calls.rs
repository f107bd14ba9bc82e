//! The callers: each is answered exactly once, and in time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use vcpud::machine::Wait;
use vcpud::machine::model::request::{Command, OfflineCpu, RequestId};

/// A caller that limits its time gives QEMU at least this time.
const QEMU_TIME: Duration = Duration::from_secs(1);

/// A call.
pub(crate) struct Call {
    /// When it has to be answered.
    bound: Option<Instant>,
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
        let (limit, offline) = match command {
            Command::SetVcpus(request) => match request.wait {
                Wait::UpTo(limit) => (limit, None),
                Wait::No => (None, None),
            },
            Command::AwaitStart(request) => {
                let bound = Some(now + request.left);
                return self.insert(bound, since, None);
            }
            Command::GuestOffline(cpus) => (None, cpus.first().copied()),
            _ => (None, None),
        };
        let bound = limit.map(|limit| now + limit.max(QEMU_TIME));
        self.insert(bound, since, offline)
    }

    fn insert(
        &mut self,
        bound: Option<Instant>,
        since: u64,
        offline: Option<OfflineCpu>,
    ) -> RequestId {
        let call = Call {
            bound,
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

    /// Checks that no call waits for too long.
    pub(crate) fn check(&self, now: Instant) {
        let is_late = |call: &&Call| call.bound.is_some_and(|bound| bound <= now);
        let late = self.open.values().filter(is_late).count();
        assert_eq!(late, 0, "calls that wait for too long");
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
