//! One QMP connection: many commands under way, replies matched by id, events in order.
//!
//! A task of its own owns the socket; [`Client`] and [`Reply`] only hold channels to it. The
//! limits are kept there: a line's length, the time of silence while a reply is owed, the number
//! of events that wait to be read. A peer that breaks one is disconnected, which every command
//! under way learns as [`Error::Closed`].

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::time::Duration;

use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::bytes::BytesMut;
use tokio_util::codec::FramedRead;

use super::codec::{Codec, CommandError, Malformed, Message};
use super::event::Event;

/// How many events may wait to be read. QEMU sends 13 at most for one removal (pseries).
const EVENT_QUEUE: usize = 1024;

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// QEMU closed it, or ended.
    #[error("QEMU closed the QMP connection")]
    Hangup,
    /// QEMU sent what is no QMP, or too much of it.
    #[error("QEMU sent {0}")]
    Malformed(String),
    /// QEMU owed a reply and was silent for too long.
    #[error("QEMU did not answer {command} within {} s", after.as_secs_f64())]
    Timeout {
        /// The oldest command without a reply, or what else was waited for.
        command: &'static str,
        /// The limit.
        after: Duration,
    },
    /// QEMU sends events faster than they can be looked at.
    #[error("QEMU sent more than {EVENT_QUEUE} events at once")]
    TooManyEvents,
}

/// Why a command has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// QEMU refused it.
    #[error("QEMU refused {command}: {error}")]
    Command {
        /// The command.
        command: &'static str,
        /// QEMU's class and text.
        error: CommandError,
    },
    /// QEMU's answer is not of the command's type.
    #[error("QEMU answered {command} with something else: {why}")]
    Unexpected {
        /// The command.
        command: &'static str,
        /// What was wrong.
        why: String,
    },
    /// The connection ended before the answer.
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// The sending side of a QMP connection, which lives as long as its clients.
#[derive(Clone, Debug)]
pub struct Client {
    // Unbounded, as only one machine's actor sends, and never more than one batch.
    requests: mpsc::UnboundedSender<Request>,
}

/// An answer that is still to come. To drop it is to not care for the answer.
#[derive(Debug)]
#[must_use = "the answer may be a refusal"]
pub struct Reply<T> {
    command: &'static str,
    answer: oneshot::Receiver<Answer>,
    value: PhantomData<T>,
}

type Answer = Result<Box<RawValue>, Refused>;

#[derive(Debug)]
enum Refused {
    Command(CommandError),
    Closed(Closed),
}

#[derive(Debug)]
struct Request {
    command: &'static str,
    arguments: Option<Value>,
    answer: oneshot::Sender<Answer>,
}

impl Client {
    /// Waits for the greeting of the peer and takes charge of the connection. The receiver ends
    /// after the connection ended, with the reason.
    ///
    /// `silence` is how long the peer may be silent when it owes the greeting or a reply.
    pub async fn connect(
        stream: UnixStream,
        silence: Duration,
    ) -> Result<(Self, mpsc::Receiver<Result<Event, Closed>>), Closed> {
        let (read, write) = stream.into_split();
        let mut messages = FramedRead::new(read, Codec::new(Codec::DEFAULT_LIMIT));
        let late = |_| Closed::Timeout {
            command: "with a greeting (is another QMP client attached, or QEMU stopped?)",
            after: silence,
        };
        match timeout(silence, messages.next()).await.map_err(late)? {
            Some(Ok(Message::Greeting)) => {}
            Some(Ok(_)) => return Err(Closed::Malformed("no greeting first".into())),
            Some(Err(error)) => return Err(error.into()),
            None => return Err(Closed::Hangup),
        }
        let (requests, requested) = mpsc::unbounded_channel();
        let (events, received) = mpsc::channel(EVENT_QUEUE);
        let connection = Connection {
            messages,
            write,
            outgoing: BytesMut::new(),
            requested,
            events,
            waiting: BTreeMap::new(),
            last_id: 0,
            silence,
            silent_since: Instant::now(),
        };
        tokio::spawn(connection.run());
        Ok((Self { requests }, received))
    }

    /// Sends a command without waiting for its answer.
    pub fn send<T: DeserializeOwned>(
        &self,
        command: &'static str,
        arguments: Option<Value>,
    ) -> Reply<T> {
        let (sender, answer) = oneshot::channel();
        // Where the connection is gone the sender is dropped, and the reply says so.
        let _ = self.requests.send(Request {
            command,
            arguments,
            answer: sender,
        });
        Reply {
            command,
            answer,
            value: PhantomData,
        }
    }
}

impl<T: DeserializeOwned> Reply<T> {
    /// The command's result.
    pub async fn wait(self) -> Result<T, Error> {
        let command = self.command;
        match self.answer.await {
            Ok(Ok(value)) => serde_json::from_str(value.get()).map_err(|error| Error::Unexpected {
                command,
                why: error.to_string(),
            }),
            Ok(Err(Refused::Command(error))) => Err(Error::Command { command, error }),
            Ok(Err(Refused::Closed(closed))) => Err(closed.into()),
            Err(_) => Err(Closed::Hangup.into()),
        }
    }
}

impl From<Malformed> for Closed {
    fn from(error: Malformed) -> Self {
        match error {
            Malformed::Io(_) => Self::Hangup,
            other => Self::Malformed(other.to_string()),
        }
    }
}

/// The task's side: the socket and who waits for what.
struct Connection {
    messages: FramedRead<OwnedReadHalf, Codec>,
    write: OwnedWriteHalf,
    outgoing: BytesMut,
    requested: mpsc::UnboundedReceiver<Request>,
    events: mpsc::Sender<Result<Event, Closed>>,
    waiting: BTreeMap<u64, (&'static str, oneshot::Sender<Answer>)>,
    last_id: u64,
    silence: Duration,
    /// Since when the oldest waiting command is the one that QEMU owes. QEMU answers in order,
    /// so the limit holds for each reply, not for a whole batch.
    silent_since: Instant,
}

impl Connection {
    async fn run(mut self) {
        let Err(reason) = self.serve().await else {
            return; // nobody holds a client any more
        };
        for (_, sender) in std::mem::take(&mut self.waiting).into_values() {
            let _ = sender.send(Err(Refused::Closed(reason.clone())));
        }
        self.requested.close();
        while let Some(request) = self.requested.recv().await {
            let _ = request.answer.send(Err(Refused::Closed(reason.clone())));
        }
        // Waits for room where events fill the queue: the reason is never lost.
        let _ = self.events.send(Err(reason)).await;
    }

    async fn serve(&mut self) -> Result<(), Closed> {
        loop {
            let owed = self.silent_since + self.silence;
            tokio::select! {
                message = self.messages.next() => match message {
                    Some(message) => self.receive(message?)?,
                    None => return Err(Closed::Hangup),
                },
                request = self.requested.recv() => match request {
                    Some(request) => self.submit(request),
                    None => return Ok(()),
                },
                written = self.write.write_buf(&mut self.outgoing), if !self.outgoing.is_empty() => {
                    written.map_err(|_| Closed::Hangup)?;
                }
                () = sleep_until(owed), if !self.waiting.is_empty() => return Err(self.timed_out()),
            }
        }
    }

    fn submit(&mut self, request: Request) {
        self.last_id += 1;
        let mut line = json!({"execute": request.command, "id": self.last_id});
        if let Some(arguments) = request.arguments {
            line["arguments"] = arguments;
        }
        self.outgoing.extend_from_slice(line.to_string().as_bytes());
        self.outgoing.extend_from_slice(b"\n");
        if self.waiting.is_empty() {
            self.silent_since = Instant::now();
        }
        let waiting = (request.command, request.answer);
        self.waiting.insert(self.last_id, waiting);
    }

    fn receive(&mut self, message: Message) -> Result<(), Closed> {
        match message {
            Message::Greeting => Err(Closed::Malformed("a second greeting".into())),
            Message::Event(Event::Other) => Ok(()),
            Message::Event(event) => match self.events.try_send(Ok(event)) {
                Err(mpsc::error::TrySendError::Full(_)) => Err(Closed::TooManyEvents),
                _ => Ok(()),
            },
            Message::Reply { id, result } => {
                let Some((_, sender)) = id.and_then(|id| self.waiting.remove(&id)) else {
                    return Err(Closed::Malformed("a reply to no command".into()));
                };
                self.silent_since = Instant::now();
                let _ = sender.send(result.map_err(Refused::Command));
                Ok(())
            }
        }
    }

    fn timed_out(&self) -> Closed {
        let oldest = self.waiting.values().next();
        Closed::Timeout {
            command: oldest.map_or("", |(command, _)| command),
            after: self.silence,
        }
    }
}
