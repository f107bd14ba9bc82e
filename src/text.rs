//! Text from QEMU. A guest that controls its QEMU process chooses every byte of it.

use std::borrow::Borrow;
use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// A short, printable text from a QEMU: at most [`Text::MAX`] bytes, no control characters.
///
/// Texts of QEMU reach terminals, the journal and D-Bus messages, where a NUL would end the connection of the
/// service. A reply with a name that does not fit this type is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Text(Box<str>);

/// The reason why a text is not a [`Text`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadText {
    /// The text is too long.
    #[error("a name of more than {} bytes", Text::MAX)]
    Long,
    /// The text has control characters.
    #[error("a name with control characters")]
    Unprintable,
}

impl Text {
    /// The maximum length, in bytes. QOM paths end with the ids of devices, for which QEMU has no limit. The
    /// longest recorded path has 320 bytes.
    pub const MAX: usize = 512;

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns any text, cut after [`Text::MAX`] bytes and without control characters.
    pub fn lossy(text: &str) -> Self {
        let mut end = text.len().min(Self::MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let clean = |c: char| if is_unprintable(c) { '\u{fffd}' } else { c };
        // A replacement character has up to three bytes for one, so the text is cut again.
        let mut out = String::new();
        for c in text[..end].chars().map(clean) {
            if out.len() + c.len_utf8() > Self::MAX {
                break;
            }
            out.push(c);
        }
        Self(out.into())
    }
}

impl Borrow<str> for Text {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<&str> for Text {
    type Error = BadText;

    fn try_from(text: &str) -> Result<Self, BadText> {
        match text {
            text if text.len() > Self::MAX => Err(BadText::Long),
            text if text.chars().any(is_unprintable) => Err(BadText::Unprintable),
            text => Ok(Self(text.into())),
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Checked)
    }
}

/// Checks a text before it is copied.
struct Checked;

impl Visitor<'_> for Checked {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
        Text::try_from(text).map_err(E::custom)
    }
}

/// Returns whether `c` has no glyph and changes the display of other characters: it controls a terminal,
/// begins a line, changes the direction of text, or has no width.
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{061c}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_length_are_refused() {
        assert!(serde_json::from_str::<Text>(r#""vcpu1""#).is_ok());
        assert!(serde_json::from_str::<Text>(r#""a\u0000b""#).is_err());
        assert!(serde_json::from_str::<Text>(r#""a\u001b[2J""#).is_err());
        assert!(serde_json::from_str::<Text>(&format!("{:?}", "x".repeat(513))).is_err());
    }

    #[test]
    fn lossy_always_fits() {
        assert_eq!(Text::lossy("a\nb\u{7f}").as_str(), "a\u{fffd}b\u{fffd}");
        assert_eq!(Text::lossy("\u{202e}gpj.").as_str(), "\u{fffd}gpj.");
        assert!(Text::lossy(&"\n".repeat(5000)).as_str().len() <= Text::MAX);
        assert!(Text::lossy(&"ä".repeat(5000)).as_str().len() <= Text::MAX);
    }
}
