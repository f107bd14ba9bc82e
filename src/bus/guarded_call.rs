//! One call that polkit guards: its details for polkit's rules and dialogs, and its records.
//!
//! All such calls go through [`GuardedCall::authorize`], which writes one entry of the journal and one
//! record of the audit log for each call that is authorized by polkit or because the caller is root.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::Arc;

use tracing::info;
use zbus::message::Header;

use super::authority::{Action, Authority, Caller, Dialog};
use super::error::Error;
use crate::audit::{Audit, CallRecord};
use crate::ids::Uid;
use crate::machine::{Handle, Snapshot};
use crate::names::{MachineName, message_id};

/// The maximum length of a value, in bytes: more than a list of all vCPUs that a machine can have. A
/// longer value is not shortened for polkit, because a rule would decide on a part of it.
const MAX_VALUE: usize = 64 << 10;
/// The length to which a message of the log shortens each value, in characters. The field `VALUES` is
/// not shortened.
const MAX_SHOWN: usize = 256;

/// A call that polkit authorizes and the audit log records.
#[derive(Debug)]
pub(super) struct GuardedCall {
    action: Action,
    /// The detail `operation`, such as `scheduler`.
    name: &'static str,
    machine: Option<MachineName>,
    uuid: String,
    is_kvm: bool,
    details: BTreeMap<String, String>,
}

impl GuardedCall {
    /// A call of the operation `name`, guarded by `action`, on the machine of `handle`.
    pub(super) fn on(handle: &Handle, action: Action, name: &'static str) -> Self {
        let snapshot: Arc<Snapshot> = handle.snapshot();
        let mut call = Self::named(handle.name().clone(), action, name);
        call.uuid = snapshot.uuid.to_string();
        call.is_kvm = snapshot.accelerator.as_str() == "kvm";
        call.with("uuid", &snapshot.uuid)
            .with_some("owner", handle.owner())
            .with_some("registrant", handle.registrant())
    }

    /// A call of the operation `name`, guarded by `action`, on a machine that may not exist.
    pub(super) fn named(machine: MachineName, action: Action, name: &'static str) -> Self {
        Self {
            machine: Some(machine),
            ..Self::on_all(action, name)
        }
    }

    /// A call of the operation `name`, guarded by `action`, on no machine in particular.
    pub(super) fn on_all(action: Action, name: &'static str) -> Self {
        Self {
            action,
            name,
            machine: None,
            uuid: String::new(),
            is_kvm: false,
            details: BTreeMap::new(),
        }
    }

    /// The same with one more detail.
    #[must_use]
    pub(super) fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.details.insert(key.to_owned(), value.to_string());
        self
    }

    /// The same with one more detail, if it has a value.
    #[must_use]
    pub(super) fn with_some(self, key: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    /// Authorizes the sender of the call `header`, and records the call.
    ///
    /// # Errors
    ///
    /// Fails if the caller is not authorized, or gives a value that is too long.
    pub(super) async fn authorize(
        &self,
        header: &Header<'_>,
        authority: &Authority,
    ) -> Result<Caller, Error> {
        let details = self.details()?;
        let check = authority.check(header, self.action, &details, Dialog::IfAllowed);
        match check.await {
            Ok(caller) => {
                self.record(caller.uid(), authority.audit());
                Ok(caller)
            }
            Err(error) => Err(self.denied(error, authority.user_of(header))),
        }
    }

    /// Returns whether the sender of `header` is authorized for the call: "yes", "no", or "challenge" if polkit would
    /// ask for a password. Nothing is recorded.
    ///
    /// # Errors
    ///
    /// Fails if a value is too long, or too many questions to polkit wait.
    pub(super) async fn permission(
        &self,
        header: &Header<'_>,
        authority: &Authority,
    ) -> Result<&'static str, Error> {
        let details = self.details()?;
        let check = authority.check(header, self.action, &details, Dialog::Never);
        match check.await {
            Ok(_) => Ok("yes"),
            Err(Error::InteractiveAuthorizationRequired(_)) => Ok("challenge"),
            Err(Error::AccessDenied(_)) => Ok("no"),
            Err(error) => Err(error),
        }
    }

    /// Logs that the call of the user `uid` is denied, with the values that polkit got. Returns the
    /// error with the name of the machine.
    fn denied(&self, error: Error, uid: Option<Uid>) -> Error {
        let (prefix, operation) = (self.prefix(), self.name);
        let uid = uid.map_or("unknown".to_owned(), |uid| uid.to_string());
        let shown = self.values(MAX_SHOWN);
        let vm_name = self.machine.as_ref().map(MachineName::as_str);
        info!(
            vm_name,
            operation, "{prefix}operation \"{operation}\" denied for uid {uid} ({shown}): {error}"
        );
        match error {
            Error::AccessDenied(text) => Error::AccessDenied(format!("{prefix}{text}")),
            other => other,
        }
    }

    /// The name of the machine before a text about it.
    fn prefix(&self) -> String {
        let machine = self.machine.as_ref();
        machine.map_or(String::new(), |name| format!("{name}: "))
    }

    /// Returns the details for polkit, without the caller's `uid`.
    fn details(&self) -> Result<HashMap<&str, &str>, Error> {
        let too_long = |(_, value): &(&String, &String)| value.len() > MAX_VALUE;
        if let Some((key, value)) = self.details.iter().find(too_long) {
            let length = value.len();
            return Err(Error::LimitExceeded(format!(
                "the value of {key:?} has {length} bytes; the limit is {MAX_VALUE}"
            )));
        }
        let details = self.details.iter();
        let mut details: HashMap<&str, &str> = details
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        details.insert("operation", self.name);
        details.insert(
            "machine",
            self.machine.as_ref().map_or("", MachineName::as_str),
        );
        Ok(details)
    }

    /// Records that the user `uid` is authorized.
    fn record(&self, uid: Uid, audit: &Audit) {
        let operation = self.name;
        let vm_name = self.machine.as_ref().map_or("", MachineName::as_str);
        let (values, shown) = (self.values(usize::MAX), self.values(MAX_SHOWN));
        let prefix = self.prefix();
        info!(
            message_id = message_id::CALL_AUTHORIZED,
            vm_name,
            vm_uuid = self.uuid,
            operation,
            values,
            request_uid = uid.get(),
            "{prefix}operation \"{operation}\" authorized for uid {uid} ({shown})"
        );
        let is_value = |(key, _): &(&String, &String)| *key != "uuid";
        audit.write_call(&CallRecord {
            operation,
            machine: self.machine.as_ref().map(MachineName::as_str),
            uuid: &self.uuid,
            kvm: self.is_kvm,
            uid,
            values: self.details.iter().filter(is_value).collect(),
        });
    }

    /// Returns the details as text in which no value can look like another: `KEY="VALUE" …`. Each value
    /// has at most `limit` characters.
    fn values(&self, limit: usize) -> String {
        let mut text = String::new();
        for (key, value) in &self.details {
            let separator = if text.is_empty() { "" } else { " " };
            // Writing to a String does not fail.
            let _ = write!(text, "{separator}{key}=\"");
            text.extend(value.chars().take(limit).flat_map(char::escape_default));
            text.push_str(if value.chars().nth(limit).is_some() {
                "…\""
            } else {
                "\""
            });
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_look_like_another() {
        let name: MachineName = "web".parse().unwrap();
        let call = GuardedCall::named(name, Action::ManageMachines, "register")
            .with("address", "/a\" owner=\"0\"\n\u{202e}")
            .with_some("owner", Some(1000))
            .with_some("registrant", None::<u32>);
        let text = r#"address="/a\" owner=\"0\"\n\u{202e}" owner="1000""#;
        assert_eq!(call.values(MAX_SHOWN), text);
        assert!(call.values(2).starts_with(r#"address="/a…" owner="10…""#));
        let details = call.details().unwrap();
        assert_eq!(details["operation"], "register");
        assert_eq!(details["machine"], "web");
        assert!(!details.contains_key("registrant"));
    }

    #[test]
    fn refuses_a_value_that_is_too_long_for_polkit() {
        let long = "x".repeat(MAX_VALUE + 1);
        let call = GuardedCall::on_all(Action::TuneVcpus, "pin").with("cpus", long);
        let error = call.details().unwrap_err();
        assert!(error.to_string().contains("65537 bytes"), "{error}");
    }
}
