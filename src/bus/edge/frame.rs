//! A message of the bus as bytes: its length, and a header that zbus accepts.
//!
//! Pure. A header is accepted under the same conditions as by the parser of zbus, except that
//! unknown fields and flags are removed. See "Message Format" in the D-Bus
//! Specification.

use std::collections::BTreeMap;
use std::ops::Range;

use zbus::names::{BusName, ErrorName, InterfaceName, MemberName, UniqueName};
use zbus::wire::Endian;
use zbus::wire::serialized::{Context, Data};
use zbus::{ObjectPath, Signature, Variant};

use crate::process::PassedFds;

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
    pub(super) fds: PassedFds,
    /// Name and text of the error that it gets in place of an answer.
    pub(super) refusal: Option<(&'static str, String)>,
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
    if let Some(fields) = Fields::read(header) {
        return fields.text(header, code::SENDER).map(str::to_owned);
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
    /// Stands for a call of `sender` that was too long to be kept, and is refused for that.
    pub(super) fn refused(
        fixed: &[u8; FIXED],
        sender: String,
        refusal: (&'static str, String),
    ) -> Self {
        Self {
            kind: Kind::Call,
            no_reply: fixed[FLAGS] & NO_REPLY != 0,
            serial: serial(fixed),
            sender,
            member: String::new(),
            bytes: Vec::new(),
            fds: PassedFds::default(),
            refusal: Some(refusal),
        }
    }

    /// Makes a message that zbus accepts of `bytes`. Returns `None` if that is not possible.
    ///
    /// Unknown flags and unknown header fields are removed: the specification asks receivers to
    /// ignore them. A message of an unknown type is ignored as a whole. `bytes` has the length
    /// that [`lengths`] returned.
    pub(super) fn new(mut bytes: Vec<u8>, fds: PassedFds) -> Option<Self> {
        const VERSION: u8 = 1;
        let fixed: [u8; FIXED] = *bytes.first_chunk()?;
        let [_, kind, flags, version, ..] = fixed;
        let kind = match kind {
            1 => Kind::Call,
            2 => Kind::Return,
            3 => Kind::Error,
            4 => Kind::Signal,
            _ => return None,
        };
        let serial = serial(&fixed);
        let fields = Fields::read(&bytes)?;
        if version != VERSION || serial == 0 || !fields.has_required(kind) {
            return None;
        }
        let descriptors = fields.number(&bytes, code::UNIX_FDS).unwrap_or_default();
        if descriptors as usize != fds.len() {
            return None;
        }
        let text = |code| fields.text(&bytes, code).unwrap_or_default().to_owned();
        let (sender, member) = (text(code::SENDER), text(code::MEMBER));
        if fields.has_unknown {
            bytes = fields.without_unknown(&bytes)?;
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
            refusal: None,
        })
    }
}

/// The header fields of a message that the specification defines.
struct Fields {
    endian: Endian,
    /// Where each lies in the message, from its code to its end.
    known: BTreeMap<u8, Range<usize>>,
    has_unknown: bool,
}

impl Fields {
    /// Reads the fields. Returns `None` if one is invalid or occurs twice.
    fn read(bytes: &[u8]) -> Option<Self> {
        let fixed = bytes.first_chunk()?;
        let endian = endian(fixed[0])?;
        let end = FIXED + fields(fixed);
        let is_zero = |padding: &[u8]| padding.iter().all(|byte| *byte == 0);
        let mut fields = Self {
            endian,
            known: BTreeMap::new(),
            has_unknown: false,
        };
        let mut at = FIXED;
        while at < end {
            let start = at.next_multiple_of(8);
            let code = *bytes.get(..end)?.get(start)?;
            if !is_zero(&bytes[at..start]) {
                return None;
            }
            at = match code {
                code::PATH..=code::UNIX_FDS => fields.read_known(bytes, code, start)?,
                _ => fields.skip_unknown(bytes, start)?,
            };
        }
        let padding = end.next_multiple_of(8).min(bytes.len());
        (at == end && is_zero(bytes.get(end..padding)?)).then_some(fields)
    }

    /// Reads the field `code` at `start`. Returns where it ends.
    fn read_known(&mut self, bytes: &[u8], code: u8, start: usize) -> Option<usize> {
        let field = bytes.get(start..)?;
        let (text, length) = match field.get(1..4)? {
            [1, b'u', 0] => (8, None),
            [1, b's' | b'o', 0] => (8, Some(self.endian.read_u32(field.get(4..8)?) as usize)),
            [1, b'g', 0] => (5, Some(usize::from(*field.get(4)?))),
            _ => return None,
        };
        // A byte that is 0 ends a text.
        let end = text + length.map_or(0, |length| length + 1);
        if length.is_some() && *field.get(end - 1)? != 0 {
            return None;
        }
        let is_first = self.known.insert(code, start..start + end).is_none();
        (is_first && self.is_valid(bytes, code)).then_some(start + end)
    }

    /// Skips a field that the specification does not define. Returns where it ends.
    fn skip_unknown(&mut self, bytes: &[u8], start: usize) -> Option<usize> {
        let data = Data::new(bytes, Context::new(self.endian, 0)).slice(start..);
        let (_, length): ((u8, Variant<'_>), usize) = data.deserialize().ok()?;
        self.has_unknown = true;
        Some(start + length)
    }

    fn number(&self, bytes: &[u8], code: u8) -> Option<u32> {
        let field = bytes.get(self.known.get(&code)?.clone())?;
        let number = field.get(4..8).filter(|_| field[2] == b'u')?;
        Some(self.endian.read_u32(number))
    }

    fn text<'b>(&self, bytes: &'b [u8], code: u8) -> Option<&'b str> {
        let field = bytes.get(self.known.get(&code)?.clone())?;
        let start = match field.get(2)? {
            b's' | b'o' => 8,
            b'g' => 5,
            _ => return None,
        };
        str::from_utf8(field.get(start..field.len() - 1)?).ok()
    }

    /// Whether the field `code` has a valid value of its type.
    fn is_valid(&self, bytes: &[u8], code: u8) -> bool {
        let field = self
            .known
            .get(&code)
            .and_then(|field| bytes.get(field.clone()));
        let kind = field.and_then(|field| field.get(2));
        let (text, number) = (self.text(bytes, code), self.number(bytes, code));
        match (kind, code, text, number) {
            (Some(b'u'), code::REPLY_SERIAL, _, Some(serial)) => serial != 0,
            (Some(b'u'), code::UNIX_FDS, _, Some(_)) => true,
            (Some(b'o'), code::PATH, Some(path), _) => ObjectPath::try_from(path).is_ok(),
            (Some(b'g'), code::SIGNATURE, Some(text), _) => Signature::try_from(text).is_ok(),
            (Some(b's'), code, Some(name), _) => match code {
                code::INTERFACE => InterfaceName::try_from(name).is_ok(),
                code::MEMBER => MemberName::try_from(name).is_ok(),
                code::ERROR_NAME => ErrorName::try_from(name).is_ok(),
                code::DESTINATION => BusName::try_from(name).is_ok(),
                // The name of the bus daemon is valid too.
                code::SENDER => UniqueName::try_from(name).is_ok(),
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether all fields that a message of type `kind` needs are present.
    fn has_required(&self, kind: Kind) -> bool {
        let required: &[u8] = match kind {
            Kind::Call => &[code::PATH, code::MEMBER],
            Kind::Return => &[code::REPLY_SERIAL],
            Kind::Error => &[code::ERROR_NAME, code::REPLY_SERIAL],
            Kind::Signal => &[code::PATH, code::INTERFACE, code::MEMBER],
        };
        required.iter().all(|code| self.known.contains_key(code))
    }

    /// Writes the message without the fields that the specification does not define.
    fn without_unknown(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let body = lengths(bytes.first_chunk()?).ok()?.header;
        let mut new = bytes.get(..FIXED)?.to_vec();
        let mut fields: Vec<&Range<usize>> = self.known.values().collect();
        fields.sort_unstable_by_key(|field| field.start);
        for field in fields {
            new.resize(new.len().next_multiple_of(8), 0);
            new.extend_from_slice(bytes.get(field.clone())?);
        }
        let length = u32::try_from(new.len() - FIXED).ok()?;
        self.endian.write_u32(&mut new[12..FIXED], length);
        new.resize(new.len().next_multiple_of(8), 0);
        new.extend_from_slice(bytes.get(body..)?);
        Some(new)
    }
}

#[cfg(test)]
mod tests {
    use zbus::Message;
    use zbus::wire::to_bytes;

    use super::*;

    /// Byte order, type, flags, version, length of the body, serial, fields.
    type RawHeader<'a> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Variant<'a>)>);

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
        let frame = Frame::new(call(), PassedFds::default()).unwrap();
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
        let frame = Frame::new(bytes, PassedFds::default()).unwrap();
        assert!(frame.no_reply);
        assert_eq!(frame.bytes[FLAGS], 0);
        bytes = call();
        bytes[FLAGS] = 0x84;
        let frame = Frame::new(bytes, PassedFds::default()).unwrap();
        assert_eq!((frame.no_reply, frame.bytes[FLAGS]), (false, 4));
    }

    #[test]
    fn removes_unknown_fields_and_keeps_the_body() {
        for value in [Variant::from("x"), Variant::from(vec![1u64, 2])] {
            let bytes = call();
            let odd = with_field(&bytes, (77, value));
            assert_ne!(odd, bytes);
            assert_eq!(Frame::new(odd, PassedFds::default()).unwrap().bytes, bytes);
        }
    }

    #[test]
    fn ignores_messages_that_zbus_would_not_accept() {
        let mut unknown_type = call();
        unknown_type[1] = 5;
        assert!(Frame::new(unknown_type, PassedFds::default()).is_none());
        let mut no_serial = call();
        no_serial[8..12].fill(0);
        assert!(Frame::new(no_serial, PassedFds::default()).is_none());
        let again = with_field(&call(), (code::MEMBER, Variant::from("Do")));
        assert!(Frame::new(again, PassedFds::default()).is_none());
        let wrong = with_field(&call(), (code::REPLY_SERIAL, Variant::from("7")));
        assert!(Frame::new(wrong, PassedFds::default()).is_none());
        let fds = with_field(&call(), (code::UNIX_FDS, Variant::from(1u32)));
        assert!(Frame::new(fds, PassedFds::default()).is_none());
        assert!(Frame::new(call()[..20].to_vec(), PassedFds::default()).is_none());
        assert!(Frame::new(vec![], PassedFds::default()).is_none());
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
