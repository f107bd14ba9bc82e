//! The half that reads: bytes of the bus in, messages that zbus accepts out.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::sleep;
use zbus::connection::socket::ReadHalf;
use zbus::export::async_trait::async_trait;

use super::frame::{self, FIXED, Frame, Kind, Lengths};
use super::gate::Gate;
use super::limits::{MAX_HEADER, MAX_LIST_CALL, MAX_RECEIVED_REPLY, MAX_SIGNAL};
use crate::process::PassedFds;

/// Bytes that are read at a time.
const CHUNK: usize = 64 << 10;
/// Bytes kept of the end of a header that is longer: enough for a sender.
const TAIL: usize = 512;
/// Descriptors that one message may have (`max_message_unix_fds` in `dbus-daemon(1)` is lower).
const MAX_FDS: usize = 253;

/// Reads messages, and hands those over that may enter.
#[derive(Debug)]
pub(super) struct Reader {
    socket: Arc<UnixStream>,
    gate: Arc<Gate>,
    input: Input,
    is_authenticated: bool,
    /// The rest of a message that is too long.
    skipped: Option<Skipped>,
    /// Bytes for zbus, and how many of them it has.
    output: Vec<u8>,
    given: usize,
    output_fds: Vec<OwnedFd>,
}

/// A message that is too long, while it passes.
#[derive(Debug)]
struct Skipped {
    /// Its first bytes, which have type and serial.
    fixed: [u8; FIXED],
    /// Bytes of the header fields that are still to come.
    fields: usize,
    /// Bytes after the fields that are still to come.
    rest: usize,
    /// The header so far, or its last bytes where it is too long.
    header: Vec<u8>,
    /// How much of the header is kept.
    kept: usize,
}

impl Reader {
    pub(super) fn new(socket: Arc<UnixStream>, gate: Arc<Gate>) -> Self {
        Self {
            socket,
            gate,
            input: Input::default(),
            is_authenticated: false,
            skipped: None,
            output: Vec::new(),
            given: 0,
            output_fds: Vec::new(),
        }
    }

    /// Looks at what was read, up to something for zbus. Returns whether there is something.
    fn look(&mut self) -> io::Result<bool> {
        loop {
            if let Some(skipped) = &mut self.skipped {
                if !skipped.pass(&mut self.input) {
                    return Ok(false);
                }
                self.refuse_skipped();
            }
            if !self.is_authenticated && !self.take_line() {
                return Ok(self.given < self.output.len());
            }
            let Some(fixed) = self.input.bytes().first_chunk::<FIXED>() else {
                return Ok(false);
            };
            let broken = |_| io::Error::new(io::ErrorKind::InvalidData, "not a D-Bus message");
            let lengths = frame::lengths(fixed).map_err(broken)?;
            if lengths.total > longest(fixed) {
                self.skipped = Some(Skipped::new(*fixed, lengths));
                continue;
            }
            if self.input.bytes().len() < lengths.total {
                return Ok(false);
            }
            let (bytes, fds) = self.input.take(lengths.total);
            if self.dispatch(bytes, fds) {
                return Ok(true);
            }
        }
    }

    /// Takes a line of the authentication. Returns whether messages follow.
    fn take_line(&mut self) -> bool {
        match self.input.bytes().first() {
            // No line of the server begins so, and every message does.
            Some(b'l' | b'B') => self.is_authenticated = true,
            _ => {
                let end = self.input.bytes().iter().position(|byte| *byte == b'\n');
                if let Some(end) = end {
                    let (line, fds) = self.input.take(end + 1);
                    self.give(line, fds);
                }
            }
        }
        self.is_authenticated
    }

    /// Gives a reply or a signal to zbus, and a call to the gate. Returns whether zbus has
    /// something.
    fn dispatch(&mut self, bytes: Vec<u8>, fds: PassedFds) -> bool {
        let Some(frame) = Frame::new(bytes, fds) else {
            return false;
        };
        if frame.kind == Kind::Call {
            self.gate.arrive(frame);
            return false;
        }
        self.give(frame.bytes, frame.fds);
        true
    }

    fn give(&mut self, bytes: Vec<u8>, mut fds: PassedFds) {
        self.output = bytes;
        self.given = 0;
        self.output_fds = fds.take();
    }

    /// Refuses a call that was too long, once it has passed.
    fn refuse_skipped(&mut self) {
        let Some(skipped) = self.skipped.take() else {
            return;
        };
        if let Some(sender) = frame::sender_in(&skipped.header)
            && frame::is_call(&skipped.fixed)
        {
            self.gate.refuse_size(&skipped.fixed, sender);
        }
    }

    /// Waits for something to read, and reads it.
    async fn read(&mut self) -> io::Result<()> {
        let input = &mut self.input;
        let read = || input.receive(&self.socket);
        self.socket.async_io(Interest::READABLE, read).await
    }
}

/// Bytes and descriptors that were read and not yet handled.
#[derive(Debug, Default)]
struct Input {
    buffer: Vec<u8>,
    /// Bytes of the buffer that were looked at.
    taken: usize,
    /// Descriptors, each with the position in the buffer of a byte of its message.
    fds: VecDeque<(usize, OwnedFd)>,
}

impl Input {
    fn bytes(&self) -> &[u8] {
        &self.buffer[self.taken..]
    }

    /// Takes the next `length` bytes, and the descriptors that came with them.
    fn take(&mut self, length: usize) -> (Vec<u8>, PassedFds) {
        let bytes = self.bytes()[..length].to_vec();
        self.taken += length;
        let count = self.fds.partition_point(|(at, _)| *at < self.taken);
        let fds: Vec<OwnedFd> = self.fds.drain(..count).map(|(_, fd)| fd).collect();
        (bytes, fds.into())
    }

    /// Appends what `socket` has.
    fn receive(&mut self, socket: &UnixStream) -> io::Result<()> {
        self.buffer.drain(..self.taken);
        for (at, _) in &mut self.fds {
            *at -= self.taken;
        }
        self.taken = 0;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let start = self.buffer.len();
        self.buffer.resize(start + CHUNK, 0);
        let mut buffers = [IoSliceMut::new(&mut self.buffer[start..])];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(socket, &mut buffers, &mut ancillary, flags);
        let length = received.as_ref().map_or(0, |received| received.bytes);
        self.buffer.truncate(start + length);
        received?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The kernel ends a read after bytes that descriptors came with (`unix(7)`), and the bus
        // daemon writes no other message with them: so they belong to the last byte's message.
        let last = self.buffer.len() - 1;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds.map(|fd| (last, fd)));
            }
        }
        // A message whose descriptors did not all arrive, because there is no room for more, is
        // ignored: their number differs from that in its header.
        Ok(())
    }
}

/// Longest message of the kind that begins with `fixed`.
fn longest(fixed: &[u8; FIXED]) -> usize {
    match fixed {
        fixed if frame::is_reply(fixed) => MAX_RECEIVED_REPLY,
        fixed if frame::is_call(fixed) => MAX_LIST_CALL,
        _ => MAX_SIGNAL,
    }
}

impl Skipped {
    fn new(fixed: [u8; FIXED], lengths: Lengths) -> Self {
        let fields = frame::fields(&fixed);
        Self {
            fixed,
            fields: FIXED + fields,
            rest: lengths.total - FIXED - fields,
            header: Vec::new(),
            kept: match FIXED + fields {
                length if length <= MAX_HEADER => length,
                _ => TAIL,
            },
        }
    }

    /// Lets bytes of `input` pass. Returns whether the message has passed.
    fn pass(&mut self, input: &mut Input) -> bool {
        let fields = self.fields.min(input.bytes().len());
        self.header.extend(input.take(fields).0);
        self.fields -= fields;
        let surplus = self.header.len().saturating_sub(self.kept);
        self.header.drain(..surplus);
        let rest = self.rest.min(input.bytes().len());
        // Its descriptors are closed here.
        input.take(rest);
        self.rest -= rest;
        self.fields + self.rest == 0
    }
}

#[async_trait]
impl ReadHalf for Reader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        while self.given == self.output.len() {
            if self.look()? {
                break;
            }
            if let Some(call) = self.gate.next() {
                self.give(call.bytes, call.fds);
                break;
            }
            let gate = self.gate.clone();
            let pause = gate.pause();
            tokio::select! {
                read = self.read() => read?,
                () = gate.changed.notified() => {}
                () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
            }
        }
        let left = &self.output[self.given..];
        let length = left.len().min(buffer.len());
        buffer[..length].copy_from_slice(&left[..length]);
        self.given += length;
        Ok((length, std::mem::take(&mut self.output_fds)))
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::os::unix::net::UnixStream as StdStream;
    use std::time::Duration;

    use proptest::prelude::*;
    use proptest::sample::Index;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;
    use zbus::connection::Builder;
    use zbus::connection::socket::{BoxedSplit, Split};
    use zbus::{Guid, Message};

    use super::super::writer::Writer;
    use super::*;
    use crate::ids::Uid;

    const PEER: &str = "org.freedesktop.DBus.Peer";
    /// Longer than an answer takes, even on a busy machine.
    const LIMIT: Duration = Duration::from_secs(60);

    /// A zbus connection behind the edge, which knows the callers `:1.0` to `:1.9`, and its other
    /// end.
    async fn served() -> (zbus::Connection, UnixStream) {
        let (ours, theirs) = StdStream::pair().expect("a pair");
        let [ours, theirs] = [ours, theirs].map(|socket| {
            socket.set_nonblocking(true).expect("it is a socket");
            UnixStream::from_std(socket).expect("it is a socket")
        });
        let (gate, _errands) = Gate::new(Default::default());
        for number in 0..10 {
            gate.identify(&format!(":1.{number}"), Some(Uid::ROOT));
        }
        let (gate, ours) = (Arc::new(gate), Arc::new(ours));
        let reader = Box::new(Reader::new(ours.clone(), gate.clone()));
        let split: BoxedSplit = Split::new(reader, Box::new(Writer::new(ours, gate)));
        // With an object from the start zbus reads nothing before it answers calls.
        let builder = Builder::authenticated_socket(split, Guid::generate()).p2p();
        let builder = builder.serve_at("/", zbus::fdo::ObjectManager);
        let connection = builder.build().await.expect("a connection");
        (connection, theirs)
    }

    fn ping(serial: u32) -> Vec<u8> {
        let call = Message::method_call("/", "Ping").interface(PEER);
        let call = call
            .sender(":1.7")
            .destination(":1.1")
            .serial(NonZeroU32::new(serial).expect("not 0"));
        call.build(&()).expect("a message").data().bytes().to_vec()
    }

    /// Messages of all types, with bodies.
    fn samples() -> Vec<Vec<u8>> {
        let body = (
            "text",
            vec![1u32, 2],
            std::collections::HashMap::from([("a", 1u64)]),
        );
        let call = Message::method_call("/a/b", "Do")
            .interface("a.b")
            .sender(":1.3");
        let signal = Message::signal("/a/b", "a.b", "Done").sender(":1.4");
        let call = call.build(&body).expect("a message");
        let header = call.header();
        let reply = Message::method_return(&header).sender(":1.5").build(&body);
        let error = Message::error(&header, "a.b.C")
            .sender(":1.6")
            .build(&("no",));
        [Ok(call.clone()), signal.build(&body), reply, error]
            .map(|message| message.expect("a message").data().bytes().to_vec())
            .into()
    }

    /// Real sockets, zbus.
    #[tokio::test]
    async fn no_message_that_passes_ends_a_connection_of_zbus() {
        let (connection, mut bus) = served().await;
        let mut runner = TestRunner::deterministic();
        let samples = samples();
        let change = (any::<Index>(), any::<u8>());
        let odd = (any::<Index>(), prop::collection::vec(change, 1..4));
        for round in 1..400u32 {
            for _ in 0..8 {
                let (sample, changes) = odd.new_tree(&mut runner).expect("a tree").current();
                let mut bytes = sample.get(&samples).clone();
                for (at, byte) in changes {
                    // The bus daemon writes the lengths and the byte order.
                    let free = (1..4).chain(8..12).chain(16..bytes.len());
                    let free: Vec<usize> = free.collect();
                    bytes[*at.get(&free)] = byte;
                }
                bus.write_all(&bytes).await.expect("it is read");
            }
            let serial = 0xff00_0000 + round;
            bus.write_all(&ping(serial)).await.expect("it is read");
            let answered = timeout(LIMIT, answered(&mut bus, serial)).await;
            assert_eq!(answered, Ok(true), "round {round}");
            assert!(!connection.is_closed());
        }
    }

    /// Whether the call `serial` is answered before the connection ends.
    async fn answered(bus: &mut UnixStream, serial: u32) -> bool {
        loop {
            let mut fixed = [0; FIXED];
            if bus.read_exact(&mut fixed).await.is_err() {
                return false;
            }
            let lengths = frame::lengths(&fixed).expect("zbus writes messages");
            let mut rest = vec![0; lengths.total - FIXED];
            bus.read_exact(&mut rest).await.expect("a whole message");
            if rest.windows(4).any(|bytes| bytes == serial.to_le_bytes()) {
                return true;
            }
        }
    }
}
