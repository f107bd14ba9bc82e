//! The words of this program for members of D-Bus in the texts of the services.

/// The words of the service for D-Bus callers, and those of this program. `NAME` is the name of the machine.
const WORDS: [(&str, &str); 11] = [
    ("call ListMachines", "run \"vcpuctl list\""),
    ("call List to", "run \"vcpuctl autoscale\" to"),
    (
        "when the property State is not \"disconnected\"",
        "when \"vcpuctl status NAME\" shows another state",
    ),
    ("ListVcpus shows", "\"vcpuctl vcpus NAME\" shows"),
    (
        "VcpuRemoved or VcpuRemovalFailed reports the end",
        "\"vcpuctl wait NAME\" reports the end",
    ),
    (
        "wait for VcpuRemoved or VcpuRemovalFailed and try again",
        "run \"vcpuctl wait NAME\" and try again",
    ),
    (
        "VcpuStarted reports each",
        "\"vcpuctl monitor NAME\" prints each",
    ),
    ("the option \"guest-online\"", "the option --guest-online"),
    ("the option \"until\"", "the option --until"),
    (
        "the property PlacementErrors has the reason",
        "\"vcpuctl status NAME\" shows the reason",
    ),
    (
        "Placement and PlacementErrors show the reason",
        "\"vcpuctl status NAME\" shows the reason",
    ),
];

/// Returns the text of an error with the commands and options of this program instead of members of D-Bus.
pub(crate) fn in_own_words(text: &str, machine: Option<&str>) -> String {
    let machine = machine.unwrap_or("NAME");
    let replace = |text: String, (theirs, own): &(&str, &str)| {
        text.replace(theirs, &own.replace("NAME", machine))
    };
    WORDS.iter().fold(text.to_owned(), replace)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sources with the texts of the services.
    const SOURCES: [&str; 7] = [
        include_str!("../../machine/model/error.rs"),
        include_str!("../../machine/model/error_text.rs"),
        include_str!("../../inventory/plan.rs"),
        include_str!("../../placement/report.rs"),
        include_str!("../../registry/error.rs"),
        include_str!("../../bus/error.rs"),
        include_str!("../vcpud-autoscale/interface.rs"),
    ];

    #[test]
    fn the_service_uses_the_words_that_are_replaced() {
        for (theirs, _) in WORDS {
            let escaped = theirs.replace('"', "\\\"");
            let is_used = SOURCES.iter().any(|source| source.contains(&escaped));
            assert!(is_used, "no error has {theirs:?}");
        }
    }
}
