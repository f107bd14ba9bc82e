//! Owns the form of texts of the service in the window. It must not know what they say.

/// Returns a text of the service as a sentence: without the name of the machine, which the window shows, and with a
/// capital letter. Names in lower case, such as vcpud, stay.
pub(crate) fn sentence(text: &str) -> String {
    let prefix = text
        .strip_prefix("machine ")
        .and_then(|rest| rest.split_once(": "));
    let text = prefix.map_or(text, |(_, rest)| rest);
    let mut letters = text.chars();
    match letters.next() {
        Some(first) if !text.starts_with("vcpu") && !text.starts_with("vCPU") => {
            first.to_uppercase().chain(letters).collect()
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_shows_the_machine_elsewhere() {
        let text = "machine web: cannot add 3 vCPUs: only 2 are free";
        assert_eq!(sentence(text), "Cannot add 3 vCPUs: only 2 are free");
        assert_eq!(sentence("vCPU 3 stays"), "vCPU 3 stays");
        assert_eq!(sentence(""), "");
    }
}
