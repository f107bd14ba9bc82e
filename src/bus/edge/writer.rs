//! The half that writes: counts replies, and notices a bus that does not read.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, sendmsg, shutdown,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::warn;
use zbus::Message;
use zbus::connection::socket::WriteHalf;
use zbus::export::async_trait::async_trait;
use zbus::message::Type;

use super::decision::Reply;
use super::errands;
use super::gate::Gate;
use super::limits::{MAX_LIST_REPLY, MAX_REPLY, STALL};
use crate::names::error_name;

/// Members whose replies may be long.
const RETURN_LISTS: [&str; 4] = [
    "GetManagedObjects",
    "GetStatistics",
    "ListMachines",
    "ListVcpus",
];
/// Descriptors that one message may have.
const MAX_FDS: usize = 16;

/// Writes messages to the bus.
#[derive(Debug)]
pub(super) struct Writer {
    socket: Arc<UnixStream>,
    gate: Arc<Gate>,
    /// The message that is being written and how much of it is written. It stays here where a
    /// caller of zbus stops waiting, so that no message is cut off.
    unwritten: Option<(Message, usize)>,
}

impl Writer {
    pub(super) fn new(socket: Arc<UnixStream>, gate: Arc<Gate>) -> Self {
        Self {
            socket,
            gate,
            unwritten: None,
        }
    }

    /// Writes the rest of the message that is being written.
    async fn finish(&mut self) -> io::Result<()> {
        while let Some((message, written)) = &mut self.unwritten {
            let data = message.data();
            let fds: Vec<BorrowedFd<'_>> = match *written {
                0 => data.fds().iter().map(AsFd::as_fd).collect(),
                _ => Vec::new(),
            };
            *written += write(&self.socket, &data[*written..], &fds).await?;
            if *written == data.len() {
                self.unwritten = None;
            }
        }
        Ok(())
    }

    /// Returns the message to send for `message`: itself, an error if it is a reply that is too long,
    /// or nothing.
    fn admit(&self, message: &Message) -> zbus::Result<Option<Message>> {
        let header = message.header();
        let is_reply = matches!(message.message_type(), Type::MethodReturn | Type::Error);
        let (true, Some(caller), Some(serial)) =
            (is_reply, header.destination(), header.reply_serial())
        else {
            return Ok(Some(message.clone()));
        };
        let length = message.data().len();
        if message.primary_header().serial_num() == errands::SERIAL {
            self.gate.refused(caller.as_str(), length);
            return Ok(Some(message.clone()));
        }
        match self.gate.answered(caller.as_str(), serial.get(), length) {
            Reply::Unwanted => Ok(None),
            Reply::Unknown => Ok(Some(message.clone())),
            Reply::Expected { member } => {
                let limit = if RETURN_LISTS.contains(&member.as_str()) {
                    MAX_LIST_REPLY
                } else {
                    MAX_REPLY
                };
                if length <= limit {
                    return Ok(Some(message.clone()));
                }
                let limit = limit >> 20;
                let text = format!("the reply of {member} is longer than {limit} MiB");
                errands::refusal(caller.as_str(), serial, error_name::LIMIT_EXCEEDED, &text)
                    .map(Some)
            }
        }
    }
}

/// Writes some of `bytes`, and gives the connection up where that takes too long.
async fn write(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let write = socket.async_io(Interest::WRITABLE, || send(socket, bytes, fds));
    match timeout(STALL, write).await {
        Ok(written) => written,
        Err(_) => {
            warn!(
                seconds = STALL.as_secs(),
                "the bus reads nothing, so the connection to it is closed"
            );
            // The reader sees that as the end of the connection.
            let _ = shutdown(socket, Shutdown::Both);
            Err(io::ErrorKind::TimedOut.into())
        }
    }
}

fn send(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL;
    Ok(sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        flags,
    )?)
}

#[async_trait]
impl WriteHalf for Writer {
    async fn send_message(&mut self, message: &Message) -> zbus::Result<()> {
        self.finish().await?;
        self.unwritten = self.admit(message)?.map(|message| (message, 0));
        let start = Instant::now();
        self.finish().await?;
        if let Some(reader) = message.header().destination() {
            self.gate.written(reader.as_str(), start.elapsed());
        }
        Ok(())
    }

    /// Writes lines of the authentication.
    async fn sendmsg(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        write(&self.socket, bytes, fds).await
    }

    async fn close(&mut self) -> io::Result<()> {
        Ok(shutdown(&*self.socket, Shutdown::Both)?)
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use super::*;

    fn writer() -> (Writer, std::os::unix::net::UnixStream) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("it is a socket");
        let socket = Arc::new(UnixStream::from_std(ours).expect("it is a socket"));
        let (gate, _errands) = Gate::new(Default::default());
        (Writer::new(socket, Arc::new(gate)), theirs)
    }

    fn signal(length: usize) -> Message {
        let signal = Message::signal("/a", "b.c", "D");
        signal.build(&("x".repeat(length),)).expect("a message")
    }

    /// Real sockets; the time passes when nothing else happens.
    #[tokio::test(start_paused = true)]
    async fn gives_up_a_bus_that_reads_nothing() {
        let (mut writer, mut bus) = writer();
        let error = loop {
            match writer.send_message(&signal(60_000)).await {
                Ok(()) => {}
                Err(error) => break error,
            }
        };
        let zbus::Error::InputOutput(error) = error else {
            panic!("{error}")
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // The other end sees the end of the connection after what was written.
        let mut read = Vec::new();
        bus.read_to_end(&mut read).expect("the connection ended");
        assert!(!read.is_empty());
    }

    /// Real sockets.
    #[tokio::test]
    async fn writes_the_rest_of_a_message_whose_sender_stopped_waiting() {
        let (mut writer, mut bus) = writer();
        let (first, second) = (signal(8 << 20), signal(10));
        let waited = timeout(Duration::from_millis(1), writer.send_message(&first)).await;
        assert!(waited.is_err(), "it fits into the socket");
        let expected = [first.data().bytes(), second.data().bytes()].concat();
        let length = expected.len();
        let reader = std::thread::spawn(move || {
            let mut read = vec![0; length];
            bus.read_exact(&mut read).expect("all is written");
            read
        });
        writer.send_message(&second).await.expect("the bus reads");
        assert!(reader.join().expect("it ends") == expected, "bytes differ");
    }
}
