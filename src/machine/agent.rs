//! The guest agent of a machine, shared by those who use it: its socket takes one client at a time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::debug;

use crate::guest_agent::{self, GuestAgent, GuestCpu};
use crate::ids::Pid;

/// How long the agent may take for a caller that only reads.
const LOOK_LIMIT: Duration = Duration::from_secs(1);
/// How long an answer is shared by callers that only read. They need no authorization, so they must
/// not be able to keep the guest busy.
const FRESH: Duration = Duration::from_millis(250);
/// The same for a failure to answer.
const FRESH_FAILURE: Duration = Duration::from_secs(5);

/// The CPUs of the guest, by the guest's numbers.
pub(super) type GuestCpus = BTreeMap<u32, GuestCpu>;

/// The guest agent of a machine.
#[derive(Clone, Debug)]
pub(super) struct Agent(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    socket: PathBuf,
    /// Held during a conversation.
    conversation: Mutex<()>,
    /// The last answer for callers that only read.
    seen: std::sync::Mutex<Option<Seen>>,
}

#[derive(Clone, Debug)]
struct Seen {
    at: Instant,
    leader: Pid,
    cpus: Option<Arc<GuestCpus>>,
}

impl Agent {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self(Arc::new(Shared {
            socket,
            conversation: Mutex::default(),
            seen: std::sync::Mutex::default(),
        }))
    }

    /// Returns the CPUs of the guest, at most 250 ms old; `None` if there is no agent or no answer.
    pub(super) async fn look(&self, leader: Pid) -> Option<Arc<GuestCpus>> {
        if let Some(seen) = self.seen(leader) {
            return seen.cpus;
        }
        let turn = timeout(LOOK_LIMIT, self.0.conversation.lock()).await;
        // Another caller may have read them in the meantime.
        if let Some(seen) = self.seen(leader) {
            return seen.cpus;
        }
        let cpus = async {
            let _turn = turn.map_err(|_| guest_agent::Error::Silent)?;
            let mut agent = GuestAgent::connect(&self.0.socket, leader, LOOK_LIMIT).await?;
            agent.cpus().await
        };
        let cpus = match cpus.await {
            Ok(cpus) => Some(Arc::new(cpus)),
            Err(guest_agent::Error::None) => return None,
            Err(error) => {
                debug!(socket = %self.0.socket.display(), %error, "the guest agent does not answer");
                None
            }
        };
        let at = Instant::now();
        self.set_seen(Some(Seen {
            at,
            leader,
            cpus: cpus.clone(),
        }));
        cpus
    }

    fn seen(&self, leader: Pid) -> Option<Seen> {
        let seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = |seen: &&Seen| {
            let limit = match seen.cpus {
                Some(_) => FRESH,
                None => FRESH_FAILURE,
            };
            seen.leader == leader && seen.at.elapsed() < limit
        };
        seen.as_ref().filter(is_fresh).cloned()
    }

    fn set_seen(&self, seen: Option<Seen>) {
        *self.0.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// Uses the agent within `limit`, which includes the time until other conversations end. Earlier
    /// answers are outdated then.
    ///
    /// # Errors
    /// Those of the agent and of `what`.
    pub(super) async fn converse<T, E: From<guest_agent::Error>>(
        &self,
        leader: Pid,
        limit: Duration,
        what: impl AsyncFnOnce(&mut GuestAgent) -> Result<T, E>,
    ) -> Result<T, E> {
        let start = Instant::now();
        let turn = timeout(limit.min(guest_agent::LONGEST), self.0.conversation.lock()).await;
        let _turn = turn.map_err(|_| guest_agent::Error::Silent)?;
        let left = limit.saturating_sub(start.elapsed());
        let mut agent = GuestAgent::connect(&self.0.socket, leader, left).await?;
        let result = what(&mut agent).await;
        self.set_seen(None);
        result
    }

    /// Brings those of `cpus` online that the guest has offline.
    ///
    /// # Errors
    /// Those of the agent.
    pub(super) async fn bring_back(
        &self,
        leader: Pid,
        limit: Duration,
        cpus: &[u32],
    ) -> Result<(), guest_agent::Error> {
        let bring_back = async |agent: &mut GuestAgent| bring_back(agent, cpus).await;
        self.converse(leader, limit, bring_back).await
    }
}

/// Brings those of `cpus` online that the guest has offline.
///
/// # Errors
/// Those of the agent.
pub(super) async fn bring_back(
    agent: &mut GuestAgent,
    cpus: &[u32],
) -> Result<(), guest_agent::Error> {
    let present = agent.cpus().await?;
    let is_offline = |id: &u32| present.get(id).is_some_and(|cpu| !cpu.online);
    let offline: Vec<u32> = cpus.iter().copied().filter(is_offline).collect();
    agent.set_online(&offline, true).await
}
