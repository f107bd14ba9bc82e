//! Owns the errors of calls: their names, their texts, and what they mean for the application. It must not call methods.

use crate::model::failure::{self, Failure};
use crate::model::message::Loss;

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
        _ => Loss::Service(text),
    }
}

/// Returns what users see of an error.
pub(super) fn failure(error: &zbus::Error) -> Failure {
    let (name, text) = name_and_text(error);
    failure::describe(&name, &text)
}
