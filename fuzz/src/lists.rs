//! Lists of host CPUs, memory nodes and vCPUs (`vcpud::placement::List`).

use std::collections::BTreeSet;

use vcpud::ids::VcpuId;
use vcpud::placement::{Cpu, List, Node, Numbered};

/// A list has the numbers in its text, and survives serialization.
pub fn lists(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    check::<Cpu>(text);
    check::<Node>(text);
    check::<VcpuId>(text);
}

fn check<K: Numbered>(text: &str) {
    let parsed = text.parse::<List<K>>();
    let expected = numbers(text, K::LIMIT);
    let list = match parsed {
        Ok(list) => list,
        Err(error) => {
            assert!(expected.is_none(), "{text:?} is a list: {error}");
            // Errors quote a short part of a long item, also if it is escaped.
            assert!(error.to_string().len() < 512, "{error}");
            return;
        }
    };
    let expected = expected.unwrap_or_else(|| panic!("{text:?} is not a list"));
    assert!(list.iter().eq(expected.iter().copied()));
    assert_eq!(list.len(), expected.len());
    assert_eq!(list.is_empty(), expected.is_empty());
    for number in [0, 1, 63, 64, K::LIMIT - 1, K::LIMIT, u32::MAX] {
        assert_eq!(list.contains(number), expected.contains(&number));
    }

    let written = list.to_string();
    assert_eq!(written.parse::<List<K>>().as_ref(), Ok(&list), "{written}");
    assert_eq!(List::<K>::from_words(list.words().to_vec()), list);
    assert_eq!(expected.iter().copied().collect::<List<K>>(), list);
    let json = serde_json::to_string(&list).expect("it can be serialized");
    assert_eq!(
        serde_json::from_str::<List<K>>(&json).ok(),
        Some(list.clone())
    );
    assert_eq!(list.union(&list), list);
    assert_eq!(list.intersection(&list), list);
    assert!(list.difference(&list).is_empty());
}

/// Returns the numbers below `limit` in a list in the syntax of `cpuset(7)`; `None` if it is not a list.
fn numbers(text: &str, limit: u32) -> Option<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    if text.trim().is_empty() {
        return Some(numbers);
    }
    let number = |digits: &str| {
        let is_number = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit());
        let number: u128 = is_number.then(|| digits.parse().ok())??;
        (number < u128::from(limit)).then_some(number as u32)
    };
    for item in text.split(',').map(str::trim) {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}
