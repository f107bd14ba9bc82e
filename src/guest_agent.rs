//! The QEMU guest agent: reads the CPUs of the guest, and brings them online or takes them offline.
//!
//! A conversation is one connection, because the socket of the agent serves one client at a time and other
//! programs use it too. The guest controls all data of the agent, so size and time have limits (QEMU's
//! `docs/interop/qemu-ga-ref`).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::ids::Pid;
use crate::inventory::MAX_VCPUS;
use crate::limited::Limited;
use crate::process::{self, Leader, SocketError};
use crate::text::Text;

/// The maximum length of a line, in bytes. The reply for [`MAX_VCPUS`] CPUs is shorter.
const MAX_LINE: u64 = 2 << 20;
/// The maximum time for a conversation, regardless of the caller.
pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// The interval in which an agent that does not answer is called.
const CALL_INTERVAL: Duration = Duration::from_secs(1);
/// The byte that the agent sends before the reply to `guest-sync-delimited`, and that ends an incomplete
/// message to the agent.
const DELIMITER: u8 = 0xff;

/// One conversation with an agent.
#[derive(Debug)]
pub struct GuestAgent {
    stream: BufReader<UnixStream>,
    /// The part of the line that was read.
    line: Vec<u8>,
    deadline: Instant,
}

/// A CPU of the guest (`GuestLogicalProcessor`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestCpu {
    /// The number that the guest gives it. QEMU may use another one.
    pub logical_id: u32,
    /// Whether the guest uses it.
    pub online: bool,
    /// Whether the guest can take it offline.
    #[serde(default)]
    pub can_offline: bool,
}

/// The reason why a request to the agent failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The socket of the agent does not exist.
    #[error("the machine has no guest agent socket")]
    None,
    /// The socket does not belong to the agent of this machine, or the connection failed.
    #[error("the guest agent cannot be reached: {0}")]
    Unreachable(String),
    /// The agent did not answer in time.
    #[error("the guest agent does not answer; check that it runs in the guest")]
    Silent,
    /// The reply is not valid.
    #[error("the guest agent sent an invalid reply: {0}")]
    Malformed(String),
    /// The agent refused.
    #[error("the guest agent refused: {0}")]
    Refused(Text),
    /// The agent answered, and the guest has fewer CPUs than the machine has vCPUs.
    #[error(
        "the guest lists {listed} of {present} CPUs; check that the kernel of the guest supports as many (nr_cpus) and CPU hotplug, or use a longer time limit"
    )]
    Fewer {
        /// The number of CPUs of the guest.
        listed: usize,
        /// The number of present vCPUs.
        present: u32,
    },
}

#[derive(Deserialize)]
struct Reply<T> {
    #[serde(rename = "return")]
    value: Option<T>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: Text,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Wanted {
    logical_id: u32,
    online: bool,
}

impl GuestAgent {
    /// Begins a conversation over the socket at `path`. The QEMU process `leader` must listen on it. The
    /// conversation must end within `limit`.
    ///
    /// # Errors
    ///
    /// Fails if the socket does not exist, if another process listens on it, and if the agent does not
    /// answer within `limit`.
    pub async fn connect(path: &Path, leader: Pid, limit: Duration) -> Result<Self, Error> {
        let deadline = Instant::now() + limit.min(LONGEST);
        let stream = process::connect_to_agent(path)
            .await
            .map_err(|error| match error {
                SocketError::Missing => Error::None,
                other => Error::Unreachable(other.to_string()),
            })?;
        let peer = Leader::of_peer(&stream).await;
        let peer = peer.map_err(|error| Error::Unreachable(error.to_string()))?;
        if peer.pid() != leader {
            let pid = peer.pid();
            let reason =
                format!("process {pid} listens on its socket, not QEMU (process {leader})");
            return Err(Error::Unreachable(reason));
        }
        let stream = BufReader::new(stream);
        let line = Vec::new();
        let mut agent = Self {
            stream,
            line,
            deadline,
        };
        agent.synchronize().await?;
        Ok(agent)
    }

    /// Returns the CPUs of the guest, by the numbers of the guest.
    ///
    /// # Errors
    /// Fails if the agent does not answer in time, refuses, or sends an invalid reply.
    pub async fn cpus(&mut self) -> Result<BTreeMap<u32, GuestCpu>, Error> {
        let cpus: Limited<GuestCpu, { MAX_VCPUS as usize }> =
            self.execute("guest-get-vcpus", json!({})).await?;
        Ok(cpus
            .0
            .into_iter()
            .map(|cpu| (cpu.logical_id, cpu))
            .collect())
    }

    /// Brings the `cpus`, in the numbers of the guest, online, or takes them offline.
    ///
    /// # Errors
    ///
    /// Fails if the agent refuses a CPU, does not answer in time, or sends an invalid reply. The CPUs before
    /// the refused one are changed.
    pub async fn set_online(&mut self, cpus: &[u32], online: bool) -> Result<(), Error> {
        let mut left = cpus;
        while !left.is_empty() {
            let wanted = left.iter().map(|&logical_id| Wanted { logical_id, online });
            let wanted: Vec<Wanted> = wanted.collect();
            // The agent stops at the first CPU that fails, and gives the reason only if no CPU was changed.
            let done: usize = self
                .execute("guest-set-vcpus", json!({"vcpus": wanted}))
                .await?;
            left = match left.get(done..) {
                Some(rest) if done > 0 => rest,
                _ => return Err(Error::Malformed(format!("{done} CPUs were set"))),
            };
        }
        Ok(())
    }

    /// Discards data that a previous client left. Calls that arrive before the agent listens may be lost, so
    /// the call is repeated until the agent answers.
    async fn synchronize(&mut self) -> Result<(), Error> {
        loop {
            let id = synchronization_id()?;
            let sync = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
            self.send(&[&[DELIMITER], format!("{sync}\n").as_bytes()].concat())
                .await?;
            if let Ok(answered) = timeout(CALL_INTERVAL, self.answer_to(id)).await {
                return answered;
            }
        }
    }

    /// Reads until the reply to the synchronization `id`.
    async fn answer_to(&mut self, id: u64) -> Result<(), Error> {
        loop {
            let line = self.line().await?;
            let answer = line.rsplit(|byte| *byte == DELIMITER).next();
            let answer = answer.and_then(|text| serde_json::from_slice::<Reply<u64>>(text).ok());
            if answer.is_some_and(|reply| reply.value == Some(id)) {
                return Ok(());
            }
        }
    }

    async fn execute<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<T, Error> {
        let command = json!({"execute": command, "arguments": arguments});
        self.send(format!("{command}\n").as_bytes()).await?;
        let malformed = |error: serde_json::Error| {
            Error::Malformed(Text::lossy(&error.to_string()).to_string())
        };
        let reply: Reply<T> = serde_json::from_slice(&self.line().await?).map_err(malformed)?;
        match reply.error {
            Some(refusal) => Err(Error::Refused(refusal.desc)),
            None => {
                let value = reply.value;
                value.ok_or_else(|| Error::Malformed("neither a result nor an error".into()))
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let sent = timeout_at(self.deadline, self.stream.write_all(bytes)).await;
        sent.map_err(|_| Error::Silent)?.map_err(unreachable)
    }

    async fn line(&mut self) -> Result<Vec<u8>, Error> {
        let room = MAX_LINE.saturating_sub(self.line.len() as u64);
        let mut limited = (&mut self.stream).take(room);
        // If the call is cancelled here, the data stays in the line.
        let read = limited.read_until(b'\n', &mut self.line);
        let read = timeout_at(self.deadline, read).await;
        read.map_err(|_| Error::Silent)?.map_err(unreachable)?;
        let mut line = std::mem::take(&mut self.line);
        match line.pop() {
            Some(b'\n') => Ok(line),
            Some(_) if line.len() as u64 + 1 >= MAX_LINE => {
                Err(Error::Malformed(format!("a line of {MAX_LINE} bytes")))
            }
            _ => Err(Error::Unreachable("it closed the connection".into())),
        }
    }
}

/// Returns an id that no conversation had before, also none of another client: the agent may still
/// answer earlier ones. It reads a signed number.
fn synchronization_id() -> Result<u64, Error> {
    let id = getrandom::u64().map_err(|error| Error::Unreachable(error.to_string()))?;
    Ok(id >> 1)
}

fn unreachable(error: io::Error) -> Error {
    Error::Unreachable(error.to_string())
}
