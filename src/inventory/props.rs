//! The properties of a slot, which `device_add` takes back as QEMU reported them.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::text::Text;

/// The properties of a slot (`CpuInstanceProperties` in `qapi/machine.json`): at most
/// [`Props::MAX`] integers and short texts, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Props(Box<[(Text, Prop)]>);

/// The value of a property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prop {
    /// An integer, as all properties of QEMU 11 are.
    Number(i64),
    /// A short text.
    Text(Text),
}

impl Props {
    /// The greatest number of properties. QEMU 11 has nine.
    pub const MAX: usize = 16;

    /// Returns the integer `name`; `None` where it is absent or not an integer.
    pub fn number(&self, name: &str) -> Option<i64> {
        let found = self.0.iter().find(|(other, _)| other.as_str() == name);
        match found {
            Some((_, Prop::Number(number))) => Some(*number),
            _ => None,
        }
    }

    /// Returns the properties as arguments of `device_add`.
    pub fn arguments(&self) -> Map<String, Value> {
        let argument = |(name, value): &(Text, Prop)| {
            let value = match value {
                Prop::Number(number) => Value::from(*number),
                Prop::Text(text) => Value::from(text.as_str()),
            };
            (name.to_string(), value)
        };
        self.0.iter().map(argument).collect()
    }
}

impl<'de> Deserialize<'de> for Props {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members)
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Props;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the properties of a CPU")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Props, A::Error> {
        let mut props: Vec<(Text, Prop)> = Vec::new();
        while let Some((name, value)) = map.next_entry::<Text, Prop>()? {
            if props.len() == Props::MAX {
                return Err(de::Error::custom("a CPU with more than 16 properties"));
            }
            if props.iter().any(|(other, _)| *other == name) {
                return Err(de::Error::custom("a CPU with two properties of one name"));
            }
            props.push((name, value));
        }
        Ok(Props(props.into()))
    }
}

/// Not derived: an untagged enum would hold a copy of any value before it refuses it.
impl<'de> Deserialize<'de> for Prop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Scalar)
    }
}

struct Scalar;

impl Visitor<'_> for Scalar {
    type Value = Prop;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an integer or a short text")
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Prop, E> {
        Ok(Prop::Number(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Prop, E> {
        let number = i64::try_from(number);
        number.map_or_else(
            |_| Err(E::custom("a number above 2^63")),
            |n| self.visit_i64(n),
        )
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Prop, E> {
        Text::try_from(text).map(Prop::Text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keeps_integers_and_texts_and_refuses_everything_else() {
        let read = |value: Value| serde_json::from_value::<Props>(value);
        let props = read(json!({"core-id": 3, "model": "host"})).unwrap();
        assert_eq!(props.number("core-id"), Some(3));
        assert_eq!(props.number("model"), None);
        let arguments = Value::Object(props.arguments());
        assert_eq!(arguments, json!({"core-id": 3, "model": "host"}));
        for other in [
            json!({"a": []}),
            json!({"a": {}}),
            json!({"a": null}),
            json!({"a": 0.5}),
            json!({"a": "x".repeat(Text::MAX + 1)}),
            json!([1]),
        ] {
            assert!(read(other.clone()).is_err(), "{other:.80}");
        }
    }

    #[test]
    fn refuses_more_than_sixteen_properties() {
        let many = |count: usize| {
            let members = (0..count).map(|n| (format!("p{n}"), Value::from(n)));
            serde_json::from_value::<Props>(Value::Object(members.collect()))
        };
        assert!(many(Props::MAX).is_ok());
        assert!(many(Props::MAX + 1).is_err());
    }
}
