//! The failures of commands: the messages, and the exit statuses.

use std::io;
use std::process::ExitCode;

use vcpud::names::error_name;
use vcpud::proxy::error_reply;

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("cannot connect to the system bus: {0}")]
    NoBus(#[source] zbus::Error),
    #[error("{0}")]
    Bus(#[from] zbus::Error),
    /// The failure that a dry run predicts.
    #[error("{text}; possible numbers nearest to the request: {nearest}")]
    Denied {
        error_name: String,
        text: String,
        nearest: String,
    },
    /// The configuration was reloaded and has errors.
    #[error("the configuration has errors:\n{}", _0.join("\n"))]
    Configuration(Vec<String>),
    #[error(
        "standard output is not a terminal; use --batch to print tables, or --json to print JSON"
    )]
    NoTerminal,
    #[error("the path {0} is not UTF-8")]
    NotText(String),
    #[error(transparent)]
    Output(#[from] io::Error),
}

impl From<zbus::fdo::Error> for Failure {
    fn from(error: zbus::fdo::Error) -> Self {
        Self::Bus(match error {
            zbus::fdo::Error::ZBus(error) => error,
            other => zbus::Error::FDO(Box::new(other)),
        })
    }
}

impl Failure {
    /// Prints the failure and returns the exit status.
    #[expect(clippy::print_stderr, reason = "this prints the errors")]
    pub(crate) fn report(self) -> ExitCode {
        if let Self::Output(error) = &self
            && error.kind() == io::ErrorKind::BrokenPipe
        {
            // The reader, such as head(1), has closed the pipe.
            return ExitCode::SUCCESS;
        }
        let (name, text) = self.name_and_text();
        eprintln!("vcpuctl: {text}");
        ExitCode::from(exit_status(name.as_deref()))
    }

    /// Returns the message.
    pub(crate) fn text(&self) -> String {
        self.name_and_text().1
    }

    fn name_and_text(&self) -> (Option<String>, String) {
        if let Self::Denied { error_name, .. } = self {
            return (Some(error_name.clone()), self.to_string());
        }
        let Self::Bus(error) = self else {
            return (None, self.to_string());
        };
        let Some((name, text)) = error_reply(error) else {
            return (None, self.to_string());
        };
        let text = match name.as_str() {
            "org.freedesktop.DBus.Error.ServiceUnknown"
            | "org.freedesktop.DBus.Error.NameHasNoOwner" => {
                format!(
                    "vcpud is not running and could not be started: {text}; run \"systemctl status vcpud\" for details"
                )
            }
            _ => in_own_words(&text),
        };
        (Some(name), text)
    }
}

/// The words of the service for D-Bus callers, and those of this program.
const WORDS: [(&str, &str); 10] = [
    ("call ListMachines", "run \"vcpuctl list\""),
    (
        "when the property State is not \"disconnected\"",
        "when \"vcpuctl status\" shows another state",
    ),
    ("ListVcpus shows", "\"vcpuctl vcpus\" shows"),
    (
        "VcpuRemoved or VcpuRemovalFailed reports the end",
        "\"vcpuctl monitor\" prints the end",
    ),
    (
        "wait for VcpuRemoved or VcpuRemovalFailed and try again",
        "wait until \"vcpuctl status\" shows no pending removals, and try again",
    ),
    (
        "VcpuStarted reports each",
        "\"vcpuctl monitor\" prints each",
    ),
    ("the option \"guest-online\"", "the option --guest-online"),
    ("the option \"until\"", "the option --until"),
    (
        "the property PlacementErrors has the reason",
        "\"vcpuctl status\" shows the reason",
    ),
    (
        "Placement and PlacementErrors show the reason",
        "\"vcpuctl status\" shows the reason",
    ),
];

/// Returns the text of an error with the commands and options of this program instead of members of D-Bus.
fn in_own_words(text: &str) -> String {
    let replace = |text: String, (theirs, own): &(&str, &str)| text.replace(theirs, own);
    WORDS.iter().fold(text.to_owned(), replace)
}

fn exit_status(error_name: Option<&str>) -> u8 {
    match error_name {
        Some(error_name::ACCESS_DENIED | error_name::INTERACTIVE_AUTHORIZATION_REQUIRED) => 3,
        Some(error_name::GUEST_REFUSED) => 4,
        Some(error_name::REMOVAL_PENDING) => 5,
        Some(error_name::GUEST_DID_NOT_START) => 6,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::WORDS;

    /// The sources with the texts of the service.
    const SOURCES: [&str; 5] = [
        include_str!("../../machine/model/error.rs"),
        include_str!("../../inventory/plan.rs"),
        include_str!("../../placement/report.rs"),
        include_str!("../../registry/error.rs"),
        include_str!("../../bus/error.rs"),
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
