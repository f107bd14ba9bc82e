//! Scheduling policies of threads (`sched(7)`).

use std::fmt;

use serde::{Deserialize, Serialize};

/// A scheduling policy that vCPUs can get, with its priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub enum Scheduler {
    /// `SCHED_OTHER`
    Other,
    /// `SCHED_BATCH`
    Batch,
    /// `SCHED_IDLE`
    Idle,
    /// `SCHED_FIFO` with a priority from 1 to 99.
    Fifo(u8),
    /// `SCHED_RR` with a priority from 1 to 99.
    Rr(u8),
}

/// The form in files and messages.
#[derive(Serialize, Deserialize)]
struct Wire {
    policy: String,
    #[serde(default)]
    priority: i32,
}

/// The reason why a policy and a priority are not a [`Scheduler`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchedulerError {
    /// The policy does not exist.
    #[error("{0:?} is not a scheduler; the schedulers are other, batch, idle, fifo and rr")]
    Policy(String),
    /// The policy does not have the priority.
    #[error("{policy} takes {}, not priority {priority}", match policy { &"fifo" | &"rr" => "a priority from 1 to 99", _ => "no priority but 0" })]
    Priority {
        /// The policy.
        policy: &'static str,
        /// The priority.
        priority: i32,
    },
}

impl Scheduler {
    /// Returns the policy of this name with this priority: 1 to 99 for `fifo` and `rr`, else 0.
    ///
    /// # Errors
    ///
    /// Fails if the policy does not exist or does not have the priority.
    pub fn new(policy: &str, priority: i32) -> Result<Self, SchedulerError> {
        let real_time = u8::try_from(priority).ok().filter(|p| (1..=99).contains(p));
        let (scheduler, policy) = match policy {
            "other" => ((priority == 0).then_some(Self::Other), "other"),
            "batch" => ((priority == 0).then_some(Self::Batch), "batch"),
            "idle" => ((priority == 0).then_some(Self::Idle), "idle"),
            "fifo" => (real_time.map(Self::Fifo), "fifo"),
            "rr" => (real_time.map(Self::Rr), "rr"),
            unknown => {
                let unknown = unknown.chars().take(32).collect();
                return Err(SchedulerError::Policy(unknown));
            }
        };
        scheduler.ok_or(SchedulerError::Priority { policy, priority })
    }

    /// Returns its name.
    pub fn policy(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Batch => "batch",
            Self::Idle => "idle",
            Self::Fifo(_) => "fifo",
            Self::Rr(_) => "rr",
        }
    }

    /// Returns its priority; 0 if the policy has none.
    pub fn priority(self) -> i32 {
        match self {
            Self::Other | Self::Batch | Self::Idle => 0,
            Self::Fifo(priority) | Self::Rr(priority) => priority.into(),
        }
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.priority() {
            0 => f.write_str(self.policy()),
            priority => write!(f, "{} {priority}", self.policy()),
        }
    }
}

impl TryFrom<Wire> for Scheduler {
    type Error = SchedulerError;

    fn try_from(wire: Wire) -> Result<Self, SchedulerError> {
        Self::new(&wire.policy, wire.priority)
    }
}

impl From<Scheduler> for Wire {
    fn from(scheduler: Scheduler) -> Self {
        Self {
            policy: scheduler.policy().to_owned(),
            priority: scheduler.priority(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_have_their_priorities() {
        for (policy, priority, wrong) in [
            ("other", 0, None),
            ("batch", 0, None),
            ("idle", 0, None),
            ("fifo", 1, None),
            ("rr", 99, None),
            (
                "other",
                1,
                Some("other takes no priority but 0, not priority 1"),
            ),
            (
                "fifo",
                0,
                Some("fifo takes a priority from 1 to 99, not priority 0"),
            ),
            (
                "rr",
                100,
                Some("rr takes a priority from 1 to 99, not priority 100"),
            ),
            (
                "rr",
                -1,
                Some("rr takes a priority from 1 to 99, not priority -1"),
            ),
            (
                "FIFO",
                1,
                Some(
                    "\"FIFO\" is not a scheduler; the schedulers are other, batch, idle, fifo and rr",
                ),
            ),
        ] {
            match (Scheduler::new(policy, priority), wrong) {
                (Ok(scheduler), None) => {
                    assert_eq!(
                        (scheduler.policy(), scheduler.priority()),
                        (policy, priority)
                    );
                    let json = serde_json::to_string(&scheduler).unwrap();
                    assert_eq!(serde_json::from_str::<Scheduler>(&json).unwrap(), scheduler);
                }
                (Err(error), Some(wrong)) => assert_eq!(error.to_string(), wrong),
                (result, wrong) => panic!("{policy} {priority}: {result:?}, not {wrong:?}"),
            }
        }
    }
}
