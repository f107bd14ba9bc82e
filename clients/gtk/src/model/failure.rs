//! Owns the texts of errors: a short title for users, and the text of the service. It must not decide what to do.

use super::numbers;

/// An error of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// A short sentence, which fits in a toast.
    pub(crate) title: String,
    /// What failed, why, and what the user can do.
    pub(crate) detail: String,
}

impl Failure {
    /// Returns the failure with the name of its machine in the title.
    pub(crate) fn of(self, machine: &str) -> Self {
        Self {
            title: format!("{machine}: {}", self.title),
            ..self
        }
    }
}

/// Names of errors, and their titles. A name without a dot is one of `org.vcpud1.Error`.
const TITLES: [(&str, &str); 26] = [
    ("Busy", "In conflict with another change"),
    ("CpuUnavailable", "The host does not have these CPUs"),
    ("Disconnected", "The machine is not connected"),
    ("GuestDidNotStart", "The guest has not started the vCPUs"),
    ("GuestRefused", "The guest has refused"),
    ("InvalidCpuList", "This is not a list of host CPUs"),
    ("InvalidVcpu", "The machine does not have this vCPU"),
    ("LimitExceeded", "Too many requests"),
    ("MachineExists", "The machine exists"),
    ("NoSuchMachine", "The machine has ended"),
    (
        "org.freedesktop.DBus.Error.UnknownMethod",
        "The machine has ended",
    ),
    (
        "org.freedesktop.DBus.Error.UnknownObject",
        "The machine has ended",
    ),
    ("NotRemovable", "A vCPU cannot be removed"),
    (
        "NotSupported",
        "The machine or the host does not support this",
    ),
    ("OutOfRange", "The machine cannot have this number of vCPUs"),
    ("PlacementFailed", "The host has refused the placement"),
    ("QmpFailed", "QEMU has refused"),
    ("QmpTimeout", "QEMU does not answer"),
    ("RemovalPending", "The guest has not released the vCPUs yet"),
    (
        "org.freedesktop.DBus.Error.AccessDenied",
        "The request was not authorized",
    ),
    (
        "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
        "A password is required",
    ),
    (
        "org.freedesktop.DBus.Error.InvalidArgs",
        "A value is not valid",
    ),
    (
        "org.freedesktop.DBus.Error.IOError",
        "The service cannot save the request",
    ),
    (
        "org.freedesktop.DBus.Error.NoReply",
        "The service has ended during the request",
    ),
    (
        "org.freedesktop.DBus.Error.ServiceUnknown",
        "The service is not installed",
    ),
    (
        "org.freedesktop.DBus.Error.NameHasNoOwner",
        "The service is not running",
    ),
];

/// The text of a conflict with another request.
const CONFLICT: &str = "Another program has changed the machine, or the removal of these vCPUs is still pending. Nothing was changed. Look at the machine again, and repeat the change if you still want it.";

/// How many refusals a dialog shows.
const SHOWN: usize = 5;

/// Codes of refusals (`reason-code`), and their texts.
const REFUSALS: [(&str, &str); 9] = [
    (
        "not-supported",
        "the guest does not support the removal of vCPUs",
    ),
    ("in-use", "the guest uses it"),
    ("busy", "the guest is busy with it; try again"),
    ("dependency", "another device of the guest depends on it"),
    ("guest-failed", "the guest gives no reason"),
    (
        "no-guest",
        "no operating system of the guest has taken charge of the vCPUs; wait until it has booted",
    ),
    (
        "migrating",
        "the machine is migrating; try again after the migration",
    ),
    ("qemu-refused", "QEMU has refused"),
    ("not-listed", "QEMU does not list it"),
];

/// Returns the texts of an error with a name and a text of the service.
pub(crate) fn describe(name: &str, text: &str) -> Failure {
    let short = name.strip_prefix("org.vcpud1.Error.").unwrap_or(name);
    let title = TITLES.iter().find(|(known, _)| *known == short);
    let title = title.map_or("The request has failed", |(_, title)| title);
    // The text of the service is for programs: it names options, properties and signals.
    let detail = if short == "Busy" { CONFLICT } else { text };
    Failure {
        title: title.to_owned(),
        detail: detail.to_owned(),
    }
}

/// A vCPU whose removal was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) vcpu: u32,
    /// The reason, for users.
    why: String,
    /// The text of the service.
    reason: String,
}

impl Refusal {
    /// Returns the refusal of a signal, with its code and its text.
    pub(crate) fn new(vcpu: u32, code: &str, reason: String) -> Self {
        let known = REFUSALS.iter().find(|(known, _)| *known == code);
        let why = known.map_or(reason.as_str(), |(_, why)| why).to_owned();
        Self { vcpu, why, reason }
    }

    /// Returns the reason without the advice.
    pub(crate) fn short(&self) -> &str {
        short(&self.why)
    }
}

/// Returns the texts of refused removals, at least one. `machine` is the name of the machine.
pub(crate) fn refused(machine: &str, refusals: &[Refusal]) -> Failure {
    let vcpus: Vec<u32> = refusals.iter().map(|refusal| refusal.vcpu).collect();
    let verb = if vcpus.len() == 1 { "stays" } else { "stay" };
    let why = refusals.first().map_or("", Refusal::short);
    let why = if refusals.iter().all(|refusal| refusal.short() == why) {
        format!(": {why}")
    } else {
        ", for different reasons".to_owned()
    };
    let line = |refusal: &Refusal| {
        format!(
            "vCPU {} of the machine “{machine}” was not removed: {}.\nThe service reports: {}",
            refusal.vcpu, refusal.why, refusal.reason
        )
    };
    let mut lines: Vec<String> = refusals.iter().take(SHOWN).map(line).collect();
    if refusals.len() > SHOWN {
        lines.push(format!("And {} more.", refusals.len() - SHOWN));
    }
    Failure {
        title: format!("{} of {machine} {verb}{why}", numbers::named(&vcpus)),
        detail: lines.join("\n\n"),
    }
}

/// Returns the part before the advice.
fn short(text: &str) -> &str {
    text.split(';').next().unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of errors in the interface.
    fn names() -> Vec<&'static str> {
        let xml = include_str!("../../../../dbus/org.vcpud1.xml");
        let names = xml
            .lines()
            .filter_map(|line| line.trim().strip_prefix("org.vcpud1.Error."));
        names.filter_map(|line| line.split(' ').next()).collect()
    }

    #[test]
    fn each_error_of_the_interface_has_a_title() {
        let names = names();
        assert!(names.len() > 10);
        for name in names {
            let failure = describe(&format!("org.vcpud1.Error.{name}"), "why");
            assert_ne!(failure.title, "The request has failed", "{name}");
        }
        let conflict = describe("org.vcpud1.Error.Busy", "the option \"current\"");
        assert!(!conflict.detail.contains("current"));
        assert_eq!(
            describe("com.example.Other", "why").title,
            "The request has failed"
        );
    }

    #[test]
    fn each_reason_of_the_interface_has_a_text() {
        let xml = include_str!("../../../../dbus/org.vcpud1.xml");
        let (codes, _) = xml.split_once("Errors have also").unwrap();
        let (_, codes) = codes.rsplit_once("\"reason-code\" (s)").unwrap();
        let codes = codes
            .lines()
            .filter_map(|line| line.trim().strip_prefix('"')?.split_once("\":"));
        let codes: Vec<&str> = codes.map(|(code, _)| code).collect();
        assert!(codes.len() >= 8, "{codes:?}");
        for code in codes {
            assert!(REFUSALS.iter().any(|(known, _)| *known == code), "{code}");
        }
        let busy = Refusal::new(3, "busy", "device busy".to_owned());
        let later = Refusal::new(4, "later", "because".to_owned());
        assert_eq!(later.short(), "because");
        assert_eq!(
            refused("web", std::slice::from_ref(&busy)).title,
            "vCPU 3 of web stays: the guest is busy with it"
        );
        let both = refused(
            "web",
            &[busy.clone(), Refusal::new(4, "busy", String::new())],
        );
        assert_eq!(
            both.title,
            "vCPUs 3, 4 of web stay: the guest is busy with it"
        );
        let failure = refused("web", &[busy, later]);
        assert_eq!(
            failure.title,
            "vCPUs 3, 4 of web stay, for different reasons"
        );
        assert!(
            failure
                .detail
                .contains("vCPU 4 of the machine “web” was not removed: because.")
        );
    }
}
