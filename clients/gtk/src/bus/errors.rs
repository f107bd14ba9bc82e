//! Owns the errors of calls: their names, their texts, and what they mean for the application. It must not call methods.

use crate::model::failure::{self, Failure};
use crate::model::message::Loss;

/// The beginnings of the names of errors of the bus and of systemd about a service that does not run, or has ended.
const ENDED: [&str; 6] = [
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.Spawn.",
    // The service does not start in time.
    "org.freedesktop.DBus.Error.TimedOut",
    "org.freedesktop.systemd1.",
];

/// The names of errors about an object or a method that does not exist.
const MISSING: [&str; 2] = [
    "org.freedesktop.DBus.Error.UnknownMethod",
    "org.freedesktop.DBus.Error.UnknownObject",
];

/// Returns the name and the text of an error. The name is empty if the error is not a reply.
pub(super) fn name_and_text(error: &zbus::Error) -> (String, String) {
    match error {
        zbus::Error::MethodError(name, text, _) => (
            name.to_string(),
            text.clone().unwrap_or_else(|| name.to_string()),
        ),
        zbus::Error::FDO(error) => match &**error {
            zbus::fdo::Error::ZBus(error) => name_and_text(error),
            error => {
                let name = zbus::DBusError::name(error).to_string();
                let text = zbus::DBusError::description(error)
                    .unwrap_or(&name)
                    .to_owned();
                (name, text)
            }
        },
        error => (String::new(), error.to_string()),
    }
}

/// Returns why the application cannot show machines after this error.
pub(super) fn loss(error: &zbus::Error) -> Loss {
    let (name, text) = name_and_text(error);
    match name.as_str() {
        "org.freedesktop.DBus.Error.AccessDenied" => Loss::Denied,
        "" => Loss::Bus(text),
        name if ENDED.iter().any(|start| name.starts_with(start)) => Loss::Service(text),
        _ => Loss::Refused(text),
    }
}

/// Returns what users see of an error.
pub(super) fn failure(error: &zbus::Error) -> Failure {
    let (name, text) = name_and_text(error);
    failure::describe(&name, &text)
}

/// Returns what users see of an error of the autoscaler. Its object is not a machine, which could have ended.
pub(super) fn failure_of_autoscaler(error: &zbus::Error) -> Failure {
    let (name, text) = name_and_text(error);
    if MISSING.contains(&name.as_str()) {
        let title = "vcpud-autoscale does not support this".to_owned();
        return Failure {
            title,
            detail: text,
        };
    }
    failure::describe(&name, &text)
}

#[cfg(test)]
mod tests {
    use zbus::Message;

    use super::*;

    fn error(name: &str) -> zbus::Error {
        let call = Message::method_call("/", "Method").build(&()).unwrap();
        let reply = Message::error(&call.header(), name);
        reply.build(&"why").unwrap().into()
    }

    #[test]
    fn only_a_service_that_does_not_run_is_reported_so() {
        let why = || "why".to_owned();
        for name in [
            "org.freedesktop.DBus.Error.Spawn.ChildExited",
            "org.freedesktop.DBus.Error.NoReply",
            "org.freedesktop.systemd1.UnitMasked",
        ] {
            assert_eq!(loss(&error(name)), Loss::Service(why()), "{name}");
        }
        let full = error("org.vcpud1.Error.LimitExceeded");
        assert_eq!(loss(&full), Loss::Refused(why()));
        let denied = error("org.freedesktop.DBus.Error.AccessDenied");
        assert_eq!(loss(&denied), Loss::Denied);
    }

    #[test]
    fn an_error_of_the_autoscaler_is_not_the_end_of_a_machine() {
        for name in MISSING {
            assert_eq!(failure(&error(name)).title, "The machine has ended");
            let title = failure_of_autoscaler(&error(name)).title;
            assert_eq!(title, "vcpud-autoscale does not support this");
        }
        let busy = error("org.vcpud1.Error.Busy");
        assert_eq!(failure_of_autoscaler(&busy), failure(&busy));
    }
}
