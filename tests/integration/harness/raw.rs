//! A D-Bus client that sends what no library sends: any bytes, as any user, without reading.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::num::NonZeroU32;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use zbus::names::OwnedUniqueName;
use zbus::wire::LE;
use zbus::wire::serialized::{Context, Data};
use zbus::{DynamicType, Message, Variant};

use super::bus::Bus;
use super::wait::within;
use super::world::NOBODY;

/// Byte order, type, flags, version, length of the body, serial, fields.
type Header<'a> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Variant<'a>)>);

/// A message that the client received.
#[derive(Debug)]
pub(crate) struct Received {
    /// Serial of the call that it answers; 0 for a signal.
    pub(crate) reply_to: u32,
    /// Name of the error that it is.
    pub(crate) error: Option<String>,
    /// Length of the whole message, in bytes.
    pub(crate) length: usize,
    /// Text that the body begins with.
    pub(crate) text: String,
}

/// A connection to the bus.
pub(crate) struct RawClient {
    pub(crate) socket: UnixStream,
    input: Vec<u8>,
    serial: u32,
    /// Its unique name.
    pub(crate) name: OwnedUniqueName,
}

impl RawClient {
    /// Connects as the user `nobody`.
    pub(crate) async fn nobody(bus: &Bus) -> Self {
        Self::connect(bus, NOBODY).await
    }

    /// Connects as the user `uid`.
    pub(crate) async fn connect(bus: &Bus, uid: u32) -> Self {
        let path = bus.directory().join("bus");
        // A thread has a user of its own, which the socket keeps.
        let socket = std::thread::spawn(move || connect_as(uid, &path)).join();
        let socket = socket.expect("root can become any user");
        let socket = UnixStream::from_std(socket).expect("it is a socket");
        let hello = Message::method_call("/org/freedesktop/DBus", "Hello")
            .destination("org.freedesktop.DBus")
            .interface("org.freedesktop.DBus");
        let mut client = Self {
            socket,
            input: Vec::new(),
            serial: 0,
            name: OwnedUniqueName::try_from(":0.0").expect("a name"),
        };
        client.authenticate(uid).await;
        let serial = client.call(hello, &()).await;
        let reply = client.reply(serial).await;
        client.name = OwnedUniqueName::try_from(reply.text).expect("a unique name");
        client
    }

    async fn authenticate(&mut self, uid: u32) {
        let hex: String = uid
            .to_string()
            .bytes()
            .map(|b| format!("{b:02x}"))
            .collect();
        let lines = format!("\0AUTH EXTERNAL {hex}\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n");
        self.send(lines.as_bytes(), &[]).await;
        let answered = async {
            while self.input.iter().filter(|byte| **byte == b'\n').count() < 2 {
                self.socket
                    .read_buf(&mut self.input)
                    .await
                    .expect("the bus answers");
            }
        };
        within("the authentication", answered).await;
        self.input.clear();
    }

    /// The next serial.
    pub(crate) fn next_serial(&mut self) -> NonZeroU32 {
        self.serial += 1;
        NonZeroU32::new(self.serial).expect("not 0")
    }

    /// The bytes of a call of the service.
    pub(crate) fn call_of(
        &mut self,
        path: &str,
        interface: &str,
        member: &str,
        body: &(impl Serialize + DynamicType),
    ) -> (u32, Vec<u8>) {
        let serial = self.next_serial();
        let message = Message::method_call(path, member)
            .destination("org.vcpud1")
            .interface(interface)
            .serial(serial)
            .build(body)
            .expect("a message");
        (serial.get(), message.data().bytes().to_vec())
    }

    /// Sends the call that `builder` makes. Returns its serial.
    pub(crate) async fn call(
        &mut self,
        builder: zbus::message::Builder<'_>,
        body: &(impl Serialize + DynamicType),
    ) -> u32 {
        let serial = self.next_serial();
        let message = builder.serial(serial).build(body).expect("a message");
        self.send(message.data().bytes(), &[]).await;
        serial.get()
    }

    /// Sends bytes, with descriptors.
    pub(crate) async fn send(&mut self, mut bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        if !fds.is_empty() {
            let sent = self.socket.async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                ancillary.push(SendAncillaryMessage::ScmRights(fds));
                let buffers = [IoSlice::new(bytes)];
                Ok(sendmsg(
                    &self.socket,
                    &buffers,
                    &mut ancillary,
                    SendFlags::NOSIGNAL,
                )?)
            });
            bytes = &bytes[within("room for descriptors", sent).await.expect("sent")..];
        }
        let written = self.socket.write_all(bytes);
        within("the bus to read", written)
            .await
            .expect("the bus is there");
    }

    /// The next reply.
    pub(crate) async fn receive(&mut self) -> Received {
        let received = async {
            loop {
                while let Some(received) = self.take() {
                    // A signal answers nothing.
                    if received.reply_to != 0 {
                        return received;
                    }
                }
                let read = self.socket.read_buf(&mut self.input).await;
                assert_ne!(read.expect("the bus is there"), 0, "the bus hung up");
            }
        };
        within("a message", received).await
    }

    /// The reply to the call `serial`.
    pub(crate) async fn reply(&mut self, serial: u32) -> Received {
        loop {
            let received = self.receive().await;
            if received.reply_to == serial {
                return received;
            }
        }
    }

    fn take(&mut self) -> Option<Received> {
        let lengths: &[u8; 16] = self.input.first_chunk()?;
        let number = |at: usize| u32::from_le_bytes(lengths[at..at + 4].try_into().expect("4"));
        let header = (16 + number(12) as usize).next_multiple_of(8);
        let length = header + number(4) as usize;
        let message = self.input.get(..length)?;
        let data = Data::new(message, Context::new(LE, 0));
        let (fields, _): (Header<'_>, usize) = data.deserialize().expect("a message");
        let field = |code: u8| fields.6.iter().find(|(of, _)| *of == code).map(|(_, v)| v);
        let text = match field(8) {
            Some(Variant::Signature(signature)) if signature.to_string().starts_with('s') => {
                let end = header + 4 + number_at(message, header) as usize;
                String::from_utf8_lossy(&message[header + 4..end]).into_owned()
            }
            _ => String::new(),
        };
        let received = Received {
            reply_to: match field(5) {
                Some(Variant::U32(serial)) => *serial,
                _ => 0,
            },
            error: match field(4) {
                Some(Variant::Str(name)) => Some(name.to_string()),
                _ => None,
            },
            length,
            text,
        };
        self.input.drain(..length);
        Some(received)
    }
}

fn number_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn connect_as(uid: u32, path: &Path) -> StdStream {
    set_thread_groups(&[]).expect("the test is root");
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    set_thread_res_gid(group, group, group).expect("root may");
    set_thread_res_uid(user, user, user).expect("root may");
    let socket = StdStream::connect(path).expect("everybody may connect");
    socket.set_nonblocking(true).expect("it is a socket");
    socket
}
