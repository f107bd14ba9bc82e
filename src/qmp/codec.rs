//! QMP's framing: one JSON object a line. Pure: bytes in, [`Message`]s out.

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_util::bytes::{Buf, BytesMut};
use tokio_util::codec::Decoder;

use super::event::Event;
use crate::text::Text;

/// The buffer shrinks after each line that is longer.
const KEPT: usize = 64 << 10;

/// What QEMU sends.
#[derive(Debug)]
pub enum Message {
    /// The first line of a connection.
    Greeting,
    /// The answer to the command of this id.
    Reply {
        /// The id that the command was sent with; `None` where QEMU could not read the command.
        id: Option<u64>,
        /// The `return` value, not parsed yet, or QEMU's refusal.
        result: Result<Box<RawValue>, CommandError>,
    },
    /// Something happened.
    Event(Event),
}

/// QEMU's refusal of a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{class}: {desc}")]
pub struct CommandError {
    /// The error class; nearly always `GenericError`.
    pub class: Text,
    /// QEMU's text for people.
    pub desc: Text,
}

/// The peer does not speak QMP, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// A line longer than the limit.
    #[error("a line of more than {limit} bytes")]
    Oversized {
        /// The limit in bytes.
        limit: usize,
    },
    /// A line that is no QMP message.
    #[error("a line that is no QMP message: {0}")]
    Message(Text),
    /// The connection failed below QMP.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Splits a byte stream into messages; memory stays below the limit for a line.
#[derive(Debug)]
pub struct Codec {
    limit: usize,
    /// How much of the buffer was searched for the end of the line.
    searched: usize,
    /// Whether the first line may be the end of one.
    torn: bool,
}

impl Codec {
    /// Room for 4,096 CPUs eight times over (`query-hotpluggable-cpus` of them is 492 KB).
    pub const DEFAULT_LIMIT: usize = 4 << 20;

    /// A codec that takes lines of up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            searched: 0,
            torn: false,
        }
    }

    /// The same for a stream of which somebody else has read the beginning: a first line that is
    /// no message is passed over, as it may be the end of one.
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
                return Ok(None);
            }
            self.searched = 0;
            let line = buffer.split_to(length);
            buffer.advance(1);
            if length > KEPT && buffer.len() <= KEPT {
                // Otherwise the buffer keeps the size of the longest line until the connection ends.
                *buffer = BytesMut::from(&buffer[..]);
            }
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

/// The members of any message.
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
    // The parser's texts quote what they did not expect.
    let malformed =
        |error: &dyn std::fmt::Display| Malformed::Message(Text::lossy(&error.to_string()));
    // 7.2 and later send UTF-8 only; what is none is no JSON either.
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
        Err(malformed(&"neither greeting, return, error nor event"))
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
    fn every_kind_of_message() {
        let messages = decode_all(&mut Codec::new(4096), &[TRAFFIC.as_bytes()]).unwrap();
        assert_eq!(messages.len(), 5, "{messages:#?}");
        assert_eq!(messages[0], "Greeting");
        assert!(messages[1].contains("id: Some(1)"));
        assert!(messages[3].contains("Duplicate device ID 'c5'"));
        assert!(messages[4].contains("/machine/peripheral/X/lapic"));
    }

    proptest! {
        #[test]
        fn split_anywhere_it_is_the_same(cuts in prop::collection::vec(0..TRAFFIC.len(), 0..9)) {
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
    fn a_line_over_the_limit_ends_it_before_it_is_complete() {
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
    fn what_is_no_message_is_malformed() {
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
