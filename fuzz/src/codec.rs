//! The framing of QMP (`vcpud::qmp::Codec`): data of QEMU in any pieces.

use tokio_util::bytes::BytesMut;
use tokio_util::codec::Decoder;
use vcpud::inventory::{CpuInfoFast, HotpluggableCpu};
use vcpud::qmp::{AcpiOst, Codec, Event, Malformed, Message};
use vcpud::statistics::VcpuKvm;
use vcpud::text::Text;

/// A low limit, so that short inputs have lines above it.
const LIMIT: usize = 512;
/// The number of bytes that are read at a time.
const READ: usize = 8 << 10;

/// A stream has the same messages in any pieces, at most one line of it is buffered, and its texts are
/// printable.
pub fn codec(data: &[u8]) {
    let whole = decode(Codec::new(LIMIT), &mut data.chunks(READ));
    assert_eq!(decode(Codec::new(LIMIT), &mut data.chunks(1)), whole);
    // The sizes of the pieces depend on the bytes.
    let mut seed = data.iter().fold(0x9e37_79b9_u32, |seed, byte| {
        (seed ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    let mut rest = data;
    let mut pieces = std::iter::from_fn(|| {
        seed = seed.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
        let length = (seed >> 24) as usize % 97 + 1;
        let (piece, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    });
    assert_eq!(decode(Codec::new(LIMIT), &mut pieces), whole);
    assert_eq!(line_by_line(data), whole);

    // A codec that begins in the middle of a line decodes the same, except the rest of that line.
    let resumed = decode(Codec::resumed(LIMIT), &mut data.chunks(READ));
    if resumed != whole {
        let after = data.iter().position(|byte| *byte == b'\n');
        let after = after.expect("the rest of a line was ignored") + 1;
        assert!(matches!(&whole[..], [Err(error)] if error.contains("not a QMP message")));
        let rest = decode(Codec::new(LIMIT), &mut data[after..].chunks(READ));
        assert_eq!(resumed, rest);
    }
}

/// The messages and errors as text, up to the first error.
type Said = Vec<Result<String, String>>;

fn decode(mut codec: Codec, pieces: &mut dyn Iterator<Item = &[u8]>) -> Said {
    let mut buffer = BytesMut::new();
    let mut said = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match codec.decode(&mut buffer) {
                Ok(Some(message)) => {
                    check(&message);
                    said.push(Ok(format!("{message:?}")));
                }
                Ok(None) => break,
                Err(error) => {
                    said.push(Err(in_words(&error)));
                    return said;
                }
            }
        }
        assert!(buffer.len() <= LIMIT, "{} bytes are buffered", buffer.len());
    }
    said
}

/// Decodes each line separately, as the specification describes.
fn line_by_line(data: &[u8]) -> Said {
    let mut said = Vec::new();
    let mut lines = data.split(|byte| *byte == b'\n').peekable();
    while let Some(line) = lines.next() {
        let is_whole = lines.peek().is_some();
        if line.len() > LIMIT {
            let limit = LIMIT;
            said.push(Err(in_words(&Malformed::Oversized { limit })));
            break;
        }
        if !is_whole || line.trim_ascii().is_empty() {
            continue;
        }
        let line = [line, b"\n"].concat();
        let mut one = decode(Codec::new(LIMIT), &mut [&line[..]].into_iter());
        assert_eq!(one.len(), 1, "one line is one message");
        let is_too_long = matches!(&one[0], Err(error) if error.contains("a line of more than"));
        assert!(!is_too_long, "the line is not above the limit");
        let is_wrong = one[0].is_err();
        said.append(&mut one);
        if is_wrong {
            break;
        }
    }
    said
}

fn in_words(error: &Malformed) -> String {
    let words = error.to_string();
    assert!(
        words.len() <= 4 * LIMIT,
        "{} bytes of an error",
        words.len()
    );
    words
}

/// Checks that the texts of a message are printable, and reads its value as the types of the commands.
fn check(message: &Message) {
    match message {
        Message::Greeting => {}
        Message::Reply {
            result: Ok(value), ..
        } => {
            let value = value.get();
            let _ = serde_json::from_str::<Vec<HotpluggableCpu>>(value);
            let _ = serde_json::from_str::<Vec<CpuInfoFast>>(value);
            let _ = serde_json::from_str::<Vec<AcpiOst>>(value);
            let _ = serde_json::from_str::<Vec<VcpuKvm>>(value);
        }
        Message::Reply {
            result: Err(error), ..
        } => {
            harmless(&error.class);
            harmless(&error.desc);
        }
        Message::Event(event) => match event {
            Event::DeviceDeleted { device, path } | Event::UnplugGuestError { device, path } => {
                device.iter().for_each(harmless);
                harmless(path);
            }
            Event::AcpiCpuOst(ost) => {
                ost.device.iter().for_each(harmless);
                harmless(&ost.slot);
                assert_eq!(ost.slot_type.as_str(), "CPU");
            }
            Event::Reset | Event::RunState | Event::Other => {}
        },
    }
}

fn harmless(text: &Text) {
    assert!(text.as_str().len() <= Text::MAX);
    assert!(!text.as_str().chars().any(char::is_control));
}
