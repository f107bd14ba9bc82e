//! Settings as text, for polkit and the audit records of registrations.

use super::settings::{MachineSettings, Settings};
use crate::ids::VcpuId;
use crate::placement::Schemata;

/// Keys with their values, as a file has them.
type Values = Vec<(&'static str, String)>;

impl MachineSettings {
    /// Returns the keys that are set, with their values in one canonical form: times and quotas in
    /// microseconds, lists sorted. The socket `qmp` is not among them.
    pub fn describe(&self) -> Values {
        let mut values = self.settings.describe();
        let agent = self.guest_agent.as_ref();
        values.extend(agent.map(|path| ("guest-agent", path.display().to_string())));
        values.extend(self.uuid.as_ref().map(|uuid| ("uuid", uuid.to_string())));
        values
    }
}

impl Settings {
    fn describe(&self) -> Values {
        let mut values = Values::new();
        let usec = |time: std::time::Duration| time.as_micros().to_string();
        values.extend(
            self.removal_timeout
                .map(|time| ("removal-timeout", usec(time))),
        );
        values.extend(self.qmp_timeout.map(|time| ("qmp-timeout", usec(time))));
        values.extend(self.placement.map(|wish| ("placement", wish.to_string())));
        values.extend(self.slice.clone().map(|slice| ("slice", slice)));
        let affinity = self.affinity.as_ref();
        values.extend(affinity.map(|cpus| ("affinity", cpus.to_string())));
        let nodes = self.memory_nodes.as_ref();
        values.extend(nodes.map(|nodes| ("memory-nodes", nodes.to_string())));
        let period = self.bandwidth_period;
        values.extend(period.map(|usec| ("bandwidth-period", usec.to_string())));
        let quota = self.bandwidth_quota;
        values.extend(quota.map(|usec| ("bandwidth-quota", usec.to_string())));
        if let Some(scheduler) = self.scheduler {
            values.push(("scheduler", scheduler.policy().to_owned()));
            values.push(("priority", scheduler.priority().to_string()));
        }
        if let Some(shares) = &self.cache {
            let share =
                |(vcpu, schemata): (&VcpuId, &Schemata)| format!("{vcpu}={}", schemata.line());
            let shares: Vec<String> = shares.iter().map(share).collect();
            values.push(("cache", shares.join(" ")));
        }
        values
    }
}
