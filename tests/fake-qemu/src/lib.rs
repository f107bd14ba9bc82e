//! A fake QEMU for tests: a QMP peer that does things that a test cannot make a real QEMU do. It runs in
//! the process of the test, which is therefore the leader of its machine.
//!
//! [`Peer`] has a [`Model`] of the vCPUs, and can be scripted. [`Replay`] replays a recorded conversation.
//! [`Canned`] sends fixed replies.

mod canned;
mod fault;
mod model;
mod replay;
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
pub use model::{Call, Model, Removal, Threads, UUID, deleted, event, ost};
pub use replay::{Command, Next, Replay, Sent};
pub use wait::{until, within};

/// What to send instead of what the model answers; `None` for what it answers.
type Script = Box<dyn FnMut(&mut Model, &Call) -> Option<Vec<Value>> + Send>;

/// A scripted QEMU. It ends when this is dropped.
pub struct Peer {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    /// The first thing that a client is told, if that is no greeting.
    opening: Option<&'static str>,
    model: Mutex<Model>,
    script: Mutex<Script>,
    calls: watch::Sender<Vec<Call>>,
    /// Whether clients are greeted; else they wait, as those of a QEMU that is stopped.
    accepting: watch::Sender<bool>,
    /// How many clients there have been, and the way to the present one.
    clients: watch::Sender<u32>,
    outgoing: Mutex<mpsc::UnboundedSender<Outgoing>>,
    /// The number of the message that a fault befalls.
    fault: Option<(usize, Fault)>,
    /// How many messages were sent by itself, over all connections.
    sent: AtomicUsize,
}

/// Why a peer that fell silent serves no more.
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

    /// Listens at `socket` and greets clients with `opening`.
    pub fn start_with(socket: &Path, opening: &'static str) -> Self {
        let mut shared = Shared::new(Model::x86(1, 1));
        shared.opening = Some(opening);
        Self::listen(socket, shared)
    }

    /// Listens, and `fault` befalls the message of that number: the first greeting is number 0.
    pub fn start_faulty(socket: &Path, model: Model, fault: Option<(usize, Fault)>) -> Self {
        let mut shared = Shared::new(model);
        shared.fault = fault;
        Self::listen(socket, shared)
    }

    /// How many messages it has sent by itself, over all connections.
    pub fn sent(&self) -> usize {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Listens, but says nothing until [`Peer::accept`].
    pub fn start_silent(socket: &Path, model: Model) -> Self {
        let mut shared = Shared::new(model);
        shared.accepting = watch::Sender::new(false);
        Self::listen(socket, shared)
    }

    /// Speaks over a connection that is there, and no other.
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

    /// The model, to look at or to change.
    pub fn model(&self) -> MutexGuard<'_, Model> {
        lock(&self.shared.model)
    }

    /// From now on `script` decides what is sent when a command comes.
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

    /// Sends anything.
    pub fn send_raw(&self, bytes: impl Into<Vec<u8>>) {
        self.tell(Outgoing::Bytes(bytes.into()));
    }

    /// Closes the connection, and greets no other until [`Peer::accept`].
    pub fn hang_up(&self) {
        self.shared.accepting.send_replace(false);
        self.tell(Outgoing::HangUp);
    }

    /// Greets who has connected, and who will.
    pub fn accept(&self) {
        self.shared.accepting.send_replace(true);
    }

    fn tell(&self, outgoing: Outgoing) {
        let client = lock(&self.shared.outgoing).send(outgoing);
        assert!(client.is_ok(), "no client is there");
    }

    /// How often it was asked `command`.
    pub fn count(&self, command: &str) -> usize {
        self.calls(command).len()
    }

    /// What it was asked with `command`.
    pub fn calls(&self, command: &str) -> Vec<Call> {
        let calls = self.shared.calls.borrow();
        let of_command = calls.iter().filter(|call| call.command == command);
        of_command.cloned().collect()
    }

    /// How often it was asked anything.
    pub fn all_calls(&self) -> usize {
        self.shared.calls.borrow().len()
    }

    /// Waits until it was asked `command` `count` times in all.
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

    /// Waits until it has received `count` commands in all.
    #[track_caller]
    pub fn asked_at_all(&self, count: usize) -> impl Future<Output = ()> {
        let mut calls = self.shared.calls.subscribe();
        within(format!("command number {count}"), async move {
            let _ = calls.wait_for(|calls| calls.len() >= count).await;
        })
    }

    /// How many clients it has had.
    pub fn clients(&self) -> u32 {
        *self.shared.clients.borrow()
    }

    /// Waits until it has had `count` clients.
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
        // A client that goes away is no failure.
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
                    // As QEMU's parser, which gives up what it has of a command then.
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

    /// Sends `message`, unless a fault befalls it.
    async fn send(&self, write: &mut OwnedWriteHalf, message: &Value) -> io::Result<()> {
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        let outcome = match self.fault {
            Some((at, fault)) if at == number => fault.befall(message),
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

    /// Notes the command in `line`; returns what to send.
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
