//! The errors of systemd and of the bus, as reasons for a machine without control groups.

use crate::placement::UnitError;
use crate::proxy::error_reply;

/// There is a unit of that name.
const EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
/// What systemd answers where it does not know a method or property, which newer ones do.
const UNKNOWN: [&str; 3] = [
    "org.freedesktop.DBus.Error.UnknownMethod",
    "org.freedesktop.DBus.Error.UnknownProperty",
    "org.freedesktop.DBus.Error.PropertyReadOnly",
];
/// The process is in no unit: another manager made its control group.
const NO_UNIT: &str = "org.freedesktop.systemd1.NoUnitForPID";
/// The systemd that was asked has left the bus.
const LEFT: [&str; 2] = [
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
];
/// systemd does not accept a name or a value, which is configured.
const INVALID: [&str; 2] = [
    "org.freedesktop.DBus.Error.InvalidArgs",
    "org.freedesktop.systemd1.BadUnitSetting",
];

pub(super) fn is_exists(error: &zbus::Error) -> bool {
    is_called(error, EXISTS)
}

pub(super) fn is_unknown(error: &zbus::Error) -> bool {
    UNKNOWN.iter().any(|name| is_called(error, name))
}

fn is_called(error: &zbus::Error, name: &str) -> bool {
    error_reply(error).is_some_and(|(called, _)| called == name)
}

/// Returns the reason that `error` is. Errors that are not known pass by themselves, as most do.
pub(super) fn reason(error: zbus::Error) -> UnitError {
    match error_reply(&error) {
        None => UnitError::Bus(error.to_string()),
        Some((name, text)) if LEFT.contains(&name.as_str()) => UnitError::Absent(text),
        Some((name, text)) if name == NO_UNIT => UnitError::NoUnit(text),
        Some((name, text)) if INVALID.contains(&name.as_str()) => UnitError::Invalid(text),
        Some((_, text)) => UnitError::Refused(text),
    }
}
