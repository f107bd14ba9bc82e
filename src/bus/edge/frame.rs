//! A message of the bus as bytes: its length, and a header that zbus accepts.
//!
//! Pure. The header is parsed with zbus's own codec. See "Message Format" in the D-Bus
//! Specification.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use zbus::Variant;
use zbus::names::{BusName, ErrorName, InterfaceName, MemberName, UniqueName};
use zbus::wire::serialized::{Context, Data};
use zbus::wire::{Endian, to_bytes};

/// Length of the part of each header that has a fixed size: up to and with the length of the
/// array of header fields, in bytes.
pub(super) const FIXED: usize = 16;
/// Longest message that the specification allows, in bytes.
const MAX_MESSAGE: u64 = 128 << 20;
/// Offset of the flags.
const FLAGS: usize = 2;
/// The flags that the specification defines.
const KNOWN_FLAGS: u8 = 0x7;
/// The caller does not expect a reply.
const NO_REPLY: u8 = 0x1;

/// Codes of the header fields.
mod code {
    pub(super) const PATH: u8 = 1;
    pub(super) const INTERFACE: u8 = 2;
    pub(super) const MEMBER: u8 = 3;
    pub(super) const ERROR_NAME: u8 = 4;
    pub(super) const REPLY_SERIAL: u8 = 5;
    pub(super) const DESTINATION: u8 = 6;
    pub(super) const SENDER: u8 = 7;
    pub(super) const SIGNATURE: u8 = 8;
    pub(super) const UNIX_FDS: u8 = 9;
}

/// Byte order, type, flags, version, length of the body, serial, fields.
type RawHeader<'a> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Variant<'a>)>);

/// Type of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Call,
    Return,
    Error,
    Signal,
}

/// A message that zbus accepts.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    /// Whether the sender expects no reply. The flag is cleared in `bytes`, so that every call has
    /// an observable end.
    pub(super) no_reply: bool,
    pub(super) serial: u32,
    /// Unique name of the sender; empty only for messages without one.
    pub(super) sender: String,
    /// Name of the member; empty for replies.
    pub(super) member: String,
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

/// Lengths of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lengths {
    /// Length of the header with its padding, in bytes.
    pub(super) header: usize,
    /// Length of the whole message, in bytes.
    pub(super) total: usize,
}

/// The bytes are not a message, so the position of the next one is unknown.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotAMessage;

/// Reads the lengths of the message that begins with `fixed`.
pub(super) fn lengths(fixed: &[u8; FIXED]) -> Result<Lengths, NotAMessage> {
    let endian = endian(fixed[0]).ok_or(NotAMessage)?;
    let body = u64::from(endian.read_u32(&fixed[4..8]));
    let fields = u64::from(endian.read_u32(&fixed[12..16]));
    let header = (FIXED as u64 + fields).next_multiple_of(8);
    if header + body > MAX_MESSAGE {
        return Err(NotAMessage);
    }
    // Both are far below the range of `usize`.
    Ok(Lengths {
        header: header as usize,
        total: (header + body) as usize,
    })
}

/// Length of the header fields of the message that begins with `fixed`, in bytes.
pub(super) fn fields(fixed: &[u8; FIXED]) -> usize {
    endian(fixed[0]).map_or(0, |endian| endian.read_u32(&fixed[12..16]) as usize)
}

/// Whether the message that begins with `fixed` is a reply.
pub(super) fn is_reply(fixed: &[u8; FIXED]) -> bool {
    matches!(fixed[1], 2 | 3)
}

/// Whether the message that begins with `fixed` is a method call.
pub(super) fn is_call(fixed: &[u8; FIXED]) -> bool {
    fixed[1] == 1
}

/// Serial of the message that begins with `fixed`.
pub(super) fn serial(fixed: &[u8; FIXED]) -> u32 {
    endian(fixed[0]).map_or(0, |endian| endian.read_u32(&fixed[8..12]))
}

fn endian(byte: u8) -> Option<Endian> {
    match byte {
        b'l' => Some(Endian::Little),
        b'B' => Some(Endian::Big),
        _ => None,
    }
}

/// Finds the sender in a header, or in its last bytes where it is too long to be kept.
///
/// A bus daemon writes the sender after all other fields, unless the client wrote one. Then it
/// takes its place, and is found in a whole header only.
pub(super) fn sender_in(header: &[u8]) -> Option<String> {
    const FIELD: [u8; 4] = [code::SENDER, 1, b's', 0];
    let endian = endian(*header.first()?).unwrap_or(Endian::Little);
    let data = Data::new(header, Context::new(endian, 0));
    let whole: zbus::Result<(RawHeader<'_>, usize)> = data.deserialize();
    if let Ok(((.., fields), _)) = whole {
        return text(&fields, code::SENDER);
    }
    let start = header
        .windows(FIELD.len())
        .rposition(|part| part == FIELD)?;
    // After the length of the name, before the byte that ends it.
    let name = header.get(start + 8..header.len() - 1)?;
    let name = UniqueName::try_from(str::from_utf8(name).ok()?).ok()?;
    Some(name.to_string())
}

impl Frame {
    /// Makes a message that zbus accepts of `bytes`. Returns `None` if that is not possible.
    ///
    /// Unknown flags and unknown header fields are removed: the specification asks receivers to
    /// ignore them. A message of an unknown type is ignored as a whole. `bytes` has the length
    /// that [`lengths`] returned, or that of the header alone.
    pub(super) fn new(mut bytes: Vec<u8>, fds: Vec<OwnedFd>) -> Option<Self> {
        let data = Data::new(&bytes[..], Context::new(endian(*bytes.first()?)?, 0));
        let (header, _): (RawHeader<'_>, usize) = data.deserialize().ok()?;
        let (_, kind, flags, version, _, serial, fields) = &header;
        let kind = match kind {
            1 => Kind::Call,
            2 => Kind::Return,
            3 => Kind::Error,
            4 => Kind::Signal,
            _ => return None,
        };
        if *version != 1 || *serial == 0 || !has_required(kind, fields) {
            return None;
        }
        let (serial, flags) = (*serial, *flags);
        let sender = text(fields, code::SENDER).unwrap_or_default();
        let member = text(fields, code::MEMBER).unwrap_or_default();
        let unix_fds = fields.iter().find_map(|field| match field {
            (code::UNIX_FDS, Variant::U32(count)) => Some(*count as usize),
            _ => None,
        });
        if unix_fds.unwrap_or_default() != fds.len() {
            return None;
        }
        let is_known = |(code, _): &(u8, Variant<'_>)| (1..=code::UNIX_FDS).contains(code);
        if !fields.iter().all(is_known) {
            bytes = without_unknown_fields(&data, header)?;
        }
        bytes[FLAGS] = flags & KNOWN_FLAGS & !NO_REPLY;
        Some(Self {
            kind,
            no_reply: kind == Kind::Call && flags & NO_REPLY != 0,
            serial,
            sender,
            member,
            bytes,
            fds,
        })
    }
}

/// Whether each known field is valid, none occurs twice, and all that `kind` needs are there.
fn has_required(kind: Kind, fields: &[(u8, Variant<'_>)]) -> bool {
    let mut found = BTreeSet::new();
    let is_valid = |(code, value): &(u8, Variant<'_>)| match (*code, value) {
        (code::PATH, Variant::ObjectPath(_)) | (code::SIGNATURE, Variant::Signature(_)) => true,
        (code::INTERFACE, Variant::Str(name)) => InterfaceName::try_from(name.as_str()).is_ok(),
        (code::MEMBER, Variant::Str(name)) => MemberName::try_from(name.as_str()).is_ok(),
        (code::ERROR_NAME, Variant::Str(name)) => ErrorName::try_from(name.as_str()).is_ok(),
        (code::DESTINATION, Variant::Str(name)) => BusName::try_from(name.as_str()).is_ok(),
        // That of the bus daemon included.
        (code::SENDER, Variant::Str(name)) => UniqueName::try_from(name.as_str()).is_ok(),
        (code::REPLY_SERIAL, Variant::U32(serial)) => *serial != 0,
        (code::UNIX_FDS, Variant::U32(_)) => true,
        (code, _) => !(1..=code::UNIX_FDS).contains(&code),
    };
    let is_first = |(code, _): &(u8, Variant<'_>)| *code > code::UNIX_FDS || found.insert(*code);
    if !fields.iter().all(is_valid) || !fields.iter().all(is_first) {
        return false;
    }
    let required: &[u8] = match kind {
        Kind::Call => &[code::PATH, code::MEMBER],
        Kind::Return => &[code::REPLY_SERIAL],
        Kind::Error => &[code::ERROR_NAME, code::REPLY_SERIAL],
        Kind::Signal => &[code::PATH, code::INTERFACE, code::MEMBER],
    };
    required.iter().all(|code| found.contains(code))
}

fn text(fields: &[(u8, Variant<'_>)], wanted: u8) -> Option<String> {
    fields.iter().find_map(|(code, value)| match value {
        Variant::Str(text) if *code == wanted => Some(text.to_string()),
        _ => None,
    })
}

/// Writes the message again without the fields that the specification does not define.
fn without_unknown_fields(data: &Data<'_, '_>, mut header: RawHeader<'_>) -> Option<Vec<u8>> {
    let fixed = data.bytes().first_chunk()?;
    let body = lengths(fixed).ok()?.header;
    header
        .6
        .retain(|(code, _)| (1..=code::UNIX_FDS).contains(code));
    let mut bytes = to_bytes(data.context(), &header).ok()?.to_vec();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend_from_slice(data.bytes().get(body..).unwrap_or_default());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use zbus::Message;

    use super::*;

    fn call() -> Vec<u8> {
        let call = Message::method_call("/a", "Do").sender(":1.7");
        call.build(&("text",)).unwrap().data().bytes().to_vec()
    }

    /// `bytes` with one more field.
    fn with_field(bytes: &[u8], field: (u8, Variant<'_>)) -> Vec<u8> {
        let data = Data::new(bytes, Context::new(Endian::Little, 0));
        let (mut header, _): (RawHeader<'_>, usize) = data.deserialize().unwrap();
        header.6.push(field);
        let body = lengths(bytes.first_chunk().unwrap()).unwrap().header;
        let mut new = to_bytes(data.context(), &header).unwrap().to_vec();
        new.resize(new.len().next_multiple_of(8), 0);
        new.extend_from_slice(&bytes[body..]);
        new
    }

    #[test]
    fn reads_sender_member_and_serial() {
        let frame = Frame::new(call(), vec![]).unwrap();
        assert_eq!(frame.kind, Kind::Call);
        assert_eq!(
            (frame.sender.as_str(), frame.member.as_str()),
            (":1.7", "Do")
        );
        assert!(frame.serial != 0 && !frame.no_reply);
        assert_eq!(frame.bytes, call_with_serial(frame.serial));
    }

    fn call_with_serial(serial: u32) -> Vec<u8> {
        let mut bytes = call();
        bytes[8..12].copy_from_slice(&serial.to_le_bytes());
        bytes
    }

    #[test]
    fn removes_unknown_flags_and_notes_that_no_reply_is_expected() {
        let mut bytes = call();
        bytes[FLAGS] = 0xf9;
        let frame = Frame::new(bytes, vec![]).unwrap();
        assert!(frame.no_reply);
        assert_eq!(frame.bytes[FLAGS], 0);
        bytes = call();
        bytes[FLAGS] = 0x84;
        let frame = Frame::new(bytes, vec![]).unwrap();
        assert_eq!((frame.no_reply, frame.bytes[FLAGS]), (false, 4));
    }

    #[test]
    fn removes_unknown_fields_and_keeps_the_body() {
        for value in [Variant::from("x"), Variant::from(vec![1u64, 2])] {
            let bytes = call();
            let odd = with_field(&bytes, (77, value));
            assert_ne!(odd, bytes);
            assert_eq!(Frame::new(odd, vec![]).unwrap().bytes, bytes);
        }
    }

    #[test]
    fn ignores_messages_that_zbus_would_not_accept() {
        let mut unknown_type = call();
        unknown_type[1] = 5;
        assert!(Frame::new(unknown_type, vec![]).is_none());
        let mut no_serial = call();
        no_serial[8..12].fill(0);
        assert!(Frame::new(no_serial, vec![]).is_none());
        let again = with_field(&call(), (code::MEMBER, Variant::from("Do")));
        assert!(Frame::new(again, vec![]).is_none());
        let wrong = with_field(&call(), (code::REPLY_SERIAL, Variant::from("7")));
        assert!(Frame::new(wrong, vec![]).is_none());
        let fds = with_field(&call(), (code::UNIX_FDS, Variant::from(1u32)));
        assert!(Frame::new(fds, vec![]).is_none());
        assert!(Frame::new(call()[..20].to_vec(), vec![]).is_none());
        assert!(Frame::new(vec![], vec![]).is_none());
    }

    #[test]
    fn finds_the_sender_at_the_end_of_a_header_that_is_too_long() {
        let mut tail = vec![0xffu8; 32];
        tail.extend([code::SENDER, 1, b's', 0, 6, 0, 0, 0]);
        tail.extend(b":1.234\0");
        assert_eq!(sender_in(&tail).as_deref(), Some(":1.234"));
        assert_eq!(sender_in(b":1.234\0"), None);
    }

    #[test]
    fn lengths_are_those_of_the_message() {
        let bytes = call();
        let read = lengths(bytes.first_chunk().unwrap()).unwrap();
        assert_eq!(read.total, bytes.len());
        let mut broken = call();
        broken[0] = b'x';
        assert!(lengths(broken.first_chunk().unwrap()).is_err());
        broken = call();
        broken[4..8].fill(0xff);
        assert!(lengths(broken.first_chunk().unwrap()).is_err());
    }
}
