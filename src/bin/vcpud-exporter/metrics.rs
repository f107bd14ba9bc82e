//! The metrics: the mapping from the statistics of the service to OpenMetrics. Pure.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use vcpud::proxy::{Statistics, number};

/// The statistics of all machines, by name.
#[derive(Debug)]
pub(crate) struct Machines(pub BTreeMap<String, Statistics>);

type Dict = std::collections::HashMap<String, zbus::OwnedVariant>;

/// A metric with one sample for each machine or vCPU that has its key.
struct Metric {
    /// The name without the prefix `vcpud_`, the unit and `_total`.
    name: &'static str,
    help: &'static str,
    kind: Kind,
    /// The keys of the statistics, and the value of the label `result` if there is one.
    keys: &'static [(&'static str, Option<&'static str>)],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A number that can decrease.
    Gauge,
    /// A number that only grows.
    Counter,
    /// A time in microseconds that only grows.
    Time,
}

macro_rules! metrics {
    ($($kind:ident $name:literal $($key:literal $(= $result:literal)?),+: $help:literal;)*) => {
        &[$(Metric {
            name: $name,
            help: $help,
            kind: Kind::$kind,
            keys: &[$(($key, metrics!(@ $($result)?))),+],
        }),*]
    };
    (@) => { None };
    (@ $result:literal) => { Some($result) };
}

const OF_MACHINE: &[Metric] = metrics! {
    Gauge "vcpus" "vcpus": "Present vCPUs of the machine";
    Gauge "max_vcpus" "max-vcpus": "Maximum number of vCPUs of the machine";
    Gauge "started_vcpus" "started": "Present vCPUs that the guest has started";
    Gauge "pending_removals" "pending": "vCPUs whose removal is pending";
    Time "machine_usage" "usage-usec": "CPU time of the machine";
    Time "emulator_usage" "emulator-usage-usec": "CPU time of the threads that are not vCPUs";
    Counter "requests" "requests": "Authorized requests to change vCPUs that have ended";
    Counter "failed_requests" "failed-requests": "Requests to change vCPUs that failed";
    Time "request" "request-usec": "Duration of the requests to change vCPUs";
    Counter "additions" "added": "vCPUs that were added";
    Counter "removals" "removed" = "removed", "refused" = "refused":
        "Removals of vCPUs that have ended, by result";
    Counter "qmp_connections" "connections": "QMP connections on which QEMU answered";
    Counter "restored_settings" "restored":
        "Settings of vCPUs that another program changed and vcpud restored";
};

const OF_VCPU: &[Metric] = metrics! {
    Time "vcpu_usage" "usage-usec": "CPU time of the vCPU";
    Time "vcpu_steal" "wait-usec": "Time in which the vCPU was runnable and did not run, without throttling";
    Time "vcpu_throttled" "throttled-usec": "Time in which the vCPU was throttled by its quota";
    Counter "vcpu_periods" "periods": "Periods in which the vCPU ran with a quota";
    Counter "vcpu_throttled_periods" "throttled-periods": "Periods in which the vCPU was throttled";
};

/// Returns the metrics of `machines` in the text format of OpenMetrics.
pub(crate) fn encode(machines: Machines) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("vcpud");
    registry.register_collector(Box::new(machines));
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(page)
}

impl Collector for Machines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in OF_MACHINE {
            let mut encoder = metric.describe(&mut encoder)?;
            for (name, (machine, _)) in &self.0 {
                metric.encode(&mut encoder, &[("machine", name)], machine)?;
            }
        }
        for metric in OF_VCPU {
            let mut encoder = metric.describe(&mut encoder)?;
            for (name, (_, vcpus)) in &self.0 {
                for vcpu in vcpus {
                    let id = number(vcpu, "id").unwrap_or_default().to_string();
                    metric.encode(&mut encoder, &[("machine", name), ("vcpu", &id)], vcpu)?;
                }
            }
        }
        Ok(())
    }
}

impl Metric {
    fn describe<'e>(
        &self,
        encoder: &'e mut DescriptorEncoder<'_>,
    ) -> Result<MetricEncoder<'e>, fmt::Error> {
        let unit = (self.kind == Kind::Time).then_some(&Unit::Seconds);
        let metric_type = match self.kind {
            Kind::Gauge => MetricType::Gauge,
            Kind::Counter | Kind::Time => MetricType::Counter,
        };
        encoder.encode_descriptor(self.name, self.help, unit, metric_type)
    }

    /// Encodes the samples of a machine or vCPU with these `labels` and values.
    fn encode(
        &self,
        encoder: &mut MetricEncoder<'_>,
        labels: &[(&str, &str)],
        values: &Dict,
    ) -> fmt::Result {
        for (key, result) in self.keys {
            let Some(value) = number(values, key) else {
                continue;
            };
            let labels = (labels, result.map(|result| ("result", result)));
            let labels: Vec<_> = labels.0.iter().copied().chain(labels.1).collect();
            let mut sample = encoder.encode_family(&labels)?;
            match self.kind {
                Kind::Gauge => sample.encode_gauge(&value)?,
                Kind::Counter => sample.encode_counter::<NoLabelSet, _, u64>(&value, None)?,
                Kind::Time => {
                    let seconds = value as f64 / 1e6;
                    sample.encode_counter::<NoLabelSet, _, u64>(&seconds, None)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use zbus::OwnedVariant;

    use super::*;

    fn dict(values: &[(&str, u64)]) -> Dict {
        let value = |(key, value): &(&str, u64)| (key.to_string(), OwnedVariant::from(*value));
        values.iter().map(value).collect()
    }

    /// Returns the samples of a machine `name`, without descriptions.
    fn samples(name: &str, machine: Dict, vcpus: Vec<Dict>) -> Vec<String> {
        let machines = Machines([(name.to_owned(), (machine, vcpus))].into());
        let page = encode(machines).unwrap();
        assert!(page.ends_with("\n# EOF\n"), "{page}");
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn numbers_of_a_machine_become_gauges_and_counters() {
        let machine = dict(&[
            ("vcpus", 4),
            ("max-vcpus", 16),
            ("emulator-usage-usec", 2_500_000),
            ("requests", 7),
            ("removed", 3),
            ("refused", 1),
            ("unknown", 9),
        ]);
        let expected = [
            r#"vcpud_vcpus{machine="web"} 4"#,
            r#"vcpud_max_vcpus{machine="web"} 16"#,
            r#"vcpud_emulator_usage_seconds_total{machine="web"} 2.5"#,
            r#"vcpud_requests_total{machine="web"} 7"#,
            r#"vcpud_removals_total{machine="web",result="removed"} 3"#,
            r#"vcpud_removals_total{machine="web",result="refused"} 1"#,
        ];
        assert_eq!(samples("web", machine, Vec::new()), expected);
    }

    #[test]
    fn vcpus_have_a_label_and_absent_keys_no_sample() {
        let full = dict(&[
            ("id", 0),
            ("usage-usec", 1_000_001),
            ("throttled-usec", 500),
        ]);
        let empty = dict(&[("id", 12)]);
        let waits = dict(&[("id", 13), ("wait-usec", 0)]);
        let expected = [
            r#"vcpud_vcpu_usage_seconds_total{machine="db",vcpu="0"} 1.000001"#,
            r#"vcpud_vcpu_steal_seconds_total{machine="db",vcpu="13"} 0.0"#,
            r#"vcpud_vcpu_throttled_seconds_total{machine="db",vcpu="0"} 0.0005"#,
        ];
        let vcpus = vec![full, empty, waits];
        assert_eq!(samples("db", Dict::new(), vcpus), expected);
    }

    #[test]
    fn a_name_cannot_forge_a_sample() {
        let name = "a\"} 1\nvcpud_vcpus{machine=\"b\\";
        let expected = [r#"vcpud_vcpus{machine="a\"} 1\nvcpud_vcpus{machine=\"b\\"} 1"#];
        assert_eq!(samples(name, dict(&[("vcpus", 1)]), Vec::new()), expected);
    }

    #[test]
    fn without_machines_there_are_only_descriptions() {
        let page = encode(Machines(BTreeMap::new())).unwrap();
        assert!(page.lines().all(|line| line.starts_with('#')), "{page}");
        let unit = "# UNIT vcpud_vcpu_steal_seconds seconds";
        assert!(page.lines().any(|line| line == unit), "{page}");
    }
}
