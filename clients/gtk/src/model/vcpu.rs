//! Owns what the grid shows of one vCPU. It must not know the machine.

use super::dict::{Dict, get, text};

/// The state of a vCPU, as the grid shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Not plugged.
    Free,
    /// Plugged, and the guest has not run code on it as far as the service knows.
    NotStarted,
    /// Plugged, and there can be no evidence about the guest.
    Present,
    /// The guest has run code on it.
    Started,
    /// Its removal is pending.
    Pending,
}

impl State {
    /// All states, in the order of the legend.
    pub(crate) const ALL: [Self; 5] = [
        Self::Started,
        Self::Present,
        Self::NotStarted,
        Self::Pending,
        Self::Free,
    ];

    /// Returns the text for users.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Free => "Free",
            Self::NotStarted => "Not started",
            Self::Present => "Present",
            Self::Started => "Started",
            Self::Pending => "Removing",
        }
    }

    /// Returns a sign for small tiles, if the state is not a usual one; else an empty text.
    pub(crate) fn sign(self) -> &'static str {
        match self {
            Self::NotStarted => "!",
            Self::Pending => "−",
            Self::Free | Self::Present | Self::Started => "",
        }
    }

    /// Returns the CSS class of its tile.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::NotStarted => "not-started",
            Self::Present => "present",
            Self::Started => "started",
            Self::Pending => "pending",
        }
    }

    /// Returns a sentence that explains the state.
    pub(crate) fn explanation(self) -> &'static str {
        match self {
            Self::Free => "The machine can get this vCPU.",
            Self::NotStarted => {
                "The machine has this vCPU, but the guest has not run code on it. If this stays so, bring the CPU online in the guest."
            }
            Self::Present => {
                "The machine has this vCPU. QEMU does not report whether the guest uses it."
            }
            Self::Started => "The guest has run code on this vCPU.",
            Self::Pending => {
                "QEMU has asked the guest to release this vCPU. The guest has not answered."
            }
        }
    }
}

/// A row of `ListVcpus`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Vcpu {
    pub(crate) id: u32,
    pub(crate) state: State,
    /// The report of the guest agent.
    pub(crate) is_online: Option<bool>,
    pub(crate) is_removable: bool,
    /// The host CPUs of its own pin; empty without a pin.
    pub(crate) pin: String,
    /// The host CPUs in force; empty if it has no thread of its own.
    pub(crate) affinity: String,
    /// The position in the topology, such as `socket 0, core 3`.
    pub(crate) topology: String,
    /// The host thread; 0 without a thread of its own.
    pub(crate) thread: u32,
}

/// The keys of the topology, and the texts.
const TOPOLOGY: [(&str, &str); 9] = [
    ("node-id", "node"),
    ("drawer-id", "drawer"),
    ("book-id", "book"),
    ("socket-id", "socket"),
    ("die-id", "die"),
    ("cluster-id", "cluster"),
    ("module-id", "module"),
    ("core-id", "core"),
    ("thread-id-in-core", "thread"),
];

impl Vcpu {
    /// Returns the vCPU of a row, or `None` if the row has no number. The row does not say whether the vCPU has a pin of
    /// its own.
    pub(crate) fn new(row: &Dict) -> Option<Self> {
        let flag = |key| get::<bool>(row, key);
        let state = match (flag("present"), flag("pending"), flag("started")) {
            (Some(true), Some(true), _) => State::Pending,
            (Some(true), _, Some(true)) => State::Started,
            (Some(true), _, Some(false)) => State::NotStarted,
            (Some(true), _, None) => State::Present,
            _ => State::Free,
        };
        let part = |(key, noun): (&str, &str)| {
            let number: i64 = get(row, key)?;
            Some(format!("{noun} {number}"))
        };
        let topology: Vec<String> = TOPOLOGY.into_iter().filter_map(part).collect();
        Some(Self {
            id: get(row, "id")?,
            state,
            is_online: flag("online"),
            is_removable: flag("removable").unwrap_or(false),
            pin: String::new(),
            affinity: text(row, "affinity"),
            topology: topology.join(", "),
            thread: get(row, "thread-id").unwrap_or(0),
        })
    }

    /// Returns the facts about the vCPU, as text for its dialog.
    pub(crate) fn details(&self) -> String {
        let mut facts = vec![self.state.explanation()];
        if self.is_present() {
            match self.is_online {
                Some(true) => facts.push("The guest agent reports that the guest uses it."),
                Some(false) => {
                    facts.push("The guest agent reports that the guest does not use it.");
                }
                None => {}
            }
            if !self.is_removable {
                facts.push("QEMU cannot remove it now.");
            }
        }
        let mut lines = vec![facts.join(" ")];
        if !self.topology.is_empty() {
            lines.push(format!("Topology: {}", self.topology));
        }
        if self.thread != 0 {
            let (thread, affinity) = (self.thread, &self.affinity);
            lines.push(format!("Host thread: {thread}, on host CPUs {affinity}"));
        }
        lines.join("\n")
    }

    /// Returns whether the machine has the vCPU.
    pub(crate) fn is_present(&self) -> bool {
        self.state != State::Free
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dict::dict;

    #[test]
    fn the_state_is_that_of_the_row() {
        let state = |entries: &[(&str, bool)]| {
            let mut row = dict([("id", 3_u32.into())]);
            for (key, value) in entries {
                row.extend(dict([(*key, (*value).into())]));
            }
            Vcpu::new(&row).unwrap().state
        };
        assert_eq!(state(&[("present", false)]), State::Free);
        assert_eq!(state(&[("present", true)]), State::Present);
        assert_eq!(
            state(&[("present", true), ("started", false)]),
            State::NotStarted
        );
        assert_eq!(
            state(&[("present", true), ("started", true)]),
            State::Started
        );
        let pending = [("present", true), ("started", true), ("pending", true)];
        assert_eq!(state(&pending), State::Pending);
        assert_eq!(Vcpu::new(&dict([])), None);
    }

    #[test]
    fn the_details_have_what_the_guest_agent_reports() {
        let details = |online: bool| {
            let row = dict([
                ("id", 1_u32.into()),
                ("present", true.into()),
                ("started", true.into()),
                ("removable", true.into()),
                ("online", online.into()),
                ("thread-id", 42_u32.into()),
                ("affinity", "0-1".into()),
            ]);
            Vcpu::new(&row).unwrap().details()
        };
        assert!(details(true).contains("the guest uses it."));
        assert!(details(false).contains("the guest does not use it."));
        assert!(details(true).ends_with("\nHost thread: 42, on host CPUs 0-1"));
    }

    #[test]
    fn the_topology_is_a_text() {
        let row = dict([("id", 0_u32.into()), ("core-id", 2_i64.into())]);
        assert_eq!(Vcpu::new(&row).unwrap().topology, "core 2");
    }
}
