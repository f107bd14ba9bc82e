//! The holds across restarts of the program: which machines another caller has changed, and when. Pure: it must not
//! read files, and the time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vcpud::names::MachineName;

/// The last change of a machine by another caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// The PID of QEMU.
    pub(crate) leader: u32,
    /// The time of the change, of `CLOCK_MONOTONIC`.
    pub(crate) at: Duration,
}

/// The last changes.
pub(crate) type Holds = BTreeMap<MachineName, Held>;

/// A time of both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// That of `CLOCK_MONOTONIC`.
    pub(crate) monotonic: Duration,
    /// The time since the epoch, which does not begin again when the host is started.
    pub(crate) wall: Duration,
}

/// A change, as the file has it.
#[derive(Serialize, Deserialize)]
struct Entry {
    leader: u32,
    /// The time since the epoch, in seconds.
    changed: u64,
}

/// Returns the text of a file with `holds`.
///
/// # Errors
/// The holds have no form in JSON, which does not happen.
pub(crate) fn to_text(holds: &Holds, now: Now) -> Result<String, serde_json::Error> {
    let entry = |(name, held): (&MachineName, &Held)| {
        let age = now.monotonic.saturating_sub(held.at);
        let entry = Entry {
            leader: held.leader,
            changed: now.wall.saturating_sub(age).as_secs(),
        };
        (name.as_str().to_owned(), entry)
    };
    serde_json::to_string(&holds.iter().map(entry).collect::<BTreeMap<_, _>>())
}

/// Returns the holds of a file. A time in the future counts as now. A change before the host was started does not
/// count.
///
/// # Errors
/// The text is not that of such a file.
pub(crate) fn from_text(text: &str, now: Now) -> Result<Holds, serde_json::Error> {
    let entries: BTreeMap<String, Entry> = serde_json::from_str(text)?;
    let holds = entries.into_iter().filter_map(|(name, entry)| {
        let age = now.wall.saturating_sub(Duration::from_secs(entry.changed));
        let held = Held {
            leader: entry.leader,
            at: now.monotonic.checked_sub(age)?,
        };
        Some((name.parse().ok()?, held))
    });
    Ok(holds.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(monotonic: u64, wall: u64) -> Now {
        Now {
            monotonic: Duration::from_secs(monotonic),
            wall: Duration::from_secs(wall),
        }
    }

    #[test]
    fn a_hold_keeps_its_age() {
        let at = Duration::from_secs(100);
        let name: MachineName = "web".parse().unwrap();
        let holds = Holds::from([(name.clone(), Held { leader: 7, at })]);
        let text = to_text(&holds, now(150, 10_000)).unwrap();
        let read = |now| from_text(&text, now).unwrap();
        assert_eq!(read(now(160, 10_010)), holds);
        // The time of the host was set back, or forward.
        let at = |now| read(now)[&name].at.as_secs();
        assert_eq!(at(now(160, 5000)), 160);
        assert_eq!(at(now(160, 10_090)), 20);
        // The host was started again.
        assert_eq!(read(now(30, 10_100)), Holds::new());
        assert!(from_text("[", now(1, 1)).is_err());
    }
}
