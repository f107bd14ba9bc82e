//! The exit statuses for D-Bus errors. Has no texts.

use vcpud::names::error_name;

/// The exit status of a program that Ctrl-C has ended.
pub(crate) const INTERRUPTED: u8 = 130;

/// The exit status of a failure that can be over soon, `EX_TEMPFAIL` of sysexits(3).
pub(crate) const TRY_AGAIN: u8 = 75;

/// Returns the exit status for an error reply.
pub(crate) fn exit_status(name: Option<&str>) -> u8 {
    match name.unwrap_or_default() {
        error_name::ACCESS_DENIED | error_name::INTERACTIVE_AUTHORIZATION_REQUIRED => 3,
        error_name::GUEST_REFUSED => 4,
        error_name::REMOVAL_PENDING => 5,
        error_name::NO_SUCH_MACHINE => 6,
        error_name::CPU_UNAVAILABLE
        | error_name::INVALID_ARGS
        | error_name::INVALID_CPU_LIST
        | error_name::INVALID_VCPU
        | error_name::MACHINE_EXISTS
        | error_name::NOT_REMOVABLE
        | error_name::NOT_SUPPORTED
        | error_name::OUT_OF_RANGE => 7,
        error_name::GUEST_DID_NOT_START => 8,
        error_name::BUSY
        | error_name::DISCONNECTED
        | error_name::LIMIT_EXCEEDED
        | error_name::QMP_TIMEOUT => TRY_AGAIN,
        name if is_no_service(name) => TRY_AGAIN,
        _ => 1,
    }
}

/// The error of the bus daemon about a service that has exited during a call.
pub(crate) const NO_REPLY: &str = "org.freedesktop.DBus.Error.NoReply";

/// Whether the bus replied because the service does not run, or has exited during the call.
pub(crate) fn is_no_service(name: &str) -> bool {
    const STANDARD: &str = "org.freedesktop.DBus.Error.";
    let starts = [
        "org.freedesktop.systemd1.",
        "org.freedesktop.DBus.Error.Spawn.",
    ];
    let ends = [
        "ServiceUnknown",
        "NameHasNoOwner",
        "NoReply",
        "TimedOut",
        "Timeout",
        "Disconnected",
    ];
    let end = name.strip_prefix(STANDARD);
    starts.iter().any(|start| name.starts_with(start)) || end.is_some_and(|end| ends.contains(&end))
}
