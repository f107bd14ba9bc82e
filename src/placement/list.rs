//! Lists of host CPUs, of memory nodes and of vCPUs, in the list syntax of the kernel (`cpuset(7)`,
//! "List format"): `0-3,8`.

use std::fmt::{self, Debug};
use std::hash::Hash;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, Serializer};

use crate::ids::{MAX_VCPUS, VcpuId};

/// The things that a [`List`] numbers.
pub trait Numbered: Copy + Debug + Default + Eq + Hash {
    /// The word for one of them.
    const NOUN: &'static str;
    /// All numbers are below this limit.
    const LIMIT: u32;
}

/// Host CPUs; at most 8192 (the greatest `NR_CPUS` of a kernel).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cpu;

impl Numbered for Cpu {
    const NOUN: &'static str = "host CPU";
    const LIMIT: u32 = 8192;
}

/// NUMA nodes of the host; at most 1024 (`MAX_NUMNODES`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Node;

impl Numbered for Node {
    const NOUN: &'static str = "memory node";
    const LIMIT: u32 = 1024;
}

impl Numbered for VcpuId {
    const NOUN: &'static str = "vCPU";
    const LIMIT: u32 = MAX_VCPUS;
}

/// A set of host CPUs.
pub type CpuList = List<Cpu>;
/// A set of memory nodes.
pub type NodeList = List<Node>;
/// A set of vCPUs.
pub type VcpuList = List<VcpuId>;

/// A set of numbers below [`Numbered::LIMIT`]. Its text has the list syntax of the kernel.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct List<K: Numbered> {
    /// Bit N of word W is number 64 W + N. The last word is never 0, so equal sets have equal words.
    words: Vec<u64>,
    kind: PhantomData<K>,
}

/// The reason why a text is not a list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// An item is neither a number nor a range.
    #[error("{item:?} is neither a {noun} nor a range of them, such as 3 or 0-3")]
    NotANumber {
        /// The word for one of the numbered things.
        noun: &'static str,
        /// The item, shortened.
        item: String,
    },
    /// The end of a range is before its start.
    #[error("the range {item:?} runs backwards")]
    Backwards {
        /// The item.
        item: String,
    },
    /// The number reaches the limit.
    #[error("no {noun} has the number {number}: they end at {}", limit - 1)]
    TooLarge {
        /// The word for one of the numbered things.
        noun: &'static str,
        /// The number.
        number: u64,
        /// The limit.
        limit: u32,
    },
}

impl<K: Numbered> List<K> {
    /// Returns whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Returns whether `number` is in the set.
    pub fn contains(&self, number: u32) -> bool {
        let (word, bit) = position(number);
        self.words.get(word).is_some_and(|w| w & bit != 0)
    }

    /// Returns the numbers, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        let bits = |(at, word): (usize, &u64)| {
            let word = *word;
            (0..64)
                .filter(move |bit| word >> bit & 1 == 1)
                .map(move |bit| at as u32 * 64 + bit)
        };
        self.words.iter().enumerate().flat_map(bits)
    }

    /// Returns the numbers that are in both sets.
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a & b)
    }

    /// Returns the numbers that are in either set.
    pub fn union(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a | b)
    }

    /// Returns the numbers that are in this set and not in `other`.
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a & !b)
    }

    /// Returns the set as a bitmap of 64 numbers in each word, lowest first, without empty words at the end.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Returns the set of a bitmap as [`List::words`] returns it. Numbers at the limit or above are ignored.
    pub fn from_words(mut words: Vec<u64>) -> Self {
        words.truncate(K::LIMIT as usize / 64);
        let used = words.iter().rposition(|w| *w != 0).map_or(0, |at| at + 1);
        words.truncate(used);
        Self {
            words,
            kind: PhantomData,
        }
    }

    /// Adds the numbers of `range`, which are below the limit.
    fn insert(&mut self, range: RangeInclusive<u32>) {
        let words = *range.end() as usize / 64 + 1;
        self.words.resize(self.words.len().max(words), 0);
        for number in range {
            let (word, bit) = position(number);
            self.words[word] |= bit;
        }
    }

    fn combine(&self, other: &Self, operation: fn(u64, u64) -> u64) -> Self {
        let word = |list: &Self, at| list.words.get(at).copied().unwrap_or(0);
        let words = 0..self.words.len().max(other.words.len());
        let combined = words.map(|at| operation(word(self, at), word(other, at)));
        Self::from_words(combined.collect())
    }

    /// Returns the ranges of consecutive numbers, in ascending order.
    fn ranges(&self) -> Vec<(u32, u32)> {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for number in self.iter() {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => ranges.push((number, number)),
            }
        }
        ranges
    }
}

/// Returns the index of the word of a number, and its bit.
fn position(number: u32) -> (usize, u64) {
    (number as usize / 64, 1 << (number % 64))
}

impl<K: Numbered> FromIterator<u32> for List<K> {
    /// Returns the set of these numbers. Numbers at the limit or above are ignored.
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        let mut list = Self::default();
        for number in numbers.into_iter().filter(|number| *number < K::LIMIT) {
            list.insert(number..=number);
        }
        list
    }
}

impl FromIterator<VcpuId> for VcpuList {
    fn from_iter<I: IntoIterator<Item = VcpuId>>(vcpus: I) -> Self {
        vcpus.into_iter().map(VcpuId::get).collect()
    }
}

impl<K: Numbered> FromStr for List<K> {
    type Err = ListError;

    /// Reads the list syntax. Space around the list and its items is ignored. An empty text is the empty list,
    /// as the kernel writes it.
    fn from_str(text: &str) -> Result<Self, ListError> {
        let mut list = Self::default();
        if text.trim().is_empty() {
            return Ok(list);
        }
        for item in text.split(',') {
            list.insert(range::<K>(item.trim())?);
        }
        Ok(list)
    }
}

/// Returns the range of one item.
fn range<K: Numbered>(item: &str) -> Result<RangeInclusive<u32>, ListError> {
    let shown = || item.chars().take(32).collect();
    let number = |digits: &str| {
        let noun = K::NOUN;
        let valid = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let number: u64 = match digits.parse() {
            Ok(number) if valid => number,
            _ => {
                let item = shown();
                return Err(ListError::NotANumber { noun, item });
            }
        };
        u32::try_from(number)
            .ok()
            .filter(|number| *number < K::LIMIT)
            .ok_or(ListError::TooLarge {
                noun,
                number,
                limit: K::LIMIT,
            })
    };
    let (first, last) = match item.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(item)?, number(item)?),
    };
    if first > last {
        return Err(ListError::Backwards { item: shown() });
    }
    Ok(first..=last)
}

impl<K: Numbered> fmt::Display for List<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.ranges().into_iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

impl<K: Numbered> Debug for List<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

impl<K: Numbered> Serialize for List<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, K: Numbered> Deserialize<'de> for List<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn list(text: &str) -> CpuList {
        text.parse().unwrap()
    }

    #[test]
    fn reads_and_writes_the_syntax_of_the_kernel() {
        for (text, written) in [
            ("0-3,8", "0-3,8"),
            ("", ""),
            ("\n", ""),
            ("8,0-3\n", "0-3,8"),
            (" 1 , 2 ,3", "1-3"),
            ("0-4,2-6", "0-6"),
            ("63,64", "63-64"),
            ("8191", "8191"),
            ("0-8191", "0-8191"),
        ] {
            assert_eq!(list(text).to_string(), written, "{text:?}");
        }
    }

    #[test]
    fn an_error_names_the_item() {
        for (text, wrong) in [
            (
                "0-3,x",
                "\"x\" is neither a host CPU nor a range of them, such as 3 or 0-3",
            ),
            (
                "1,,2",
                "\"\" is neither a host CPU nor a range of them, such as 3 or 0-3",
            ),
            (
                "-1",
                "\"-1\" is neither a host CPU nor a range of them, such as 3 or 0-3",
            ),
            (
                "+1",
                "\"+1\" is neither a host CPU nor a range of them, such as 3 or 0-3",
            ),
            (
                "0-6:2/3",
                "\"0-6:2/3\" is neither a host CPU nor a range of them, such as 3 or 0-3",
            ),
            (
                "99999999999999999999",
                "\"99999999999999999999\" is neither a host CPU nor a range of them, such as 3 or 0-3",
            ),
            ("3-1", "the range \"3-1\" runs backwards"),
            ("8192", "no host CPU has the number 8192: they end at 8191"),
            (
                "0-4294967296",
                "no host CPU has the number 4294967296: they end at 8191",
            ),
        ] {
            let error = text.parse::<CpuList>().unwrap_err();
            assert_eq!(error.to_string(), wrong, "{text:?}");
        }
        let error = "1024".parse::<NodeList>().unwrap_err().to_string();
        assert_eq!(
            error,
            "no memory node has the number 1024: they end at 1023"
        );
    }

    fn numbers() -> impl Strategy<Value = BTreeSet<u32>> {
        prop::collection::btree_set(0..Cpu::LIMIT, 0..40)
    }

    proptest! {
        #[test]
        fn a_list_is_the_same_after_writing_and_reading(set in numbers()) {
            let list: CpuList = set.iter().copied().collect();
            prop_assert_eq!(list.iter().collect::<BTreeSet<_>>(), set.clone());
            prop_assert_eq!(list.len(), set.len());
            prop_assert_eq!(&list.to_string().parse::<CpuList>().unwrap(), &list);
            prop_assert_eq!(&CpuList::from_words(list.words().to_vec()), &list);
            let json = serde_json::to_string(&list).unwrap();
            prop_assert_eq!(serde_json::from_str::<CpuList>(&json).unwrap(), list);
        }

        #[test]
        fn operations_match_those_of_sets(a in numbers(), b in numbers()) {
            let list = |set: &BTreeSet<u32>| set.iter().copied().collect::<CpuList>();
            let (x, y) = (list(&a), list(&b));
            prop_assert_eq!(x.intersection(&y), list(&(&a & &b)));
            prop_assert_eq!(x.union(&y), list(&(&a | &b)));
            prop_assert_eq!(x.difference(&y), list(&(&a - &b)));
        }

        #[test]
        fn no_text_panics(text in "[0-9,\\- x:/]{0,40}") {
            if let Ok(list) = text.parse::<CpuList>() {
                prop_assert_eq!(list.to_string().parse::<CpuList>().unwrap(), list);
            }
        }
    }
}
