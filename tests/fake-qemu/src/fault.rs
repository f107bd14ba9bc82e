//! What may go wrong with one message of a peer.

use serde_json::{Value, json};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The command is not executed, and the connection ends.
    Unheard,
    /// The connection ends before the message.
    HangUp,
    /// The connection ends in the middle of the message.
    Half,
    /// Nothing comes any more, from this message on.
    Silence,
    /// The message does not come, but all after it.
    Lost,
    /// It comes twice.
    Twice,
    /// Bytes that are no text come instead.
    Garbage,
    /// It is no object.
    NoObject,
    /// What it says is of another type.
    WrongType,
    /// A reply that answers another command.
    WrongId,
    /// QEMU says that it did not do what it did.
    Denial,
    /// JSON of more levels than anyone's stack has.
    Deep,
    /// A line that is longer than any message.
    Long,
}

/// What comes of a message, and whether more comes after it.
pub enum Outcome {
    /// These bytes.
    Bytes(Vec<u8>),
    /// These, and then the connection ends.
    Last(Vec<u8>),
    /// Nothing, for as long as the client stays.
    Silence,
}

impl Fault {
    /// All faults.
    pub const ALL: [Self; 13] = [
        Self::Unheard,
        Self::HangUp,
        Self::Half,
        Self::Silence,
        Self::Lost,
        Self::Twice,
        Self::Garbage,
        Self::NoObject,
        Self::WrongType,
        Self::WrongId,
        Self::Denial,
        Self::Deep,
        Self::Long,
    ];

    /// What it makes of `message`.
    pub fn befall(self, message: &Value) -> Outcome {
        let line = |message: &Value| format!("{message}\r\n").into_bytes();
        let mut wrong = message.clone();
        let bytes = match self {
            Self::Unheard | Self::HangUp => return Outcome::Last(Vec::new()),
            Self::Half => {
                let mut bytes = line(message);
                bytes.truncate(bytes.len() / 2);
                return Outcome::Last(bytes);
            }
            Self::Silence => return Outcome::Silence,
            Self::Lost => Vec::new(),
            Self::Twice => line(message).repeat(2),
            Self::Garbage => b"\xff\xfe\x00\x1b]0;owned\x07\r\n".to_vec(),
            Self::NoObject => b"[[], 7, \"return\"]\r\n".to_vec(),
            Self::WrongType => {
                for key in ["QMP", "return", "data"] {
                    if let Some(value) = wrong.get_mut(key) {
                        *value = json!(-7);
                    }
                }
                line(&wrong)
            }
            Self::WrongId => {
                wrong["id"] = json!(u64::MAX);
                line(&wrong)
            }
            // That it cannot tell which CPUs there can be would be the truth of many a machine.
            Self::Denial if message["return"] != json!({}) => line(message),
            Self::Denial => {
                let error = json!({"class": "GenericError", "desc": "\u{1b}[31mno\u{0}\n"});
                line(&json!({"error": error, "id": message["id"]}))
            }
            Self::Deep => {
                let depth = 100_000;
                let value = "[".repeat(depth) + &"]".repeat(depth);
                format!("{{\"return\": {value}, \"id\": {}}}\r\n", message["id"]).into_bytes()
            }
            Self::Long => vec![b'x'; (4 << 20) + 1],
        };
        Outcome::Bytes(bytes)
    }
}
