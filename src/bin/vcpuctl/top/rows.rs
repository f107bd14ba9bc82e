//! The rows that the user has chosen: sorted, filtered, and with vCPUs where they are expanded. Pure.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use serde_json::{Map, Value as Json, json};

use super::rates::{Machine, Rates, Vcpu};
use crate::cli::Sort;

impl Sort {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Use => "use",
            Self::Steal => "steal",
            Self::Throttled => "throttled",
            Self::Pending => "pending",
        }
    }

    fn rate(self, rates: &Rates) -> Option<f64> {
        match self {
            Self::Name | Self::Pending => None,
            Self::Use => rates.used,
            Self::Steal => rates.stolen,
            Self::Throttled => rates.throttled,
        }
    }

    /// Compares rows by their numbers of pending removals and their rates.
    fn compare(self, a: (usize, &Rates), b: (usize, &Rates)) -> Ordering {
        if self == Self::Pending {
            return b.0.cmp(&a.0);
        }
        let rate = |rates| self.rate(rates).unwrap_or(-1.0);
        rate(b.1).total_cmp(&rate(a.1))
    }
}

/// The machines whose vCPUs are shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expanded {
    all: bool,
    except: BTreeSet<String>,
}

impl Expanded {
    pub(crate) fn all(all: bool) -> Self {
        let except = BTreeSet::new();
        Self { all, except }
    }

    pub(crate) fn has(&self, machine: &str) -> bool {
        self.all != self.except.contains(machine)
    }

    pub(crate) fn set(&mut self, machine: &str, expand: bool) {
        if expand == self.all {
            self.except.remove(machine);
        } else {
            self.except.insert(machine.to_owned());
        }
    }

    /// Expands all machines, or collapses them if all are expanded.
    pub(crate) fn toggle_all(&mut self) {
        *self = Self::all(!(self.all && self.except.is_empty()));
    }
}

/// The choice of the user: order, machines, and vCPUs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Choice {
    pub sort: Sort,
    /// Whether the order of machines, and of the vCPUs of each machine, is the reverse.
    pub is_reversed: bool,
    /// A part of the names of the machines to show.
    pub filter: String,
    pub expanded: Expanded,
}

impl Choice {
    /// Returns the chosen machines with all their vCPUs, in order.
    pub(crate) fn machines(&self, machines: &[Machine]) -> Vec<Machine> {
        let chosen = machines.iter().filter(|m| m.name.contains(&self.filter));
        let mut chosen: Vec<Machine> = chosen.cloned().collect();
        for machine in &mut chosen {
            let of = |vcpu: &Vcpu| (usize::from(vcpu.is_pending), vcpu.rates);
            let vcpus = &mut machine.vcpus;
            vcpus.sort_by(|a, b| {
                let ((a, of_a), (b, of_b)) = (of(a), of(b));
                self.sort.compare((a, &of_a), (b, &of_b))
            });
            if self.is_reversed {
                vcpus.reverse();
            }
        }
        chosen.sort_by(|a, b| {
            let (of_a, of_b) = (a.pending.len(), b.pending.len());
            self.sort.compare((of_a, &a.rates), (of_b, &b.rates))
        });
        if self.is_reversed {
            chosen.reverse();
        }
        chosen
    }

    pub(crate) fn rows(&self, machines: &[Machine]) -> Vec<Row> {
        let machines = self.machines(machines).into_iter();
        let rows = machines.flat_map(|machine| {
            let is_expanded = self.expanded.has(&machine.name);
            let shown = if is_expanded { &machine.vcpus[..] } else { &[] };
            let vcpus = shown.iter().map(|vcpu| Row::of_vcpu(&machine.name, vcpu));
            let mut rows = vec![Row::of_machine(&machine, is_expanded)];
            rows.extend(vcpus);
            rows
        });
        rows.collect()
    }
}

/// The headings of the cells. Rates are in percent of one host CPU.
pub(crate) const HEADINGS: [&str; 8] = [
    "MACHINE", "STATE", "VCPUS", "PENDING", "USE%", "STEAL%", "THROT%", "CPU",
];

/// The machine of a row, and its vCPU if the row is one.
pub(crate) type Key = (String, Option<u32>);

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub key: Key,
    /// Whether the vCPUs of this machine follow; `None` for a vCPU.
    pub is_expanded: Option<bool>,
    pub cells: [String; 8],
}

impl Row {
    fn of_machine(machine: &Machine, is_expanded: bool) -> Self {
        let max = machine.max_vcpus;
        let max = max.map_or_else(|| "-".to_owned(), |max| max.to_string());
        let pending = match machine.pending.len() {
            0 => "-".to_owned(),
            count => count.to_string(),
        };
        let [used, stolen, throttled] = percentages(&machine.rates);
        let cells = [
            machine.name.clone(),
            machine.state.clone(),
            format!("{}/{max}", machine.vcpus.len()),
            pending,
            used,
            stolen,
            throttled,
            String::new(),
        ];
        Self {
            key: (machine.name.clone(), None),
            is_expanded: Some(is_expanded),
            cells,
        }
    }

    fn of_vcpu(machine: &str, vcpu: &Vcpu) -> Self {
        let state = if vcpu.is_pending {
            "pending"
        } else {
            "present"
        };
        let [used, stolen, throttled] = percentages(&vcpu.rates);
        let host_cpu = vcpu.host_cpu;
        let cells = [
            format!("  vCPU {}", vcpu.id),
            state.to_owned(),
            String::new(),
            String::new(),
            used,
            stolen,
            throttled,
            host_cpu.map_or_else(|| "-".to_owned(), |cpu| cpu.to_string()),
        ];
        Self {
            key: (machine.to_owned(), Some(vcpu.id)),
            is_expanded: None,
            cells,
        }
    }
}

fn percentages(rates: &Rates) -> [String; 3] {
    let text = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
    [rates.used, rates.stolen, rates.throttled].map(text)
}

/// Returns a machine as a JSON object. A value that is not known is absent.
pub(crate) fn object(machine: &Machine) -> Json {
    let vcpus = machine.vcpus.iter().map(|vcpu| {
        let mut object = known(&vcpu.rates);
        object.insert("id".to_owned(), vcpu.id.into());
        object.insert("pending".to_owned(), vcpu.is_pending.into());
        object.extend(vcpu.host_cpu.map(|cpu| ("host-cpu".to_owned(), cpu.into())));
        Json::Object(object)
    });
    let vcpus: Vec<Json> = vcpus.collect();
    let mut object = known(&machine.rates);
    object.extend([
        ("name".to_owned(), json!(machine.name)),
        ("state".to_owned(), json!(machine.state)),
        ("pending".to_owned(), json!(machine.pending)),
        ("vcpus".to_owned(), json!(vcpus)),
    ]);
    let max = machine.max_vcpus;
    object.extend(max.map(|max| ("max-vcpus".to_owned(), max.into())));
    Json::Object(object)
}

fn known(rates: &Rates) -> Map<String, Json> {
    let members = [
        ("use-percent", rates.used),
        ("steal-percent", rates.stolen),
        ("throttled-percent", rates.throttled),
    ];
    let rounded = |rate: f64| json!((rate * 10.0).round() / 10.0);
    let known = |(key, rate): (&str, Option<f64>)| Some((key.to_owned(), rounded(rate?)));
    members.into_iter().filter_map(known).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn rates(used: f64, stolen: f64) -> Rates {
        Rates {
            used: Some(used),
            stolen: Some(stolen),
            throttled: None,
        }
    }

    /// The machines db, web-1 and web-2. The second has a pending removal, the third has no rates.
    pub(crate) fn three() -> Vec<Machine> {
        let vcpu = |id, used, stolen| Vcpu {
            id,
            is_pending: false,
            rates: rates(used, stolen),
            host_cpu: Some(u64::from(id) + 4),
        };
        let machine = |name: &str, vcpus: Vec<Vcpu>, rates| Machine {
            name: name.to_owned(),
            state: "running".to_owned(),
            max_vcpus: Some(8),
            pending: Vec::new(),
            rates,
            vcpus,
        };
        let db = vec![vcpu(0, 20.0, 1.0), vcpu(1, 99.96, 0.0)];
        let mut web = vec![vcpu(0, 5.0, 90.0), vcpu(1, 5.0, 2.0)];
        web[1].is_pending = true;
        let mut machines = vec![
            machine("db", db, rates(123.44, 1.0)),
            machine("web-1", web, rates(10.0, 92.0)),
            machine("web-2", vec![Vcpu::default()], Rates::default()),
        ];
        machines[1].pending = vec![1];
        machines[2].state = "paused".to_owned();
        machines
    }

    fn names(choice: &Choice) -> Vec<String> {
        let rows = choice.rows(&three()).into_iter();
        rows.map(|row| row.cells[0].trim_start().to_owned())
            .collect()
    }

    #[test]
    fn rows_are_sorted_by_the_chosen_value_and_then_by_name() {
        let sorted = |sort| {
            names(&Choice {
                sort,
                ..Choice::default()
            })
        };
        assert_eq!(sorted(Sort::Name), ["db", "web-1", "web-2"]);
        assert_eq!(sorted(Sort::Use), ["db", "web-1", "web-2"]);
        assert_eq!(sorted(Sort::Steal), ["web-1", "db", "web-2"]);
        assert_eq!(sorted(Sort::Throttled), ["db", "web-1", "web-2"]);
        assert_eq!(sorted(Sort::Pending), ["web-1", "db", "web-2"]);
        let choice = Choice {
            sort: Sort::Use,
            filter: "db".to_owned(),
            expanded: Expanded::all(true),
            ..Choice::default()
        };
        assert_eq!(names(&choice), ["db", "vCPU 1", "vCPU 0"]);
        let choice = Choice {
            sort: Sort::Use,
            is_reversed: true,
            expanded: Expanded::all(true),
            ..Choice::default()
        };
        let reversed = [
            "web-2", "vCPU 0", "web-1", "vCPU 1", "vCPU 0", "db", "vCPU 0", "vCPU 1",
        ];
        assert_eq!(names(&choice), reversed);
    }

    #[test]
    fn the_filter_is_a_part_of_the_name_and_machines_expand() {
        let mut choice = Choice {
            filter: "web".to_owned(),
            ..Choice::default()
        };
        assert_eq!(names(&choice), ["web-1", "web-2"]);
        choice.expanded.set("web-1", true);
        assert_eq!(names(&choice), ["web-1", "vCPU 0", "vCPU 1", "web-2"]);
        choice.expanded.toggle_all();
        assert_eq!(names(&choice).len(), 5);
        choice.expanded.set("web-1", false);
        assert_eq!(names(&choice), ["web-1", "web-2", "vCPU 0"]);
        choice.expanded.toggle_all();
        choice.expanded.toggle_all();
        assert_eq!(names(&choice), ["web-1", "web-2"]);
    }

    #[test]
    fn cells_and_objects_have_the_same_values() {
        let machine = &three()[1];
        let row = Row::of_machine(machine, true);
        let cells = ["web-1", "running", "2/8", "1", "10.0", "92.0", "-", ""];
        assert_eq!(row.cells, cells);
        let row = Row::of_vcpu("web-1", &machine.vcpus[1]);
        let cells = ["  vCPU 1", "pending", "", "", "5.0", "2.0", "-", "5"];
        assert_eq!(row.cells, cells);
        let vcpus = json!([
            {"id": 0, "pending": false, "use-percent": 5.0, "steal-percent": 90.0, "host-cpu": 4},
            {"id": 1, "pending": true, "use-percent": 5.0, "steal-percent": 2.0, "host-cpu": 5},
        ]);
        let expected = json!({"name": "web-1", "state": "running", "max-vcpus": 8, "pending": [1],
            "use-percent": 10.0, "steal-percent": 92.0, "vcpus": vcpus});
        assert_eq!(object(machine), expected);
    }
}
