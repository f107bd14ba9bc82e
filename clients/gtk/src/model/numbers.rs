//! Owns lists of numbers such as "0-3,8", and words that agree with numbers. It must not know what is numbered.

/// Returns a list such as `0–3, 8` for users. `numbers` need not be sorted.
pub(crate) fn ranges(numbers: &[u32]) -> String {
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    numbers.dedup();
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match parts.last_mut() {
            Some((_, last)) if number == last.saturating_add(1) => *last = number,
            _ => parts.push((number, number)),
        }
    }
    let part = |(first, last): (u32, u32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}–{last}"),
    };
    let parts: Vec<String> = parts.into_iter().map(part).collect();
    parts.join(", ")
}

/// Returns the numbers of a list such as `0-3,8` that a user has typed, or `None` if it is not such a list or has a
/// number that is not below `limit`.
pub(crate) fn parse(text: &str, limit: u32) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once(['-', '–']).unwrap_or((part, part));
        let first: u32 = first.trim().parse().ok()?;
        let last: u32 = last.trim().parse().ok()?;
        if first > last || last >= limit {
            return None;
        }
        numbers.extend(first..=last);
    }
    numbers.sort_unstable();
    numbers.dedup();
    Some(numbers)
}

/// Returns a text with zeros before its numbers, so that texts with numbers of up to ten digits sort by these numbers.
pub(crate) fn padded(text: &str) -> String {
    let mut padded = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(|letter: char| letter.is_ascii_digit()) {
        let (before, from) = rest.split_at(start);
        let end = from.find(|letter: char| !letter.is_ascii_digit());
        let (number, after) = from.split_at(end.unwrap_or(from.len()));
        padded += &format!("{before}{number:0>10}");
        rest = after;
    }
    padded + rest
}

/// Returns `1 vCPU`, or `2 vCPUs`.
pub(crate) fn count(number: usize) -> String {
    format!("{number} {}", noun(number))
}

/// Returns `vCPU 3`, or `vCPUs 3–5`.
pub(crate) fn named(numbers: &[u32]) -> String {
    format!("{} {}", noun(numbers.len()), ranges(numbers))
}

fn noun(number: usize) -> &'static str {
    match number {
        1 => "vCPU",
        _ => "vCPUs",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_short() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[4, 0, 1, 2, 8, 9]), "0–2, 4, 8, 9");
        assert_eq!(named(&[3]), "vCPU 3");
        assert_eq!(named(&[3, 4]), "vCPUs 3, 4");
        assert_eq!(count(0), "0 vCPUs");
    }

    #[test]
    fn typed_lists_are_checked() {
        assert_eq!(parse("0-2, 5", 8), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse("5,5,4", 8), Some(vec![4, 5]));
        for wrong in ["", "x", "3-1", "8", "0-4294967295", "1,,2"] {
            assert_eq!(parse(wrong, 8), None, "{wrong}");
        }
    }

    #[test]
    fn texts_sort_by_their_numbers() {
        assert_eq!(padded("web9-1"), "web0000000009-0000000001");
        assert_eq!((padded(""), padded("web")), (String::new(), "web".into()));
        assert!(padded("web9") < padded("web10"));
    }
}
