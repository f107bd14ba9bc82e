//! One QMP connection: many commands at a time, replies matched by id, events in order.
//!
//! A task owns the socket; [`Client`] and [`Reply`] only have channels to it. The task enforces the limits:
//! the length of a line, the time for a reply, and the number of events that wait to be read. A peer that
//! breaks a limit is disconnected, and every command without a reply fails with [`Error::Closed`].

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::time::Duration;

use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::bytes::BytesMut;
use tokio_util::codec::FramedRead;

use super::codec::{Codec, CommandError, Malformed, Message};
use super::error::{Closed, Error};
use super::events::{EventSink, Events, queue};
use crate::text::Text;

/// The sending side of a QMP connection. The connection exists as long as its clients.
#[derive(Clone, Debug)]
pub struct Client {
    // Unbounded, because only the task of one machine sends, and never more than one batch.
    // Boxed, because a channel has room for 32 messages at least.
    requests: mpsc::UnboundedSender<Box<Request>>,
}

/// A reply that has not arrived yet. If it is dropped, the reply is ignored.
#[derive(Debug)]
#[must_use = "the reply may be a refusal"]
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
    /// Waits for the greeting of the peer, and starts the task of the connection. The last item of the
    /// receiver is the reason why the connection ended.
    ///
    /// `silence` is the maximum time for the greeting and for each reply.
    ///
    /// # Errors
    ///
    /// Fails if the peer sends no greeting within `silence`, sends something else first, breaks a limit of
    /// the protocol, or closes the connection.
    pub async fn connect(stream: UnixStream, silence: Duration) -> Result<(Self, Events), Closed> {
        let (read, write) = split(stream);
        let mut messages = FramedRead::with_capacity(read, Codec::new(Codec::DEFAULT_LIMIT), 0);
        let late = |_| Closed::Timeout {
            command: "with a greeting (another QMP client is connected, or QEMU is stopped)",
            after: silence,
        };
        match timeout(silence, messages.next()).await.map_err(late)? {
            Some(Ok(Message::Greeting)) => {}
            Some(Ok(_)) => return Err(Closed::NoGreeting("it sent another message first".into())),
            Some(Err(Malformed::Message(why))) => return Err(Closed::NoGreeting(why.to_string())),
            Some(Err(error)) => return Err(error.into()),
            None => return Err(Closed::Hangup),
        }
        let outgoing = BytesMut::new();
        Ok(Self::start(messages, write, silence, outgoing, false))
    }

    /// Continues a connection of the previous instance, possibly in the middle of a message. Replies to
    /// commands of the previous instance are ignored.
    pub fn resume(stream: UnixStream, silence: Duration) -> (Self, Events) {
        let (read, write) = split(stream);
        let codec = Codec::resumed(Codec::DEFAULT_LIMIT);
        let messages = FramedRead::with_capacity(read, codec, 0);
        // Ends a command that the previous instance sent only in part (qmp-spec, "Forcing the JSON parser
        // into known-good state").
        let outgoing = BytesMut::from(&[0xff][..]);
        Self::start(messages, write, silence, outgoing, true)
    }

    fn start(
        messages: FramedRead<ReadHalf<UnixStream>, Codec>,
        write: WriteHalf<UnixStream>,
        silence: Duration,
        outgoing: BytesMut,
        is_resumed: bool,
    ) -> (Self, Events) {
        // In nanoseconds, so that it is above all ids of earlier connections, which began earlier and sent less
        // than one command in a nanosecond.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let first_id = now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs();
        let (requests, requested) = mpsc::unbounded_channel();
        let (events, received) = queue();
        let connection = Connection {
            messages,
            write,
            outgoing,
            requested,
            events,
            waiting: BTreeMap::new(),
            is_resumed,
            first_id,
            last_id: first_id,
            silence,
            silent_since: Instant::now(),
        };
        tokio::spawn(connection.run());
        (Self { requests }, received)
    }

    /// Sends a command without waiting for its reply.
    pub fn send<T: DeserializeOwned>(
        &self,
        command: &'static str,
        arguments: Option<Value>,
    ) -> Reply<T> {
        let (sender, answer) = oneshot::channel();
        // If the connection has ended, the sender is dropped, and the reply fails.
        let _ = self.requests.send(Box::new(Request {
            command,
            arguments,
            answer: sender,
        }));
        Reply {
            command,
            answer,
            value: PhantomData,
        }
    }
}

impl<T: DeserializeOwned> Reply<T> {
    /// Returns the result of the command.
    ///
    /// # Errors
    /// Fails if QEMU refused the command, if the result has another type, or if the connection ended.
    pub async fn wait(self) -> Result<T, Error> {
        let command = self.command;
        match self.answer.await {
            Ok(Ok(value)) => serde_json::from_str(value.get()).map_err(|error| Error::Unexpected {
                command,
                why: Text::lossy(&error.to_string()),
            }),
            Ok(Err(Refused::Command(error))) => Err(Error::Command { command, error }),
            Ok(Err(Refused::Closed(closed))) => Err(closed.into()),
            Err(_) => Err(Closed::Hangup.into()),
        }
    }
}

/// The state of the task: the socket, and the commands without a reply.
struct Connection {
    messages: FramedRead<ReadHalf<UnixStream>, Codec>,
    /// Not an `OwnedWriteHalf`, which shuts the socket down when it is dropped: at the end of the service,
    /// systemd may keep the socket for the next instance.
    write: WriteHalf<UnixStream>,
    outgoing: BytesMut,
    requested: mpsc::UnboundedReceiver<Box<Request>>,
    events: EventSink,
    waiting: BTreeMap<u64, (&'static str, oneshot::Sender<Answer>)>,
    /// Whether the previous instance used the connection.
    is_resumed: bool,
    /// All ids of this connection are above this one. QEMU sends the replies that it owed an earlier connection
    /// to the next one.
    first_id: u64,
    last_id: u64,
    silence: Duration,
    /// The time since which QEMU owes the reply to the oldest command. QEMU answers in order, so the limit
    /// applies to each reply, not to a batch.
    silent_since: Instant,
}

impl Connection {
    async fn run(mut self) {
        let Err(reason) = self.serve().await else {
            return; // All clients were dropped.
        };
        let Self {
            messages,
            mut write,
            mut requested,
            events,
            waiting,
            ..
        } = self;
        // Also ends duplicates of the socket.
        let _ = write.shutdown().await;
        drop((messages, write));
        for (_, sender) in waiting.into_values() {
            let _ = sender.send(Err(Refused::Closed(reason.clone())));
        }
        requested.close();
        while let Some(request) = requested.recv().await {
            let _ = request.answer.send(Err(Refused::Closed(reason.clone())));
        }
        events.close(reason);
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
                    Some(request) => self.submit(*request),
                    None => return Ok(()),
                },
                written = self.write.write_buf(&mut self.outgoing), if !self.outgoing.is_empty() => {
                    if written.is_err() {
                        // Messages that QEMU sent before it closed are read first.
                        self.outgoing.clear();
                    }
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
            Message::Greeting if self.is_resumed => Ok(()),
            Message::Greeting => Err(Closed::Malformed("a second greeting".into())),
            Message::Event(event) => self.events.push(event),
            Message::Reply { id: Some(id), .. } if id <= self.first_id => Ok(()),
            Message::Reply { id: None, .. } if self.is_resumed => Ok(()),
            Message::Reply { id, result } => {
                let Some((_, sender)) = id.and_then(|id| self.waiting.remove(&id)) else {
                    return Err(Closed::Malformed("a reply to an unknown command".into()));
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

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::super::event::{Event, MAX_EVENTS};
    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;
    /// Longer than any test, except those of the time limit.
    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(20);

    /// Returns a client and the end of the peer, after the greeting.
    async fn connected(silence: Duration) -> (Client, Events, BufReader<UnixStream>) {
        let (near, far) = UnixStream::pair().unwrap();
        let mut peer = BufReader::new(far);
        say(&mut peer, GREETING).await;
        let (client, events) = Client::connect(near, silence).await.unwrap();
        (client, events, peer)
    }

    async fn say(peer: &mut BufReader<UnixStream>, line: &str) {
        peer.write_all(format!("{line}\r\n").as_bytes())
            .await
            .unwrap();
    }

    async fn hear(peer: &mut BufReader<UnixStream>) -> Value {
        let mut line = String::new();
        peer.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    async fn end(events: &mut Events) -> Closed {
        loop {
            if let Err(closed) = events.recv().await.unwrap() {
                return closed;
            }
        }
    }

    #[tokio::test]
    async fn replies_are_matched_by_id_in_any_order() {
        let (client, mut events, mut peer) = connected(LONG).await;
        let one = client.send::<u32>("one", None);
        let two = client.send::<u32>("two", Some(json!({"x": [1]})));
        let (first, second) = (hear(&mut peer).await, hear(&mut peer).await);
        assert_eq!(first, json!({"execute": "one", "id": first["id"]}));
        assert_eq!(second["arguments"], json!({"x": [1]}));

        say(&mut peer, r#"{"event": "RESET", "data": {}}"#).await;
        say(
            &mut peer,
            &json!({"return": 2, "id": second["id"]}).to_string(),
        )
        .await;
        let error = json!({"class": "GenericError", "desc": "no"});
        say(
            &mut peer,
            &json!({"error": error, "id": first["id"]}).to_string(),
        )
        .await;
        assert_eq!(two.wait().await, Ok(2));
        assert!(matches!(
            one.wait().await,
            Err(Error::Command { command: "one", .. })
        ));
        assert_eq!(events.recv().await, Some(Ok(Event::Reset)));
    }

    #[tokio::test]
    async fn a_reply_of_another_type_fails_only_its_command() {
        let (client, _events, mut peer) = connected(LONG).await;
        let number = client.send::<u32>("number", None);
        let id = hear(&mut peer).await["id"].clone();
        say(&mut peer, &json!({"return": "text", "id": id}).to_string()).await;
        assert!(matches!(number.wait().await, Err(Error::Unexpected { .. })));
        let long = client.send::<u32>("number", None);
        let id = hear(&mut peer).await["id"].clone();
        let text = "x".repeat(100_000);
        say(&mut peer, &json!({"return": text, "id": id}).to_string()).await;
        let error = long.wait().await.unwrap_err().to_string();
        assert!(error.len() < 2 * Text::MAX, "{} bytes", error.len());
        let again = client.send::<u32>("number", None);
        let id = hear(&mut peer).await["id"].clone();
        say(&mut peer, &json!({"return": 1, "id": id}).to_string()).await;
        assert_eq!(again.wait().await, Ok(1));
    }

    #[tokio::test]
    async fn ignores_replies_to_an_earlier_connection() {
        let (client, _events, mut peer) = connected(LONG).await;
        drop(client.send::<u32>("one", None));
        let id = hear(&mut peer).await["id"].clone();

        let (client, _events, mut peer) = connected(LONG).await;
        let two = client.send::<u32>("two", None);
        let own = hear(&mut peer).await["id"].clone();
        say(&mut peer, &json!({"return": 1, "id": id}).to_string()).await;
        say(&mut peer, &json!({"return": 2, "id": own}).to_string()).await;
        assert_eq!(two.wait().await, Ok(2));
    }

    #[tokio::test]
    async fn ignores_a_reply_that_was_dropped() {
        let (client, _events, mut peer) = connected(LONG).await;
        drop(client.send::<u32>("one", None));
        let id = hear(&mut peer).await["id"].clone();
        say(&mut peer, &json!({"return": 1, "id": id}).to_string()).await;
        let two = client.send::<u32>("two", None);
        let id = hear(&mut peer).await["id"].clone();
        say(&mut peer, &json!({"return": 2, "id": id}).to_string()).await;
        assert_eq!(two.wait().await, Ok(2));
    }

    #[tokio::test]
    async fn silence_is_an_error_only_if_a_reply_is_owed() {
        let (client, mut events, mut peer) = connected(SHORT).await;
        let reply = client.send::<u32>("query-status", None);
        hear(&mut peer).await;
        let closed = Closed::Timeout {
            command: "query-status",
            after: SHORT,
        };
        assert_eq!(reply.wait().await, Err(Error::Closed(closed.clone())));
        assert_eq!(end(&mut events).await, closed);
        let late = client.send::<u32>("late", None).wait().await;
        assert!(matches!(late, Err(Error::Closed(_))));
    }

    #[tokio::test]
    async fn refuses_a_peer_without_a_greeting() {
        let (near, _far) = UnixStream::pair().unwrap();
        let result = Client::connect(near, SHORT).await;
        assert!(matches!(result, Err(Closed::Timeout { .. })));
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        assert!(matches!(
            Client::connect(near, LONG).await,
            Err(Closed::Hangup)
        ));
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
        assert!(matches!(
            Client::connect(near, LONG).await,
            Err(Closed::NoGreeting(_))
        ));
    }

    #[tokio::test]
    async fn disconnects_a_peer_that_breaks_the_protocol() {
        for line in [
            "junk",
            GREETING,
            r#"{"return": {}, "id": 18446744073709551615}"#,
            r#"{"return": {}}"#,
            r#"{"event": "DEVICE_DELETED", "data": {"path": "a\u0000b"}}"#,
        ] {
            let (client, mut events, mut peer) = connected(LONG).await;
            say(&mut peer, line).await;
            assert!(
                matches!(end(&mut events).await, Closed::Malformed(_)),
                "{line}"
            );
            drop(client);
        }
        let (_client, mut events, peer) = connected(LONG).await;
        drop(peer);
        assert_eq!(end(&mut events).await, Closed::Hangup);
    }

    #[tokio::test]
    async fn a_burst_of_events_leaves_the_connection_open() {
        let (client, mut events, mut peer) = connected(LONG).await;
        let burst = "{\"event\": \"BLOCK_IO_ERROR\"}\n".repeat(100_000);
        peer.write_all(burst.as_bytes()).await.unwrap();
        let one = client.send::<u32>("one", None);
        let id = hear(&mut peer).await["id"].clone();
        say(&mut peer, &json!({"return": 1, "id": id}).to_string()).await;
        assert_eq!(one.wait().await, Ok(1));
        assert_eq!(events.recv().await, Some(Ok(Event::RunState)));
        assert_eq!(events.try_recv(), None);
    }

    #[tokio::test]
    async fn too_many_different_events_end_the_connection_with_the_reason() {
        let (_client, mut events, mut peer) = connected(LONG).await;
        for n in 0..=MAX_EVENTS {
            let event = json!({"event": "DEVICE_DELETED", "data": {"path": n.to_string()}});
            // The connection may be closed before the last event.
            let _ = peer.write_all(format!("{event}\n").as_bytes()).await;
        }
        // The events are read only after the end of the connection.
        let mut rest = String::new();
        let _ = peer.read_line(&mut rest).await;
        assert_eq!(end(&mut events).await, Closed::TooManyEvents);
    }

    #[tokio::test]
    async fn the_connection_ends_with_its_last_client() {
        let (client, _events, mut peer) = connected(LONG).await;
        drop(client);
        let mut rest = String::new();
        assert_eq!(peer.read_line(&mut rest).await.unwrap(), 0);
    }
}
