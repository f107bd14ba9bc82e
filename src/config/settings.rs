//! The settings of a machine, and the values that each key takes.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::ConfigError;
use super::nearest::unknown;
use super::uuid::Uuid;
use super::value::{Entry, Item, Value, shown};
use crate::ids::VcpuId;
use crate::placement::{
    Bandwidth, CpuList, NodeList, PlacementMode, Scheduler, SchedulerError, Schemata, Tuning,
    VcpuList,
};

/// The keys of `[defaults]`, which machines' files have too.
pub(super) const KEYS: [&str; 11] = [
    "removal-timeout",
    "qmp-timeout",
    "placement",
    "slice",
    "affinity",
    "memory-nodes",
    "bandwidth-period",
    "bandwidth-quota",
    "scheduler",
    "priority",
    "cache",
];
/// The keys of machines' files beside [`KEYS`].
pub(super) const MACHINE_KEYS: [&str; 3] = ["qmp", "guest-agent", "uuid"];
/// The default slice.
const SLICE: &str = "machine.slice";
/// The maximum of time limits.
pub(super) const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
/// The range of `qmp-timeout`. With less time, the service would lose the connection again and again.
const QMP_TIMES: RangeInclusive<Duration> = Duration::from_millis(100)..=WEEK;

/// The time limits for one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a call waits for removals by default.
    pub removal_timeout: Duration,
    /// The maximum time of QEMU for one reply.
    pub qmp_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            removal_timeout: Duration::from_secs(5),
            qmp_timeout: Duration::from_secs(10),
        }
    }
}

/// Settings of machines; `None` for a key that is not set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Settings {
    /// How long a call waits for removals.
    pub removal_timeout: Option<Duration>,
    /// The maximum time of QEMU for one reply.
    pub qmp_timeout: Option<Duration>,
    /// The unit of systemd for the machine.
    pub placement: Option<PlacementMode>,
    /// The slice for a scope of its own.
    pub slice: Option<String>,
    /// The host CPUs of the vCPUs.
    pub affinity: Option<CpuList>,
    /// The memory nodes of the vCPUs.
    pub memory_nodes: Option<NodeList>,
    /// The period of CPU time, in microseconds.
    pub bandwidth_period: Option<u64>,
    /// The CPU time of each vCPU in a period, in microseconds; -1 means no limit.
    pub bandwidth_quota: Option<i64>,
    /// The scheduler of the vCPUs.
    pub scheduler: Option<Scheduler>,
    /// The share of the caches of each vCPU, by its number.
    pub cache: Option<BTreeMap<VcpuId, Schemata>>,
}

/// The settings of one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct MachineSettings {
    /// The QMP socket; `None` if the file does not set it.
    pub qmp: Option<PathBuf>,
    /// The socket of its guest agent.
    pub guest_agent: Option<PathBuf>,
    /// The UUID of the VM. A VM without a UUID matches.
    pub uuid: Option<Uuid>,
    /// The settings that `[defaults]` has too.
    pub settings: Settings,
}

impl Settings {
    /// Returns these settings, with the values of `below` for the keys that are not set.
    #[must_use]
    pub fn over(self, below: &Self) -> Self {
        let below = below.clone();
        Self {
            removal_timeout: self.removal_timeout.or(below.removal_timeout),
            qmp_timeout: self.qmp_timeout.or(below.qmp_timeout),
            placement: self.placement.or(below.placement),
            slice: self.slice.or(below.slice),
            affinity: self.affinity.or(below.affinity),
            memory_nodes: self.memory_nodes.or(below.memory_nodes),
            bandwidth_period: self.bandwidth_period.or(below.bandwidth_period),
            bandwidth_quota: self.bandwidth_quota.or(below.bandwidth_quota),
            scheduler: self.scheduler.or(below.scheduler),
            cache: self.cache.or(below.cache),
        }
    }

    /// Returns what applies to a machine that an unprivileged user registered: the time limits, and no
    /// setting that changes where and how its threads run.
    #[must_use]
    pub fn for_users(&self) -> Self {
        Self {
            removal_timeout: self.removal_timeout,
            qmp_timeout: self.qmp_timeout,
            placement: Some(PlacementMode::None),
            ..Self::default()
        }
    }

    /// Returns the time limits.
    pub fn limits(&self) -> Limits {
        let default = Limits::default();
        Limits {
            removal_timeout: self.removal_timeout.unwrap_or(default.removal_timeout),
            qmp_timeout: self.qmp_timeout.unwrap_or(default.qmp_timeout),
        }
    }

    /// Returns the slice.
    pub fn slice(&self) -> &str {
        self.slice.as_deref().unwrap_or(SLICE)
    }

    /// Returns the tuning of the vCPUs.
    pub fn tuning(&self) -> Tuning {
        let period = self.bandwidth_period;
        let quota = self.bandwidth_quota;
        let bandwidth = (period.is_some() || quota.is_some()).then(|| {
            let period = period.unwrap_or(Bandwidth::UNLIMITED.period());
            // Both are in their ranges, and all pairs are allowed.
            Bandwidth::new(period, quota.unwrap_or(-1)).unwrap_or(Bandwidth::UNLIMITED)
        });
        Tuning {
            affinity: self.affinity.clone(),
            memory_nodes: self.memory_nodes.clone(),
            bandwidth,
            scheduler: self.scheduler,
            cache: self.cache.clone().unwrap_or_default(),
            ..Tuning::default()
        }
    }

    /// Sets the key of `entry`. `all` are the entries of its table. Returns `None` for an unknown key.
    pub(super) fn take(&mut self, entry: &Entry, all: &[Entry]) -> Option<Result<(), ConfigError>> {
        let value = &entry.value;
        let result = match entry.key.as_str() {
            "removal-timeout" => {
                time(value, Duration::ZERO..=WEEK).map(|time| self.removal_timeout = Some(time))
            }
            "qmp-timeout" => time(value, QMP_TIMES).map(|time| self.qmp_timeout = Some(time)),
            "placement" => read(value).map(|wish| self.placement = Some(wish)),
            "slice" => slice(value).map(|slice| self.slice = Some(slice)),
            "affinity" => list(value).map(|cpus: CpuList| self.affinity = Some(cpus)),
            "memory-nodes" => list(value).map(|nodes: NodeList| self.memory_nodes = Some(nodes)),
            "bandwidth-period" => period(value).map(|usec| self.bandwidth_period = Some(usec)),
            "bandwidth-quota" => quota(value).map(|usec| self.bandwidth_quota = Some(usec)),
            "scheduler" => return Some(self.take_scheduler(entry, all)),
            "priority" if all.iter().any(|entry| entry.key == "scheduler") => {
                integer(value).map(|_| ())
            }
            "priority" => Err("it requires the key \"scheduler\"".to_owned()),
            "cache" => return Some(cache(entry).map(|shares| self.cache = Some(shares))),
            _ => return None,
        };
        Some(result.map_err(|text| ConfigError::at(entry, text)))
    }

    fn take_scheduler(&mut self, entry: &Entry, all: &[Entry]) -> Result<(), ConfigError> {
        let policy = text(&entry.value).map_err(|text| ConfigError::at(entry, text))?;
        let beside = all.iter().find(|entry| entry.key == "priority");
        // A priority that is not an integer is an error of its own entry.
        let priority = beside.and_then(|entry| integer(&entry.value).ok());
        let priority = i32::try_from(priority.unwrap_or(0)).unwrap_or(i32::MAX);
        let scheduler = Scheduler::new(policy, priority).map_err(|error| {
            let place = match error {
                SchedulerError::Priority { .. } => beside.unwrap_or(entry),
                SchedulerError::Policy(_) => entry,
            };
            ConfigError::at(place, error)
        })?;
        self.scheduler = Some(scheduler);
        Ok(())
    }
}

impl MachineSettings {
    /// Sets the key of `entry`. `all` are the entries of the file. Returns `None` for an unknown key.
    pub(super) fn take(&mut self, entry: &Entry, all: &[Entry]) -> Option<Result<(), ConfigError>> {
        let value = &entry.value;
        let path = |value| text(value).and_then(socket_path);
        let result = match entry.key.as_str() {
            "qmp" => path(value).map(|path| self.qmp = Some(path)),
            "guest-agent" => path(value).map(|path| self.guest_agent = Some(path)),
            "uuid" => read(value).map(|uuid| self.uuid = Some(uuid)),
            _ => return self.settings.take(entry, all),
        };
        Some(result.map_err(|text| ConfigError::at(entry, text)))
    }
}

/// Returns the path in `address`, which is an absolute path, or `unix:` and an absolute path.
///
/// # Errors
///
/// Fails for every other text, and for a path with the components `.` or `..`: a rule of polkit that
/// compares the beginning of an address can rely on it.
pub fn socket_path(address: &str) -> Result<PathBuf, String> {
    let path = address.strip_prefix("unix:").unwrap_or(address);
    let shown: String = address.chars().take(80).collect();
    if !path.starts_with('/') || path.len() >= 4096 || path.contains('\0') {
        return Err(format!(
            "{shown:?} is not the address of a socket: an absolute path, or \"unix:\" and an absolute path"
        ));
    }
    if path.split('/').any(|name| name == "." || name == "..") {
        return Err(format!(
            "{shown:?} contains the component \".\" or \"..\"; use the path without it"
        ));
    }
    Ok(path.into())
}

/// Returns the time in `value`, which must be within `range`.
pub(super) fn time(value: &Value, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let example = "a time such as \"5s\" or \"1min 30s\"";
    let Value::Text(text) = value else {
        return Err(format!("{} is not {example}", value.kind()));
    };
    let time = humantime::parse_duration(text);
    let time = time.map_err(|_| format!("{} is not {example}", shown(text)))?;
    if !range.contains(&time) {
        let (from, to) = (*range.start(), *range.end());
        let [from, to] = [from, to].map(humantime::format_duration);
        return Err(format!("{} is not between {from} and {to}", shown(text)));
    }
    Ok(time)
}

fn text(value: &Value) -> Result<&str, String> {
    match value {
        Value::Text(text) => Ok(text),
        other => Err(format!("{} where there must be a text", other.kind())),
    }
}

fn integer(value: &Value) -> Result<i64, String> {
    match value {
        Value::Integer(number) => Ok(*number),
        other => Err(format!("{} where there must be an integer", other.kind())),
    }
}

/// Returns the value of a switch.
pub(super) fn boolean(value: &Value) -> Result<bool, String> {
    match value {
        Value::Boolean(value) => Ok(*value),
        other => Err(format!("{} is not true or false", other.kind())),
    }
}

fn read<T: FromStr<Err: fmt::Display>>(value: &Value) -> Result<T, String> {
    let parsed = text(value)?.parse();
    parsed.map_err(|error: T::Err| error.to_string())
}

/// Returns a list of numbers that is not empty.
fn list<T: FromStr<Err: fmt::Display>>(value: &Value) -> Result<T, String> {
    match text(value)?.trim() {
        "" => Err("the list is empty".to_owned()),
        _ => read(value),
    }
}

fn slice(value: &Value) -> Result<String, String> {
    let name = text(value)?;
    let valid = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    let stem = name.strip_suffix(".slice").unwrap_or_default();
    if stem.is_empty() || name.len() >= 256 || !stem.bytes().all(valid) {
        let name = shown(name);
        return Err(format!(
            "{name} is not a slice of systemd, such as \"{SLICE}\""
        ));
    }
    Ok(name.to_owned())
}

/// Returns the microseconds in `value`: an integer, or a time such as "100ms".
fn microseconds(value: &Value) -> Result<i64, String> {
    const EXAMPLE: &str = "a time such as \"100ms\", or microseconds";
    match value {
        Value::Integer(usec) => Ok(*usec),
        Value::Text(text) => match (text.parse(), humantime::parse_duration(text)) {
            (Ok(usec), _) => Ok(usec),
            (_, Ok(time)) => Ok(i64::try_from(time.as_micros()).unwrap_or(i64::MAX)),
            _ => Err(format!("{} is not {EXAMPLE}", shown(text))),
        },
        other => Err(format!("{} is not {EXAMPLE}", other.kind())),
    }
}

fn period(value: &Value) -> Result<u64, String> {
    let usec = microseconds(value)?;
    // 0 is out of range, as a negative number is.
    let usec = u64::try_from(usec).unwrap_or(0);
    let bandwidth = Bandwidth::new(usec, -1).map_err(|error| error.to_string())?;
    Ok(bandwidth.period())
}

fn quota(value: &Value) -> Result<i64, String> {
    let period = Bandwidth::UNLIMITED.period();
    let bandwidth =
        Bandwidth::new(period, microseconds(value)?).map_err(|error| error.to_string())?;
    Ok(bandwidth.signed_quota())
}

/// Returns the shares of the caches: a list of tables, each for some vCPUs.
fn cache(entry: &Entry) -> Result<BTreeMap<VcpuId, Schemata>, ConfigError> {
    const EXAMPLE: &str = "[{ vcpus = \"0-3\", schemata = \"L3:0=f\" }]";
    let wrong = |line: usize, text: String| ConfigError::in_line(line, &entry.key, text);
    let not_a_list = || wrong(entry.line, format!("it must be a list such as {EXAMPLE}"));
    let Value::List(items) = &entry.value else {
        return Err(not_a_list());
    };
    let mut shares = BTreeMap::new();
    for Item { line, value } in items {
        let Value::Table(table) = value else {
            return Err(not_a_list());
        };
        let find = |key: &str| {
            let entry = table.iter().find(|entry| entry.key == key);
            entry.ok_or_else(|| wrong(*line, format!("{key:?} is missing; such as {EXAMPLE}")))
        };
        let other = |entry: &&Entry| entry.key != "vcpus" && entry.key != "schemata";
        if let Some(other) = table.iter().find(other) {
            let unknown = unknown("key", &other.key, &["vcpus", "schemata"]);
            return Err(wrong(other.line, format!("{}: {unknown}", other.key)));
        }
        let (vcpus, schemata) = (find("vcpus")?, find("schemata")?);
        let at = |entry: &Entry, text| wrong(entry.line, format!("{}: {text}", entry.key));
        let list: VcpuList = list(&vcpus.value).map_err(|text| at(vcpus, text))?;
        let share: Schemata = read(&schemata.value).map_err(|text| at(schemata, text))?;
        for vcpu in list.iter().map(VcpuId) {
            if shares.insert(vcpu, share.clone()).is_some() {
                return Err(at(vcpus, format!("vCPU {vcpu} is in more than one list")));
            }
        }
    }
    Ok(shares)
}
