//! The start time and the users of a process (`proc_pid_stat(5)`, `proc_pid_status(5)`).

use std::fs::File;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use crate::ids::{Pid, Uid};

/// Identifies one process among all processes since the host started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its PID.
    pub pid: Pid,
    /// Its start time, in clock ticks after the start of the host.
    pub start: u64,
}

/// The real, effective, saved and file-system user of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Users(pub [Uid; 4]);

impl Users {
    /// Returns the user, if all four are the same.
    pub fn single(self) -> Option<Uid> {
        let [real, rest @ ..] = self.0;
        rest.iter().all(|user| *user == real).then_some(real)
    }
}

/// Reads the start time and the users of the process that has the PID `pid` now.
///
/// # Errors
///
/// Fails if no process has this PID.
pub(super) fn read(pid: Pid) -> io::Result<(u64, Users)> {
    let process = format!("/proc/{pid}");
    // With this capacity, the kernel is asked twice, not eight times.
    let mut text = String::with_capacity(4096);
    File::open(format!("{process}/stat"))?.read_to_string(&mut text)?;
    let start = start_time(&text);
    text.clear();
    File::open(format!("{process}/status"))?.read_to_string(&mut text)?;
    let identity = start.zip(users(&text));
    identity.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Returns field 22 of `/proc/PID/stat`. Field 2, in parentheses, may contain any character.
fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Returns the numbers of `Uid` in `/proc/PID/status`.
fn users(status: &str) -> Option<Users> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let users: Vec<Uid> = line
        .split_ascii_whitespace()
        .map(|user| user.parse().ok())
        .collect::<Option<_>>()?;
    users.try_into().ok().map(Users)
}

#[cfg(test)]
mod tests {
    use super::{Uid, Users, start_time, users};

    #[test]
    fn reads_all_four_users() {
        // The kernel escapes a newline in a name.
        let status =
            "Name:\tqemu\\nUid:\t0 0\nUmask:\t0022\nUid:\t1000\t0\t0\t0\nGid:\t5\t6\t7\t8\n";
        let mixed = users(status).unwrap();
        assert_eq!(mixed, Users([1000, 0, 0, 0].map(Uid)));
        assert_eq!(mixed.single(), None);
        assert_eq!(Users([Uid(7); 4]).single(), Some(Uid(7)));
        assert_eq!(users("Name:\tqemu\n"), None);
        assert_eq!(users("Uid:\t1\t2\n"), None);
    }

    #[test]
    fn a_name_cannot_hide_the_start_time() {
        let rest = "S 1 2 3 0 -1 4194560 5 6 7 8 9 10 11 12 20 0 1 0 4711 1000 200 1844";
        for name in ["qemu", "a) S 1 2 3 4 5 6 7", "(x))"] {
            assert_eq!(start_time(&format!("8 ({name}) {rest}")), Some(4711));
        }
        assert_eq!(start_time("8 (qemu) S 1"), None);
    }
}
