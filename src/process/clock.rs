//! Clocks of the kernel: the time, and the CPU time of a process (`clock_gettime(2)`).

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid as RawPid;

use super::identity::ProcessId;
use super::task::Tasks;

/// Returns the time of `CLOCK_MONOTONIC`.
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// Returns the time of `CLOCK_REALTIME` at which `process` was started. Later changes of this clock do not change the
/// result.
pub fn start_of(process: ProcessId) -> Duration {
    /// The time of `CLOCK_REALTIME` when the host started.
    static HOST: OnceLock<Duration> = OnceLock::new();
    let host = HOST.get_or_init(|| {
        let time = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
        let now = time(ClockId::CLOCK_REALTIME);
        now.saturating_sub(time(ClockId::CLOCK_BOOTTIME))
    });
    *host + Duration::from_millis(process.start * 1000 / TICKS)
}

/// The clock ticks in a second in all files of `/proc` (`USER_HZ`, `proc(5)`).
const TICKS: u64 = 100;

/// Returns the CPU time of all threads of `process`, also of those that have ended. Blocks.
///
/// # Errors
///
/// Fails if the process has exited.
pub fn cpu_time(process: &dyn Tasks) -> io::Result<Duration> {
    let gone = || io::Error::from_raw_os_error(libc::ESRCH);
    let pid = i32::try_from(process.pid().get()).map_err(|_| gone())?;
    let clock = clock_getcpuclockid(RawPid::from_raw(pid))?;
    let time = clock_gettime(clock)?;
    // Checked after that, so that it is not the time of a later process with its PID.
    if !process.has_task(process.pid().main_thread()) {
        return Err(gone());
    }
    Ok(time.into())
}
