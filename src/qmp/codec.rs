//! The framing of QMP: one JSON object in each line. Pure: bytes in, [`Message`]s out.

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_util::bytes::{Buf, BytesMut};
use tokio_util::codec::Decoder;

use super::event::Event;
use crate::text::Text;

/// The number of bytes that fit in the buffer at least while a line is incomplete.
const READ: usize = 4 << 10;

/// A message of QEMU.
#[derive(Debug)]
pub enum Message {
    /// The first line of a connection.
    Greeting,
    /// The reply to a command.
    Reply {
        /// The id of the command; `None` if QEMU could not read the command.
        id: Option<u64>,
        /// The `return` value, not parsed yet, or the refusal.
        result: Result<Box<RawValue>, CommandError>,
    },
    /// An event.
    Event(Event),
}

/// The refusal of a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{class}: {desc}")]
pub struct CommandError {
    /// The error class; almost always `GenericError`.
    pub class: Text,
    /// The text for users.
    pub desc: Text,
}

/// The reason why data of the peer is not QMP.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// A line is longer than the limit.
    #[error("a line of more than {limit} bytes")]
    Oversized {
        /// The limit in bytes.
        limit: usize,
    },
    /// A line is not a QMP message.
    #[error("a line is not a QMP message: {0}")]
    Message(Text),
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Splits a byte stream into messages. It needs less memory than the limit for a line.
#[derive(Debug)]
pub struct Codec {
    limit: usize,
    /// The number of bytes in the buffer that were searched for the end of the line.
    searched: usize,
    /// Whether the first line may be incomplete.
    torn: bool,
}

impl Codec {
    /// Eight times the size of `query-hotpluggable-cpus` with 4,096 CPUs (492 KB).
    pub const DEFAULT_LIMIT: usize = 4 << 20;

    /// Returns a codec for lines of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            searched: 0,
            torn: false,
        }
    }

    /// Returns a codec for a stream whose beginning the previous instance has read. It ignores a first line
    /// that is not a message, because it may be incomplete.
    pub fn resumed(limit: usize) -> Self {
        Self {
            torn: true,
            ..Self::new(limit)
        }
    }
}

impl Decoder for Codec {
    type Item = Message;
    type Error = Malformed;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Message>, Malformed> {
        loop {
            let end = buffer[self.searched..].iter().position(|&b| b == b'\n');
            let length = end.map_or(buffer.len(), |i| self.searched + i);
            if length > self.limit {
                return Err(Malformed::Oversized { limit: self.limit });
            }
            if end.is_none() {
                self.searched = buffer.len();
                if buffer.is_empty() {
                    // An idle connection needs no buffer, and none keeps the size of its longest line.
                    *buffer = BytesMut::new();
                } else {
                    buffer.reserve(READ);
                }
                return Ok(None);
            }
            self.searched = 0;
            let line = buffer.split_to(length);
            buffer.advance(1);
            let torn = std::mem::take(&mut self.torn);
            if line.trim_ascii().is_empty() {
                continue;
            }
            match parse(&line) {
                Err(_) if torn => {}
                message => return message.map(Some),
            }
        }
    }
}

/// The members of all kinds of messages.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "QMP", borrow, default)]
    greeting: Option<&'a RawValue>,
    #[serde(rename = "return", default)]
    value: Option<Box<RawValue>>,
    #[serde(default)]
    error: Option<ErrorBody>,
    #[serde(default)]
    event: Option<String>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ErrorBody {
    class: String,
    desc: String,
}

fn parse(line: &[u8]) -> Result<Message, Malformed> {
    // The texts of the parser quote unexpected input.
    let malformed =
        |error: &dyn std::fmt::Display| Malformed::Message(Text::lossy(&error.to_string()));
    // QEMU 7.2 and later send only UTF-8. Other bytes are not JSON.
    let text = std::str::from_utf8(line).map_err(|e| malformed(&e))?;
    let line: Line<'_> = serde_json::from_str(text).map_err(|e| malformed(&e))?;
    let id = line.id.and_then(|id| serde_json::from_str(id.get()).ok());
    if let Some(name) = line.event {
        let data = line.data.map_or("{}", RawValue::get);
        let event = Event::parse(&name, data).map_err(|e| malformed(&e))?;
        Ok(Message::Event(event))
    } else if let Some(ErrorBody { class, desc }) = line.error {
        let error = CommandError {
            class: Text::lossy(&class),
            desc: Text::lossy(&desc),
        };
        Ok(Message::Reply {
            id,
            result: Err(error),
        })
    } else if let Some(value) = line.value {
        Ok(Message::Reply {
            id,
            result: Ok(value),
        })
    } else if line.greeting.is_some() {
        Ok(Message::Greeting)
    } else {
        Err(malformed(&"it has no greeting, return, error or event"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode_all(codec: &mut Codec, chunks: &[&[u8]]) -> Result<Vec<String>, Malformed> {
        let mut buffer = BytesMut::new();
        let mut messages = Vec::new();
        for chunk in chunks {
            buffer.extend_from_slice(chunk);
            while let Some(message) = codec.decode(&mut buffer)? {
                messages.push(format!("{message:?}"));
            }
        }
        Ok(messages)
    }

    const TRAFFIC: &str = concat!(
        r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}"#,
        "\r\n",
        r#"{"return": {}, "id": 1}"#,
        "\r\n\r\n",
        r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RTC_CHANGE", "data": {"offset": 0}}"#,
        "\n",
        r#"{"id": 2, "error": {"class": "GenericError", "desc": "Duplicate device ID 'c5'"}}"#,
        "\n",
        r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "DEVICE_DELETED", "data": {"path": "/machine/peripheral/X/lapic"}}"#,
        "\n",
    );

    #[test]
    fn decodes_every_kind_of_message() {
        let messages = decode_all(&mut Codec::new(4096), &[TRAFFIC.as_bytes()]).unwrap();
        assert_eq!(messages.len(), 5, "{messages:#?}");
        assert_eq!(messages[0], "Greeting");
        assert!(messages[1].contains("id: Some(1)"));
        assert!(messages[3].contains("Duplicate device ID 'c5'"));
        assert!(messages[4].contains("/machine/peripheral/X/lapic"));
    }

    proptest! {
        #[test]
        fn decodes_the_same_messages_from_any_pieces(cuts in prop::collection::vec(0..TRAFFIC.len(), 0..9)) {
            let mut cuts = cuts;
            cuts.extend([0, TRAFFIC.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> =
                cuts.windows(2).map(|w| &TRAFFIC.as_bytes()[w[0]..w[1]]).collect();
            let whole = decode_all(&mut Codec::new(4096), &[TRAFFIC.as_bytes()]).unwrap();
            prop_assert_eq!(decode_all(&mut Codec::new(4096), &chunks).unwrap(), whole);
        }

        #[test]
        fn junk_never_panics(junk in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_all(&mut Codec::new(128), &[&junk, b"\n"]);
        }
    }

    #[test]
    fn refuses_a_line_above_the_limit_before_it_is_complete() {
        let long = [b'x'; 129];
        let error = decode_all(&mut Codec::new(128), &[&long]).unwrap_err();
        assert!(matches!(error, Malformed::Oversized { limit: 128 }));
        let error = decode_all(&mut Codec::new(128), &[&long, b"\n"]).unwrap_err();
        assert!(matches!(error, Malformed::Oversized { limit: 128 }));
    }

    #[test]
    fn an_error_quotes_at_most_a_short_text_of_the_peer() {
        for line in [
            format!(
                "{{\"event\": \"RESET\", \"{}\": 1, \"event\": 1}}\n",
                "x".repeat(100_000)
            ),
            format!("{{\"error\": \"{}\"}}\n", "x".repeat(100_000)),
            format!(
                "{{\"event\": \"DEVICE_DELETED\", \"data\": \"{}\"}}\n",
                "\u{202e}".repeat(100_000)
            ),
        ] {
            let error = decode_all(&mut Codec::new(1 << 20), &[line.as_bytes()]).unwrap_err();
            let text = error.to_string();
            assert!(text.len() < 2 * Text::MAX, "{} bytes", text.len());
            assert!(!text.contains('\u{202e}'));
        }
    }

    #[test]
    fn refuses_lines_that_are_not_messages() {
        let deep = format!("{}\n", "[".repeat(100_000));
        for junk in [
            "hello\n",
            "{}\n",
            "[]\n",
            "{\"return\n",
            "\u{0}\n",
            "{\"event\": 7}\n",
            &deep,
        ] {
            let result = decode_all(&mut Codec::new(1 << 20), &[junk.as_bytes()]);
            assert!(matches!(result, Err(Malformed::Message(_))), "{junk:.20?}");
        }
        let latin1: &[u8] = b"{\"event\": \"\xe4\"}\n";
        assert!(decode_all(&mut Codec::new(128), &[latin1]).is_err());
    }
}
