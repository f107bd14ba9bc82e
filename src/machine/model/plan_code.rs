//! The codes of plans: the reasons why a number of vCPUs cannot be reached, and the warnings about an addition. Owns
//! their words, which are a part of the interface on D-Bus. The texts for people are those of the errors.

use super::error::Error;
use crate::inventory::{PlanError, Target};

/// The reason why a number of vCPUs cannot be reached now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanCode {
    /// The number is above the maximum of the machine.
    AboveMaximum,
    /// The number is 0.
    BelowMinimum,
    /// The number requires the removal of the boot CPU.
    BootVcpu,
    /// QEMU would exit, because the guest is confidential.
    ConfidentialGuest,
    /// There is no connection to QEMU.
    Disconnected,
    /// QEMU cannot add or remove vCPUs of this machine.
    NoHotplug,
    /// QEMU can add vCPUs to this machine, and cannot remove them.
    NoUnplug,
    /// The number requires a part of a slot.
    PartOfSlot,
    /// The removal of the free vCPUs is still pending.
    RemovalPending,
    /// QEMU with the accelerator tcg would abort.
    TcgLimit,
}

impl PlanCode {
    /// All codes.
    pub const ALL: [Self; 10] = [
        Self::AboveMaximum,
        Self::BelowMinimum,
        Self::BootVcpu,
        Self::ConfidentialGuest,
        Self::Disconnected,
        Self::NoHotplug,
        Self::NoUnplug,
        Self::PartOfSlot,
        Self::RemovalPending,
        Self::TcgLimit,
    ];

    /// Returns the word for it on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AboveMaximum => "above-maximum",
            Self::BelowMinimum => "below-minimum",
            Self::BootVcpu => "boot-vcpu",
            Self::ConfidentialGuest => "confidential-guest",
            Self::Disconnected => "disconnected",
            Self::NoHotplug => "no-hotplug",
            Self::NoUnplug => "no-unplug",
            Self::PartOfSlot => "part-of-slot",
            Self::RemovalPending => "removal-pending",
            Self::TcgLimit => "tcg-limit",
        }
    }

    /// Returns the code of an error of a plan for a number of vCPUs. Other errors have none.
    pub fn of(error: &Error) -> Option<Self> {
        match error {
            Error::Denied { asked, denial, .. } => Self::of_denial(asked, denial),
            Error::Disconnected(_) => Some(Self::Disconnected),
            Error::Confidential { .. } => Some(Self::ConfidentialGuest),
            Error::TcgExhausted { .. } => Some(Self::TcgLimit),
            _ => None,
        }
    }

    fn of_denial(asked: &Target, denial: &PlanError) -> Option<Self> {
        match denial {
            PlanError::OutOfRange { .. } if *asked == Target::Count(0) => Some(Self::BelowMinimum),
            PlanError::OutOfRange { .. } => Some(Self::AboveMaximum),
            PlanError::Unreachable { .. } => Some(Self::PartOfSlot),
            PlanError::Busy { .. } => Some(Self::RemovalPending),
            PlanError::NoHotplug { .. } => Some(Self::NoHotplug),
            PlanError::NoUnplug { .. } => Some(Self::NoUnplug),
            PlanError::NotRemovable { .. } => Some(Self::BootVcpu),
            // Only a list of vCPUs has these.
            PlanError::NoSuchVcpu { .. } | PlanError::PartOfGroup { .. } => None,
        }
    }
}

/// A warning about an addition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The kind, for programs.
    pub code: WarningCode,
    /// The text, for people.
    pub text: String,
}

/// The kind of a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarningCode {
    /// The guest has not started all present vCPUs, because it does not run.
    NotRunning,
    /// The guest runs, and has not started all present vCPUs. It may be booting.
    NotStarted,
}

impl WarningCode {
    /// All codes.
    pub const ALL: [Self; 2] = [Self::NotRunning, Self::NotStarted];

    /// Returns the word for it on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotRunning => "not-running",
            Self::NotStarted => "not-started",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::Snapshot;
    use super::super::testing::inventory;
    use super::*;
    use std::collections::BTreeSet;

    /// Returns the code of a plan of `snapshot` for `count` vCPUs.
    fn code(snapshot: &Snapshot, count: u32) -> Option<&'static str> {
        let error = snapshot.plan(&Target::Count(count)).err()?;
        Some(PlanCode::of(&error).expect("a plan has a code").as_str())
    }

    fn snapshot(present: u32, max: u32) -> Snapshot {
        let plugged: Vec<(u32, u32)> = (0..present).map(|vcpu| (vcpu, 100 + vcpu)).collect();
        Snapshot {
            inventory: inventory(max, &plugged).into(),
            ..Snapshot::default()
        }
    }

    #[test]
    fn each_limit_of_a_machine_has_a_code() {
        let mut snapshot = snapshot(2, 4);
        assert_eq!(code(&snapshot, 4), None);
        assert_eq!(code(&snapshot, 5), Some("above-maximum"));
        assert_eq!(code(&snapshot, 0), Some("below-minimum"));
        snapshot.is_confidential = true;
        assert_eq!(code(&snapshot, 3), Some("confidential-guest"));
        snapshot.disconnected = Some("QEMU does not answer".to_owned());
        assert_eq!(code(&snapshot, 2), Some("disconnected"));
    }

    #[test]
    fn each_denial_of_a_number_has_a_code() {
        let denied = |denial| Error::Denied {
            asked: Target::Count(3),
            denial,
            qemu: None,
        };
        let unplug = PlanError::NoUnplug {
            machine: "QEMU for s390x".to_owned(),
            present: 4,
        };
        let part = PlanError::Unreachable {
            group: 4,
            nearest: vec![4],
        };
        for (denial, word) in [
            (PlanError::Busy { leaving: vec![] }, "removal-pending"),
            (PlanError::NoHotplug { present: 1 }, "no-hotplug"),
            (PlanError::NotRemovable { lowest: 4 }, "boot-vcpu"),
            (unplug, "no-unplug"),
            (part, "part-of-slot"),
        ] {
            let code = PlanCode::of(&denied(denial)).unwrap();
            assert_eq!(code.as_str(), word);
        }
        let other = PlanError::PartOfGroup { group: vec![] };
        assert_eq!(PlanCode::of(&denied(other)), None);
    }

    #[test]
    fn words_are_different() {
        let words: BTreeSet<_> = PlanCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(words.len(), PlanCode::ALL.len());
    }
}
