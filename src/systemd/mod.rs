//! systemd: what the service tells it about itself (`sd_notify(3)`), and the units of machines.
//!
//! Without systemd there is nobody to tell, which is no error.

mod unit;

pub use unit::Systemd;

/// The service is ready: its name is owned and its machines are served.
pub fn ready() {
    notify(&[("READY", "1"), ("STATUS", "Serving org.vcpud1.")]);
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
