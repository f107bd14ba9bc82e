//! The texts of the kernel: `/proc/PID/task/TID` (`proc_pid_stat(5)`, the kernel's `sched-stats.rst`) and the
//! control groups (`cgroup-v2.rst`, `sched-bwc.rst`).

use std::time::Duration;

/// The times of a thread since it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// How long it ran.
    pub usage: Duration,
    /// How long it was runnable and did not run, also because its control group was throttled. KVM reports
    /// it to the guest as steal time.
    pub delay: Duration,
}

/// The throttling of a control group since it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttling {
    /// How long it was throttled.
    pub time: Duration,
    /// How many periods passed in which it ran.
    pub periods: u64,
    /// In how many of them it was throttled.
    pub throttled_periods: u64,
}

/// Returns the times of a thread, from `schedstat`.
pub fn thread_times(schedstat: &str) -> Option<Times> {
    let mut fields = schedstat.split_ascii_whitespace();
    let mut time = || Some(Duration::from_nanos(fields.next()?.parse().ok()?));
    Some(Times {
        usage: time()?,
        delay: time()?,
    })
}

/// Returns the host CPU on which a thread ran last, from `stat`.
pub fn last_cpu(stat: &str) -> Option<u32> {
    // Field 39. Field 2, in parentheses, may contain any character.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(36)?.parse().ok()
}

/// Returns the throttling of a control group, from `cpu.stat` in either version. `None`: the group has no
/// `cpu` controller.
pub fn throttling(cpu_stat: &str) -> Option<Throttling> {
    let time = match field(cpu_stat, "throttled_usec") {
        Some(usec) => Duration::from_micros(usec),
        None => Duration::from_nanos(field(cpu_stat, "throttled_time")?),
    };
    Some(Throttling {
        time,
        periods: field(cpu_stat, "nr_periods")?,
        throttled_periods: field(cpu_stat, "nr_throttled")?,
    })
}

/// Returns the CPU time of a control group of version 2, from `cpu.stat`.
pub fn group_usage(cpu_stat: &str) -> Option<Duration> {
    field(cpu_stat, "usage_usec").map(Duration::from_micros)
}

/// Returns the CPU time of a control group of version 1, from `cpuacct.usage`.
pub fn group_usage_v1(usage: &str) -> Option<Duration> {
    usage.trim_end().parse().ok().map(Duration::from_nanos)
}

/// Returns the number in the line `name NUMBER`.
fn field(text: &str, name: &str) -> Option<u64> {
    let number = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
    text.lines().find_map(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_times_of_a_thread() {
        let times = thread_times("72526 84559 1\n").unwrap();
        assert_eq!(times.usage, Duration::from_nanos(72_526));
        assert_eq!(times.delay, Duration::from_nanos(84_559));
        for other in ["", "72526", "72526 x 1", "-1 2 3"] {
            assert_eq!(thread_times(other), None, "{other}");
        }
    }

    #[test]
    fn a_name_cannot_hide_the_host_cpu() {
        let rest = (3..39).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        for name in ["CPU 0/KVM", "a) 1 2 3", "(x))"] {
            let stat = format!("8 ({name}) {rest} 17 0 0");
            assert_eq!(last_cpu(&stat), Some(17), "{name}");
        }
        assert_eq!(last_cpu("8 (qemu) S 1"), None);
    }

    #[test]
    fn reads_groups_of_both_versions() {
        let v2 = "usage_usec 2500\nuser_usec 2000\nsystem_usec 500\nnr_periods 30\nnr_throttled 4\n\
                  throttled_usec 1700\nnr_bursts 0\nburst_usec 0\n";
        let v1 = "nr_periods 30\nnr_throttled 4\nthrottled_time 1700000\nwait_sum 99\n";
        let expected = Throttling {
            time: Duration::from_micros(1700),
            periods: 30,
            throttled_periods: 4,
        };
        assert_eq!(throttling(v2), Some(expected));
        assert_eq!(throttling(v1), Some(expected));
        assert_eq!(group_usage(v2), Some(Duration::from_micros(2500)));
        assert_eq!(group_usage_v1("2500000\n"), group_usage(v2));
        // Without the controller.
        assert_eq!(throttling("usage_usec 2500\nuser_usec 2000\n"), None);
        assert_eq!(throttling("nr_periods 1\nnr_throttled 1\n"), None);
        assert_eq!(group_usage(v1), None);
        assert_eq!(group_usage_v1("x"), None);
    }
}
