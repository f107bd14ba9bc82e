//! systemd: what the service tells it about itself (`sd_notify(3)`), and the units of machines.
//!
//! Without systemd there is nobody to tell, which is no error.

mod carriers;
mod instance;
mod refusal;
mod store;
mod unit;

use std::time::Duration;

pub use store::Store;
pub use unit::Systemd;

/// The service is ready: its name is owned and its machines are served.
pub fn ready() {
    notify(&[("READY", "1")]);
}

/// What people are told by `systemctl status`.
pub fn status(machines: usize) {
    let status = match machines {
        0 => "No machines.".to_owned(),
        1 => "1 machine.".to_owned(),
        many => format!("{many} machines."),
    };
    notify(&[("STATUS", &status)]);
}

/// The configuration is being read again; [`ready`] ends that.
pub fn reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let usec = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
    notify(&[("RELOADING", "1"), ("MONOTONIC_USEC", &usec.to_string())]);
}

/// How often the watchdog of systemd must be told that the service is alive; `None` where it has
/// none.
pub fn watchdog() -> Option<Duration> {
    match ::systemd::daemon::watchdog_enabled() {
        Ok(usec) if usec > 0 => Some(Duration::from_micros(usec) / 2),
        _ => None,
    }
}

/// The service is alive.
pub fn alive() {
    notify(&[("WATCHDOG", "1")]);
}

/// The service is about to end.
pub fn stopping() {
    notify(&[("STOPPING", "1")]);
}

fn notify(state: &[(&str, &str)]) {
    if let Err(error) = ::systemd::daemon::notify(state.iter()) {
        tracing::debug!(%error, "systemd was not notified");
    }
}
