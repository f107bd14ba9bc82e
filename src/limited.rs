//! Lists from a peer, with a maximum number of elements.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

/// A list of at most `MAX` elements. Parsing stops at the first element above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limited<T, const MAX: usize>(pub Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Limited<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Elements(PhantomData))
    }
}

struct Elements<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Elements<T, MAX> {
    type Value = Limited<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = seq.next_element()? {
            if elements.len() == MAX {
                return Err(de::Error::invalid_length(MAX + 1, &self));
            }
            elements.push(element);
        }
        elements.shrink_to_fit();
        Ok(Limited(elements))
    }
}

#[cfg(test)]
mod tests {
    use super::Limited;

    #[test]
    fn refuses_an_element_above_the_limit() {
        let read = |text| serde_json::from_str::<Limited<u8, 3>>(text);
        assert_eq!(read("[1, 2, 3]").unwrap().0, [1, 2, 3]);
        let error = read("[1, 2, 3, 4]").unwrap_err().to_string();
        assert!(error.contains("at most 3"), "{error}");
    }
}
