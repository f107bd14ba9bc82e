//! The values of arguments.

use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use vcpud::arguments::parse_time;
use vcpud::placement::{ListError, VcpuList};

/// An amount of CPU time; `None` is without limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota(pub Option<Duration>);

pub(super) fn parse_quota(text: &str) -> Result<Quota, String> {
    match text {
        "unlimited" => Ok(Quota(None)),
        text => Ok(Quota(Some(parse_time(text)?))),
    }
}

/// A number of vCPUs, or a change of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    Total(u32),
    More(u32),
    Fewer(u32),
}

impl FromStr for Count {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (count, digits): (fn(u32) -> Self, &str) = match text.split_at_checked(1) {
            Some(("+", digits)) => (Self::More, digits),
            Some(("-", digits)) => (Self::Fewer, digits),
            _ => (Self::Total, text),
        };
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = is_number.then(|| digits.parse().ok()).flatten();
        number
            .map(count)
            .ok_or("the argument is not a number of vCPUs, such as \"4\", \"+1\" or \"-1\"")
    }
}

/// The order of machines, and of the vCPUs of each machine. Equal rows are in the order of names or numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// The name of the machine, and the number of the vCPU
    #[default]
    Name,
    /// The CPU time, highest first
    Use,
    /// The steal time, highest first
    Steal,
    /// The throttled time, highest first
    Throttled,
    /// The number of pending removals, highest first
    Pending,
}

/// The time between samples of "top".
pub(super) fn parse_delay(text: &str) -> Result<Duration, String> {
    let delay = parse_time(text)?;
    if (MIN_DELAY..=MAX_DELAY).contains(&delay) {
        Ok(delay)
    } else {
        Err("the time is not between 100ms and 1day".to_owned())
    }
}

const MIN_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("the argument is not KEY=VALUE")?;
    if key == "cache" && !value.contains(':') {
        return Err("the value is not VCPUS:SCHEMATA, such as \"cache=0-3:L3:0=f\"".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// A list of host CPUs, or "default". The service checks the list.
pub(super) fn parse_cpus(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("the list of host CPUs is empty; \"default\" removes the pin".to_owned());
    }
    Ok(text.to_owned())
}

/// A list, or "all", which is the empty list.
pub(super) fn parse_vcpus(text: &str) -> Result<VcpuList, String> {
    match text {
        "all" => Ok(VcpuList::default()),
        list => parse_list(list),
    }
}

pub(super) fn parse_list(text: &str) -> Result<VcpuList, String> {
    let list: VcpuList = text.parse().map_err(|error: ListError| error.to_string())?;
    if list.is_empty() {
        return Err("the list is empty".to_owned());
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_vcpus() {
        assert_eq!(parse_list("2"), Ok(VcpuList::from_iter([2])));
        assert_eq!(parse_list("2,4-6"), Ok(VcpuList::from_iter([2, 4, 5, 6])));
        for bad in ["", "a", "1,", "3-1", "-1", "1-", "0-4000000000"] {
            assert!(parse_list(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn all_vcpus_and_no_limit_have_words() {
        assert_eq!(parse_vcpus("all"), Ok(VcpuList::default()));
        assert_eq!(parse_vcpus("1"), Ok(VcpuList::from_iter([1])));
        assert_eq!(parse_quota("unlimited"), Ok(Quota(None)));
        let quota = Quota(Some(Duration::from_millis(20)));
        assert_eq!(parse_quota("20ms"), Ok(quota));
        assert_eq!(parse_quota("0.02"), Ok(quota));
        assert!(parse_quota("-1").is_err());
    }

    #[test]
    fn an_empty_list_of_host_cpus_names_the_word_for_the_default() {
        for empty in ["", " "] {
            assert!(parse_cpus(empty).unwrap_err().contains("\"default\""));
        }
        assert_eq!(parse_cpus("0-3"), Ok("0-3".to_owned()));
    }

    #[test]
    fn a_share_of_caches_has_vcpus() {
        let setting = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        assert_eq!(
            parse_setting("cache=0:L3:0=f"),
            setting("cache", "0:L3:0=f")
        );
        assert_eq!(parse_setting("affinity=0-3"), setting("affinity", "0-3"));
        for bad in ["affinity", "cache=f"] {
            assert!(parse_setting(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn delays_are_seconds_or_times() {
        let milliseconds = |ms| Ok(Duration::from_millis(ms));
        assert_eq!(parse_delay("2"), milliseconds(2_000));
        assert_eq!(parse_delay("0.5"), milliseconds(500));
        assert_eq!(parse_delay("250ms"), milliseconds(250));
        for bad in ["", "0", "-1", "1ms", "NaN", "inf", "1e99", "2 days"] {
            assert!(parse_delay(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_sign_makes_a_count_relative() {
        assert_eq!("4".parse(), Ok(Count::Total(4)));
        assert_eq!("+1".parse(), Ok(Count::More(1)));
        assert_eq!("-12".parse(), Ok(Count::Fewer(12)));
        for bad in ["", "+", "-", "--1", "+-1", "1.5", "4294967296", "many", "٣"] {
            assert!(bad.parse::<Count>().is_err(), "{bad}");
        }
    }
}
