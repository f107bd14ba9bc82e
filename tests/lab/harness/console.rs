//! The serial console of a guest, and whether it shows that the guest does not work.

use std::time::{Duration, SystemTime};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::ChildStdout;
use tokio::sync::watch;

/// The time in which a guest begins to react to the removal of a vCPU. It is much longer than usual.
const REACTION: Duration = Duration::from_secs(30);

/// Lines that a guest has printed.
pub(super) struct Console {
    pub(super) lines: Vec<String>,
    /// The time of the last line.
    last: SystemTime,
}

impl Console {
    /// Returns why the guest does not work, if the console shows it. `waits_since` is the number of lines when a test
    /// began to wait for the guest, and `removed_at` the time when QEMU was last told to remove a vCPU.
    pub(super) fn stall(
        &self,
        waits_since: Option<usize>,
        removed_at: Option<SystemTime>,
    ) -> Option<&str> {
        const FAULTS: [&str; 3] = ["detected stalls on CPUs", "BUG: ", "Oops: "];
        let is_fault = |line: &&String| FAULTS.iter().any(|fault| line.contains(fault));
        let starts = self.lines.iter().filter(|line| *line == "GUEST-READY");
        let starts = starts.count();
        let ignores = |time: SystemTime| {
            let is_long_ago = time.elapsed().is_ok_and(|past| past > REACTION);
            starts > 0 && time > self.last && is_long_ago
        };
        match self.lines.iter().find(is_fault) {
            Some(line) => Some(line),
            None if starts > 1 => Some("it has started again"),
            None if waits_since == Some(self.lines.len()) => Some("it prints nothing"),
            None if removed_at.is_some_and(ignores) => Some("it ignores the removal of a vCPU"),
            None => None,
        }
    }
}

/// Collects the lines of the console.
pub(super) fn follow(stdout: ChildStdout) -> watch::Receiver<Console> {
    let (sender, console) = watch::channel(Console {
        lines: Vec::new(),
        last: SystemTime::now(),
    });
    tokio::spawn(async move {
        let mut stdout = BufReader::new(stdout).split(b'\n');
        while let Ok(Some(line)) = stdout.next_segment().await {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            sender.send_modify(|console| {
                console.lines.push(line);
                console.last = SystemTime::now();
            });
        }
    });
    console
}
