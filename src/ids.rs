//! Numbers with a meaning. Each has a type of its own, so that a vCPU cannot be used as a thread, or a user
//! as a process.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The maximum number of vCPUs of a machine. No QEMU machine type has more (4,096 in QEMU 11), and
/// replies with more are refused.
pub const MAX_VCPUS: u32 = 16_384;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl $name {
            /// Returns the number.
            pub const fn get(self) -> u32 {
                self.0
            }
        }

        impl From<u32> for $name {
            fn from(number: u32) -> Self {
                Self(number)
            }
        }

        impl From<$name> for u32 {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl PartialEq<u32> for $name {
            fn eq(&self, number: &u32) -> bool {
                self.0 == *number
            }
        }

        impl FromStr for $name {
            type Err = ParseIntError;

            fn from_str(text: &str) -> Result<Self, ParseIntError> {
                text.parse().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// The number of a vCPU of a machine, from 0. Callers and signals use it.
    VcpuId
}

id! {
    /// A hotplug slot of a machine, named by the number of its first vCPU.
    SlotId
}

id! {
    /// A thread id, as in `gettid(2)`.
    Tid
}

id! {
    /// A process id, as in `getpid(2)`.
    Pid
}

id! {
    /// A user id, as in `getuid(2)`. 0 is root.
    Uid
}

impl SlotId {
    /// Returns the first vCPU of the slot.
    pub const fn first(self) -> VcpuId {
        VcpuId(self.0)
    }
}

impl Pid {
    /// Returns the main thread of the process, which has the same number.
    pub const fn main_thread(self) -> Tid {
        Tid(self.0)
    }
}

impl Uid {
    /// The superuser.
    pub const ROOT: Self = Self(0);

    /// Returns whether the user is root.
    pub const fn is_root(self) -> bool {
        self.0 == Self::ROOT.0
    }
}
