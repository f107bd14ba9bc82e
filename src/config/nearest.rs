//! Suggestions for unknown keys.

/// Returns the text "unknown key", with the key of `known` that is nearest to `key`, or with all keys if
/// none is near.
pub(super) fn unknown(what: &str, key: &str, known: &[&str]) -> String {
    let key: String = key.chars().take(64).collect();
    let distance = |known: &&&str| strsim::damerau_levenshtein(&key.to_lowercase(), known);
    let near = known.iter().min_by_key(distance);
    // A third of the letters may be wrong.
    let near = near.filter(|known| distance(known) <= known.len().div_ceil(3));
    match near {
        Some(near) => format!("unknown {what}; did you mean {near:?}?"),
        None => format!("unknown {what}; the known ones are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::unknown;

    #[test]
    fn the_nearest_key_is_named() {
        let known = ["affinity", "slice"];
        let is = |key| unknown("key", key, &known);
        assert_eq!(is("affinty"), "unknown key; did you mean \"affinity\"?");
        assert_eq!(is("Slcie"), "unknown key; did you mean \"slice\"?");
        assert_eq!(
            is("color"),
            "unknown key; the known ones are affinity, slice"
        );
        assert_eq!(is(""), "unknown key; the known ones are affinity, slice");
    }
}
