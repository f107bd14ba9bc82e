//! systemd: notifications about the service (`sd_notify(3)`), and the units of machines.
//!
//! Without systemd the notifications have no effect, and that is not an error.

mod carriers;
mod instance;
mod refusal;
mod store;
mod unit;

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::process::inherited;

pub use store::Store;
pub use unit::Systemd;

/// Takes the descriptors that systemd passed to the program (`sd_listen_fds(3)`), with their names. A
/// second call returns none.
///
/// # Errors
///
/// Fails if the environment of the program is not as systemd sets it.
pub fn passed() -> io::Result<Vec<(String, OwnedFd)>> {
    let descriptors = ::systemd::daemon::listen_fds_with_names()?;
    let descriptors = descriptors.iter();
    let named = descriptors.map(|(fd, name)| (name.to_string_lossy().into_owned(), fd));
    Ok(inherited(named.collect()))
}

/// Notifies systemd that the service is ready: it owns its name and serves its machines.
pub fn ready() {
    notify(&[("READY", "1")]);
}

/// Sets the status text in `systemctl status`.
pub fn status(machines: usize) {
    let status = match machines {
        0 => "No machines.".to_owned(),
        1 => "1 machine.".to_owned(),
        many => format!("{many} machines."),
    };
    notify(&[("STATUS", &status)]);
}

/// Notifies systemd that the configuration is being read again. [`ready`] ends the state.
pub fn reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let usec = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
    notify(&[("RELOADING", "1"), ("MONOTONIC_USEC", &usec.to_string())]);
}

/// Returns the interval in which the watchdog of systemd needs a notification; `None` without a
/// watchdog.
pub fn watchdog() -> Option<Duration> {
    match ::systemd::daemon::watchdog_enabled() {
        Ok(usec) if usec > 0 => Some(Duration::from_micros(usec) / 2),
        _ => None,
    }
}

/// Notifies the watchdog.
pub fn alive() {
    notify(&[("WATCHDOG", "1")]);
}

/// Notifies systemd that the service is ending.
pub fn stopping() {
    notify(&[("STOPPING", "1")]);
}

fn notify(state: &[(&str, &str)]) {
    if let Err(error) = ::systemd::daemon::notify(state.iter()) {
        tracing::debug!(%error, "systemd was not notified");
    }
}
