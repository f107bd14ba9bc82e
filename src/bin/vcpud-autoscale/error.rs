//! The errors of the interface, with their names on D-Bus.

use vcpud::names::error_name;
use zbus::message::Header;
use zbus::names::ErrorName;
use zbus::{DBusError, Message};

/// An error of a call.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Error {
    name: &'static str,
    text: String,
}

impl Error {
    fn new(name: &'static str, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { name, text }
    }

    /// vcpud does not have the machine, or its vCPUs are not scaled.
    pub(crate) fn no_such_machine(text: impl Into<String>) -> Self {
        Self::new(error_name::NO_SUCH_MACHINE, text)
    }

    /// Returns whether it is [`Error::no_such_machine`].
    pub(crate) fn is_no_such_machine(&self) -> bool {
        self.name == error_name::NO_SUCH_MACHINE
    }

    /// An argument or option is not what the method takes.
    pub(crate) fn invalid_args(text: impl Into<String>) -> Self {
        Self::new(error_name::INVALID_ARGS, text)
    }

    /// A limit is exceeded.
    pub(crate) fn limit_exceeded(text: impl Into<String>) -> Self {
        Self::new(error_name::LIMIT_EXCEEDED, text)
    }

    /// The caller is not authorized.
    pub(crate) fn access_denied(text: impl Into<String>) -> Self {
        Self::new(error_name::ACCESS_DENIED, text)
    }

    /// polkit requires a password, and the call does not allow to ask for it.
    pub(crate) fn password_required(text: impl Into<String>) -> Self {
        Self::new(error_name::INTERACTIVE_AUTHORIZATION_REQUIRED, text)
    }

    /// The settings cannot be saved, or vcpud does not answer.
    pub(crate) fn io(text: impl Into<String>) -> Self {
        Self::new(error_name::IO_ERROR, text)
    }
}

impl DBusError for Error {
    fn create_reply(&self, call: &Header<'_>) -> zbus::Result<Message> {
        Message::error(call, self.name()).build(&(&self.text,))
    }

    fn name(&self) -> ErrorName<'_> {
        ErrorName::from_static_str_unchecked(self.name)
    }

    fn description(&self) -> Option<&str> {
        Some(&self.text)
    }
}
