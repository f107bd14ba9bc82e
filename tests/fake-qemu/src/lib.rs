//! A fake QEMU for tests: a QMP peer that does things that a test cannot make a real QEMU do. It runs in
//! the process of the test, which is therefore the leader of its machine.
//!
//! [`Peer`] has a [`Model`] of the vCPUs, and can be scripted. [`Replay`] replays a recorded conversation.
//! [`Canned`] sends fixed replies.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a failed step ends the test"
)]

mod canned;
mod fault;
mod model;
mod replay;
mod tape;
mod thread;
mod wait;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Split};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use fault::Outcome;

pub use canned::Canned;
pub use fault::Fault;
pub use model::{Call, Model, Removal, Starts, Threads, UUID, deleted, event, ost};
pub use replay::Replay;
pub use tape::{Command, Next, Sent};
pub use wait::{until, within};

/// Returns the messages after a command, or `None` if the model answers it.
type Script = Box<dyn FnMut(&mut Model, &Call) -> Option<Vec<Value>> + Send>;

/// A fake QEMU with a model of its vCPUs. It ends when this is dropped.
pub struct Peer {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    /// The first bytes to a client, instead of the greeting.
    opening: Option<&'static str>,
    model: Mutex<Model>,
    script: Mutex<Script>,
    calls: watch::Sender<Vec<Call>>,
    /// Whether the peer accepts clients. Otherwise they wait, as for a stopped QEMU.
    accepting: watch::Sender<bool>,
    /// The number of clients so far.
    clients: watch::Sender<u32>,
    /// Messages for the present client.
    outgoing: Mutex<mpsc::UnboundedSender<Outgoing>>,
    /// The fault, and the number of the message that it affects.
    fault: Option<(usize, Fault)>,
    /// The number of messages that the peer sent, over all connections, except those of [`Peer::send`].
    sent: AtomicUsize,
}

/// The error of a peer that does not send anything any more.
const SILENT: io::ErrorKind = io::ErrorKind::TimedOut;

enum Outgoing {
    Bytes(Vec<u8>),
    HangUp,
}

impl Peer {
    /// Listens at `socket` with `model`.
    pub fn start(socket: &Path, model: Model) -> Self {
        Self::listen(socket, Shared::new(model))
    }

    /// Listens at `socket` and sends `opening` to clients instead of the greeting.
    pub fn start_with(socket: &Path, opening: &'static str) -> Self {
        let mut shared = Shared::new(Model::x86(1, 1));
        shared.opening = Some(opening);
        Self::listen(socket, shared)
    }

    /// Listens, and applies `fault` to the message of that number. The first greeting is number 0.
    pub fn start_faulty(socket: &Path, model: Model, fault: Option<(usize, Fault)>) -> Self {
        let mut shared = Shared::new(model);
        shared.fault = fault;
        Self::listen(socket, shared)
    }

    /// Returns the number of messages that the peer sent, over all connections, except those of
    /// [`Peer::send`].
    pub fn sent(&self) -> usize {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Listens, but accepts no client before [`Peer::accept`].
    pub fn start_silent(socket: &Path, model: Model) -> Self {
        let mut shared = Shared::new(model);
        shared.accepting = watch::Sender::new(false);
        Self::listen(socket, shared)
    }

    /// Serves one client over `stream`.
    pub fn on(stream: UnixStream, model: Model) -> Self {
        let shared = Arc::new(Shared::new(model));
        let served = shared.clone();
        let task = tokio::spawn(async move { served.serve_one(stream).await });
        Self { shared, task }
    }

    fn listen(socket: &Path, shared: Shared) -> Self {
        let listener = UnixListener::bind(socket).expect("the socket can be made");
        let shared = Arc::new(shared);
        let task = tokio::spawn(shared.clone().serve_all(listener));
        Self { shared, task }
    }

    /// Returns the model, to read or to change it.
    pub fn model(&self) -> MutexGuard<'_, Model> {
        lock(&self.shared.model)
    }

    /// Uses `script` from now on. It returns the messages after a command, or `None` if the model answers
    /// the command.
    pub fn script(
        &self,
        script: impl FnMut(&mut Model, &Call) -> Option<Vec<Value>> + Send + 'static,
    ) {
        *lock(&self.shared.script) = Box::new(script);
    }

    /// Sends an event, or any other message.
    pub fn send(&self, message: &Value) {
        self.send_raw(format!("{message}\r\n").into_bytes());
    }

    /// Sends any bytes.
    pub fn send_raw(&self, bytes: impl Into<Vec<u8>>) {
        self.tell(Outgoing::Bytes(bytes.into()));
    }

    /// Closes the connection, and accepts no client before [`Peer::accept`].
    pub fn hang_up(&self) {
        self.shared.accepting.send_replace(false);
        self.tell(Outgoing::HangUp);
    }

    /// Accepts clients.
    pub fn accept(&self) {
        self.shared.accepting.send_replace(true);
    }

    fn tell(&self, outgoing: Outgoing) {
        let client = lock(&self.shared.outgoing).send(outgoing);
        assert!(client.is_ok(), "no client is there");
    }

    /// Returns the number of times that the service sent `command`.
    pub fn count(&self, command: &str) -> usize {
        self.calls(command).len()
    }

    /// Returns all calls of `command`.
    pub fn calls(&self, command: &str) -> Vec<Call> {
        let calls = self.shared.calls.borrow();
        let of_command = calls.iter().filter(|call| call.command == command);
        of_command.cloned().collect()
    }

    /// Returns the commands of all calls after the first `count`, in order.
    pub fn commands_from(&self, count: usize) -> Vec<String> {
        let calls = self.shared.calls.borrow();
        let later = calls.iter().skip(count);
        later.map(|call| call.command.to_string()).collect()
    }

    /// Returns the number of all calls.
    pub fn all_calls(&self) -> usize {
        self.shared.calls.borrow().len()
    }

    /// Returns the number of calls that are not queries: the service queries each machine from time to time.
    pub fn changing_calls(&self) -> usize {
        let calls = self.shared.calls.borrow();
        let is_change = |call: &&Call| !call.command.starts_with("query-");
        calls.iter().filter(is_change).count()
    }

    /// Waits until the service has sent `command` `count` times in all.
    #[track_caller]
    pub fn asked(&self, command: &str, count: usize) -> impl Future<Output = ()> {
        let mut calls = self.shared.calls.subscribe();
        let what = format!("{command} number {count}");
        let command = command.to_owned();
        within(what, async move {
            let is_enough = |calls: &Vec<Call>| {
                let of_command = calls.iter().filter(|call| call.command == command);
                of_command.count() >= count
            };
            let _ = calls.wait_for(is_enough).await;
        })
    }

    /// Waits until the service has sent `count` commands in all.
    #[track_caller]
    pub fn asked_at_all(&self, count: usize) -> impl Future<Output = ()> {
        let mut calls = self.shared.calls.subscribe();
        within(format!("command number {count}"), async move {
            let _ = calls.wait_for(|calls| calls.len() >= count).await;
        })
    }

    /// Returns the number of clients so far.
    pub fn clients(&self) -> u32 {
        *self.shared.clients.borrow()
    }

    /// Waits until the peer has had `count` clients.
    #[track_caller]
    pub fn had_clients(&self, count: u32) -> impl Future<Output = ()> {
        let mut clients = self.shared.clients.subscribe();
        within(format!("client number {count}"), async move {
            let _ = clients.wait_for(|clients| *clients >= count).await;
        })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn new(model: Model) -> Self {
        Self {
            model: Mutex::new(model),
            opening: None,
            script: Mutex::new(Box::new(|_, _| None)),
            calls: watch::Sender::default(),
            accepting: watch::Sender::new(true),
            clients: watch::Sender::default(),
            outgoing: Mutex::new(mpsc::unbounded_channel().0),
            fault: None,
            sent: AtomicUsize::new(0),
        }
    }

    async fn serve_all(self: Arc<Self>, listener: UnixListener) {
        let mut accepting = self.accepting.subscribe();
        loop {
            let _ = accepting.wait_for(|accepting| *accepting).await;
            let (stream, _) = listener.accept().await.expect("it can accept");
            self.serve_one(stream).await;
        }
    }

    async fn serve_one(&self, stream: UnixStream) {
        let (sender, outgoing) = mpsc::unbounded_channel();
        *lock(&self.outgoing) = sender;
        self.clients.send_modify(|clients| *clients += 1);
        let (read, write) = stream.into_split();
        let mut lines = BufReader::new(read).split(b'\n');
        // The client may disconnect at any time.
        let result = self.serve(&mut lines, write, outgoing).await;
        if result.is_err_and(|error| error.kind() == SILENT) {
            while let Ok(Some(_)) = lines.next_segment().await {}
        }
    }

    async fn serve(
        &self,
        lines: &mut Split<BufReader<OwnedReadHalf>>,
        mut write: OwnedWriteHalf,
        mut outgoing: mpsc::UnboundedReceiver<Outgoing>,
    ) -> io::Result<()> {
        match self.opening {
            Some(opening) => write.write_all(opening.as_bytes()).await?,
            None => self.send(&mut write, &greeting()).await?,
        }
        loop {
            tokio::select! {
                line = lines.next_segment() => {
                    let Some(line) = line? else { return Ok(()) };
                    // As in QEMU, this byte discards the beginning of a command.
                    let mut parts = line.rsplit(|byte| *byte == 0xff);
                    let command = parts.next().expect("there is always one");
                    if command.is_empty() {
                        return Ok(()); // the client has left in the middle of a line
                    }
                    for _ in parts {
                        let error = json!({"class": "GenericError", "desc": "JSON parse error"});
                        let message = json!({"error": error});
                        write.write_all(format!("{message}\r\n").as_bytes()).await?;
                    }
                    if self.is_next_to_go_wrong(Fault::Unheard) {
                        self.sent.fetch_add(1, Ordering::Relaxed);
                        return Ok(());
                    }
                    for message in self.take(command) {
                        self.send(&mut write, &message).await?;
                    }
                }
                message = outgoing.recv() => match message {
                    Some(Outgoing::Bytes(bytes)) => write.write_all(&bytes).await?,
                    Some(Outgoing::HangUp) | None => return Ok(()),
                },
            }
        }
    }

    fn is_next_to_go_wrong(&self, fault: Fault) -> bool {
        self.fault == Some((self.sent.load(Ordering::Relaxed), fault))
    }

    /// Sends `message`, unless a fault affects it.
    async fn send(&self, write: &mut OwnedWriteHalf, message: &Value) -> io::Result<()> {
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        let outcome = match self.fault {
            Some((at, fault)) if at == number => fault.apply(message),
            _ => Outcome::Bytes(format!("{message}\r\n").into_bytes()),
        };
        match outcome {
            Outcome::Bytes(bytes) => write.write_all(&bytes).await,
            Outcome::Last(bytes) => {
                write.write_all(&bytes).await?;
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            Outcome::Silence => Err(SILENT.into()),
        }
    }

    /// Records the command in `line`, and returns the messages after it.
    fn take(&self, line: &[u8]) -> Vec<Value> {
        let mut line: Value = serde_json::from_slice(line).expect("the client writes JSON");
        let call = Call {
            command: line["execute"].as_str().expect("a command").to_owned(),
            arguments: line["arguments"].take(),
            id: line["id"].take(),
        };
        let mut model = lock(&self.model);
        let scripted = lock(&self.script)(&mut model, &call);
        let answer = scripted.unwrap_or_else(|| model.answer(&call));
        drop(model);
        self.calls.send_modify(|calls| calls.push(call));
        answer
    }
}

fn greeting() -> Value {
    let version = json!({"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""});
    json!({"QMP": {"version": version, "capabilities": ["oob"]}})
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
