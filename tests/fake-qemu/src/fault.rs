//! Faults of one message.

use serde_json::{Value, json};

/// A fault of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The command is not executed, and the connection ends.
    Unheard,
    /// The connection ends before the message.
    HangUp,
    /// The connection ends in the middle of the message.
    Half,
    /// Neither this message nor a later one is sent.
    Silence,
    /// The message is not sent, but all later ones are.
    Lost,
    /// The message is sent twice.
    Twice,
    /// Bytes that are not text are sent instead.
    Garbage,
    /// The message is not an object.
    NoObject,
    /// The value of the message has another type.
    WrongType,
    /// The id of the reply belongs to another command.
    WrongId,
    /// QEMU returns an error for a command that it executed.
    Denial,
    /// The message has more levels of JSON than fit on the stack.
    Deep,
    /// The line is longer than any message.
    Long,
}

/// The result of a fault.
pub enum Outcome {
    /// These bytes are sent.
    Bytes(Vec<u8>),
    /// These bytes are sent, and the connection ends.
    Last(Vec<u8>),
    /// Nothing is sent while the client is connected.
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

    /// Returns the result for `message`.
    pub fn apply(self, message: &Value) -> Outcome {
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
            // An error of a query is a correct reply of many machines.
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
