//! The failures of commands: the messages, the JSON objects and the exit statuses.

use std::collections::HashMap;
use std::io::{self, Write, stdout};
use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Map, Value as Json, json};
use vcpud::names::error_name;
use vcpud::proxy::error_reply;
use zbus::OwnedVariant;

use crate::cli::Subject;
use crate::render;
use crate::status::{INTERRUPTED, NO_REPLY, TRY_AGAIN, exit_status, is_no_service};
use crate::words::in_own_words;

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The value is how the bus is reached, and what the user can check.
    #[error("cannot connect to the system bus{}", name_bus(_0.as_ref(), _1))]
    NoBus(Option<Remote>, #[source] zbus::Error),
    #[error("{0}")]
    Bus(#[from] zbus::Error),
    /// polkit requires a password.
    #[error("authentication is required for the polkit action {action}, {}", name_missing_password(*is_asked))]
    PasswordRequired {
        action: String,
        /// polkit was allowed to ask for the password.
        is_asked: bool,
    },
    /// The failure that a dry run predicts.
    #[error("{text}{}", name_nearest(nearest))]
    Denied {
        error_name: String,
        text: String,
        /// The possible numbers nearest to the request.
        nearest: Vec<u32>,
    },
    /// A wait for removals ended before they did, or the guest refused one.
    #[error(transparent)]
    Unfinished(#[from] Box<Unfinished>),
    /// The machine has ended while it was waited for.
    #[error("machine {0} has ended; its QEMU has exited, or it was unregistered")]
    Ended(String),
    /// A change that would remove more vCPUs than there are.
    #[error("machine {machine}: cannot remove {wanted} of {present} vCPUs")]
    TooFew {
        machine: String,
        wanted: u32,
        present: u32,
    },
    #[error(
        "the machine has no property {property}; {}",
        name_similar(similar.as_deref(), "\"vcpuctl show NAME\" prints all properties")
    )]
    NoProperty {
        property: String,
        /// The property whose name has other letters of upper and lower case.
        similar: Option<String>,
    },
    #[error(
        "the service has no property {property}; {}",
        name_similar(similar.as_deref(), &format!("name a machine: vcpuctl show NAME -p {property}"))
    )]
    NoPropertyOfService {
        property: String,
        similar: Option<String>,
    },
    /// The configuration was reloaded and has errors.
    #[error("the configuration has errors:\n{}", _0.join("\n"))]
    Configuration(Vec<String>),
    #[error(
        "standard output is not a terminal; use --batch to print tables, or --json to print JSON"
    )]
    NoTerminal,
    #[error("cannot connect to the QMP socket {0}: {1}")]
    NoSocket(String, io::Error),
    #[error("{0} is not a socket; name the QMP socket of QEMU")]
    NotASocket(String),
    #[error("the path {0} cannot be resolved: {1}")]
    NoPath(String, io::Error),
    #[error("cannot receive signals: {0}")]
    NoSignals(io::Error),
    #[error("the path {0} is not UTF-8")]
    NotText(String),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

/// A bus that another program connects to.
#[derive(Debug)]
pub(crate) struct Remote {
    /// The host or container, with its noun.
    pub(crate) place: String,
    /// The command that connects to it.
    pub(crate) command: String,
}

/// The result of a wait for removals.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Unfinished {
    /// `None` if the user interrupted the wait.
    pub(crate) error_name: Option<&'static str>,
    pub(crate) text: String,
    pub(crate) pending: Vec<u32>,
    pub(crate) removed: Vec<u32>,
    pub(crate) refused: Vec<Refused>,
}

/// A vCPU that QEMU or the guest refused to add or remove.
#[derive(Debug, Serialize)]
pub(crate) struct Refused {
    pub(crate) vcpu: u32,
    #[serde(rename = "reason-code")]
    pub(crate) code: String,
    pub(crate) reason: String,
}

impl Unfinished {
    fn details(&self) -> Map<String, Json> {
        Map::from_iter([
            ("removed".to_owned(), json!(self.removed)),
            ("pending".to_owned(), json!(self.pending)),
            ("refused".to_owned(), json!(self.refused)),
        ])
    }
}

impl From<Unfinished> for Failure {
    fn from(unfinished: Unfinished) -> Self {
        Self::Unfinished(Box::new(unfinished))
    }
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
    pub(crate) fn report(self, json: bool, subject: &Subject) -> ExitCode {
        if let Self::Output(error) = &self
            && error.kind() == io::ErrorKind::BrokenPipe
        {
            // The reader, such as head(1), has closed the pipe.
            return ExitCode::SUCCESS;
        }
        if json {
            // The message on standard error is the last way out.
            let _ = writeln!(stdout(), "{}", self.object(subject));
        }
        // A message can have several lines.
        let text = self.text(subject);
        let lines: Vec<String> = text.lines().map(render::printable).collect();
        eprintln!("vcpuctl: {}", lines.join("\n"));
        ExitCode::from(self.exit_status())
    }

    /// Returns the object that describes the failure to programs.
    fn object(&self, subject: &Subject) -> Json {
        let (name, message) = self.name_and_text(subject);
        let mut object = Map::from_iter([
            ("error".to_owned(), json!(name)),
            ("message".to_owned(), json!(message)),
        ]);
        match self {
            Self::Bus(error) => object.extend(details(error).unwrap_or_default()),
            Self::Unfinished(unfinished) => object.extend(unfinished.details()),
            Self::Denied { nearest, .. } => {
                object.insert("nearest".to_owned(), json!(nearest));
            }
            Self::Configuration(errors) => {
                object.insert("ConfigurationErrors".to_owned(), json!(errors));
            }
            _ => {}
        }
        Json::Object(object)
    }

    fn exit_status(&self) -> u8 {
        match self {
            Self::NoBus(..) | Self::NoSocket(..) => TRY_AGAIN,
            Self::NoProperty { .. } | Self::NoPropertyOfService { .. } | Self::NotASocket(_) => 7,
            Self::Unfinished(unfinished) if unfinished.error_name.is_none() => {
                if unfinished.pending.is_empty() {
                    INTERRUPTED
                } else {
                    5
                }
            }
            Self::Bus(error) if error_reply(error).is_none() => match error {
                // The connection to the bus is lost.
                zbus::Error::InputOutput(_) => TRY_AGAIN,
                _ => 1,
            },
            _ => exit_status(self.name_and_text(&Subject::default()).0.as_deref()),
        }
    }

    /// Returns the message.
    pub(crate) fn text(&self, subject: &Subject) -> String {
        self.name_and_text(subject).1
    }

    fn name_and_text(&self, subject: &Subject) -> (Option<String>, String) {
        let machine = subject.machine.as_deref();
        let error = match self {
            Self::Bus(error) => error,
            Self::Denied {
                error_name,
                text,
                nearest,
            } => {
                let nearest = name_nearest(nearest);
                return (
                    Some(error_name.clone()),
                    in_own_words(text, machine) + &nearest,
                );
            }
            _ => {
                let name = match self {
                    Self::PasswordRequired { .. } => {
                        let name = error_name::INTERACTIVE_AUTHORIZATION_REQUIRED;
                        let about = machine.map(|name| format!("machine {name}: "));
                        let text = about.unwrap_or_default() + &self.to_string();
                        return (Some(name.to_owned()), text);
                    }
                    Self::TooFew { .. } => Some(error_name::OUT_OF_RANGE),
                    Self::Ended(_) => Some(error_name::NO_SUCH_MACHINE),
                    Self::Unfinished(unfinished) => unfinished.error_name,
                    _ => None,
                };
                return (name.map(str::to_owned), self.to_string());
            }
        };
        let Some((name, text)) = error_reply(error) else {
            let text = match error {
                zbus::Error::InputOutput(error) => {
                    format!("the connection to the bus is lost: {error}")
                }
                _ => self.to_string(),
            };
            return (None, text);
        };
        let text = match name.as_str() {
            name if is_no_service(name) => name_missing_service(name, &text, subject),
            _ => in_own_words(&text, machine),
        };
        (Some(name), text)
    }
}

/// Returns the text about a service that does not run, or has exited during the call.
fn name_missing_service(name: &str, text: &str, subject: &Subject) -> String {
    let service = subject.service;
    match (name, &subject.machine) {
        (NO_REPLY, machine) => {
            let look = match machine {
                Some(machine) if service == "vcpud" => format!("status {machine}"),
                Some(machine) => format!("explain {machine}"),
                None => "list".to_owned(),
            };
            format!(
                "{service} has ended during the call; it starts again with the next call, which shows the result of this one: run \"vcpuctl {look}\""
            )
        }
        _ if service == "vcpud" => format!(
            "vcpud is not running and could not be started: {text}; run \"systemctl status vcpud\" for details"
        ),
        _ => format!(
            "{service} is not running and could not be started: {text}; check that it is installed, and run \"systemctl status {service}\" for details"
        ),
    }
}

fn name_bus(remote: Option<&Remote>, error: &zbus::Error) -> String {
    match remote {
        None => format!(": {error}"),
        Some(Remote { place, command }) => format!(
            " of the {place}: {error}; check that it runs, and that the command \"{command}\" can connect to its bus (systemd-stdio-bridge is a part of systemd)"
        ),
    }
}

/// Returns the advice for a name of a property that does not exist.
fn name_similar(similar: Option<&str>, otherwise: &str) -> String {
    match similar {
        Some(similar) => format!("its name is {similar}"),
        None => otherwise.to_owned(),
    }
}

fn name_missing_password(is_asked: bool) -> String {
    let advice = if is_asked {
        "and it failed, or no authentication agent is available; run the command on a terminal"
    } else {
        "and --no-ask-password is given; omit the option"
    };
    format!("{advice}, run it as root, or authorize the user with a rule of polkit, see vcpud(8)")
}

fn name_nearest(nearest: &[u32]) -> String {
    let numbers: Vec<String> = nearest.iter().map(u32::to_string).collect();
    if numbers.is_empty() {
        return String::new();
    }
    format!(
        "; possible numbers nearest to the request: {}",
        numbers.join(" and ")
    )
}

/// Returns what a call that failed has changed, if the service says so: the keys `added`, `removed`, `pending` and
/// `refused`.
fn details(error: &zbus::Error) -> Option<Map<String, Json>> {
    let zbus::Error::MethodError(_, _, reply) = error else {
        return None;
    };
    let body = reply.body();
    let (_, mut details): (String, HashMap<String, OwnedVariant>) = body.deserialize().ok()?;
    let mut list = |key: &str| {
        let value = details.remove(key);
        value.map_or_else(|| json!([]), |value| render::json(&value))
    };
    let numbers = ["added", "removed", "pending"].map(|key| (key.to_owned(), list(key)));
    let refused = list("refused");
    let refused = refused.as_array().into_iter().flatten();
    let refused =
        refused.map(|vcpu| json!({"vcpu": vcpu[0], "reason-code": vcpu[1], "reason": vcpu[2]}));
    let refused = ("refused".to_owned(), refused.collect());
    Some(numbers.into_iter().chain([refused]).collect())
}

/// Prints the error of a command line, or the help that it asks for, and returns the exit status.
pub(crate) fn report_usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
        let object = json!({"error": null, "message": error.to_string().trim_end()});
        let _ = writeln!(stdout(), "{object}");
    }
    let printed = error.print();
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Failure::Output(error).report(false, &Subject::default())
        }
        _ => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1)),
    }
}

#[cfg(test)]
mod tests {
    use zbus::message::Builder;
    use zbus::{Message, Variant};

    use super::*;

    #[test]
    fn a_second_value_of_an_error_reply_has_the_result() {
        let call = Message::method_call("/org/vcpud1", "SetVcpus");
        let call = call.build(&()).unwrap();
        let reply = |body: &dyn Fn(Builder<'_>) -> zbus::Result<Message>| {
            let name = "org.vcpud1.Error.GuestRefused";
            let builder = Message::error(&call.header(), name);
            Failure::from(zbus::Error::from(body(builder).unwrap())).object(&Subject::default())
        };
        let name = json!("org.vcpud1.Error.GuestRefused");
        let object = reply(&|builder| builder.build(&("refused",)));
        assert_eq!(object, json!({"error": name, "message": "refused"}));

        let refused = vec![(3_u32, "busy", "the guest is busy with the CPU")];
        let details = HashMap::from([
            ("removed", Variant::from(vec![4_u32])),
            ("refused", Variant::from(refused)),
        ]);
        let object = reply(&|builder| builder.build(&("refused", &details)));
        let refused =
            json!([{"vcpu": 3, "reason-code": "busy", "reason": "the guest is busy with the CPU"}]);
        let expected = json!({
            "error": name, "message": "refused",
            "added": [], "removed": [4], "pending": [], "refused": refused,
        });
        assert_eq!(object, expected);
    }
}
