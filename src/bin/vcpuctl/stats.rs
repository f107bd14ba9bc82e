//! The command "stats".

use std::collections::HashMap;
use std::io::{Write, stdout};

use serde_json::{Value as Json, json};
use vcpud::names::name_of;
use vcpud::proxy::Statistics;
use zbus::{OwnedVariant, Variant};

use crate::client::Client;
use crate::failure::Failure;
use crate::render::{self, Table};

type Dict = HashMap<String, OwnedVariant>;

/// Prints the statistics of the machine `name` and its vCPUs, or of all machines.
pub(crate) async fn stats(client: &Client, name: Option<&str>, kvm: bool) -> Result<(), Failure> {
    let options = HashMap::from([("kvm", Variant::from(kvm))]);
    match name {
        Some(name) => {
            let statistics = client.machine(name).await?.get_statistics(options).await?;
            if client.json {
                let object = object(name, &statistics);
                return Ok(render::document(&object)?);
            }
            print_machine(client.legend, name, &statistics)
        }
        None => {
            let all = client.manager().await?.get_statistics(options).await?;
            let all = all.into_iter();
            let mut all: Vec<_> = all.map(|(path, s)| (name_of(&path), s)).collect();
            all.sort_by(|(a, _), (b, _)| a.cmp(b));
            if client.json {
                let list: Vec<Json> = all.iter().map(|(n, s)| object(n, s)).collect();
                return Ok(render::document(&json!(list))?);
            }
            print_all(client.legend, &all)
        }
    }
}

fn object(name: &str, (machine, vcpus): &Statistics) -> Json {
    let vcpus: Vec<Json> = vcpus.iter().map(render::json_dict).collect();
    json!({"name": name, "machine": render::json_dict(machine), "vcpus": vcpus})
}

/// The columns of a vCPU: the key and the heading. Those of KVM are shown only if a vCPU has a value.
const COLUMNS: [(&str, &str); 8] = [
    ("id", "VCPU"),
    ("usage-usec", "USAGE"),
    ("wait-usec", "WAIT"),
    ("throttled-usec", "THROTTLED"),
    ("host-cpu", "HOST-CPU"),
    ("exits", "EXITS"),
    ("halt-exits", "HALT-EXITS"),
    ("halt-wait-usec", "HALT-WAIT"),
];
const ALWAYS: usize = 5;

fn print_machine(legend: bool, name: &str, (machine, vcpus): &Statistics) -> Result<(), Failure> {
    let mut out = stdout().lock();
    writeln!(out, "{name}")?;
    let count = |key: &str| render::text(machine.get(key));
    let lines = [
        ("CPU time", time(machine, "usage-usec")),
        ("Emulator", time(machine, "emulator-usage-usec")),
        (
            "vCPUs",
            format!("{} of {}", count("vcpus"), count("max-vcpus")),
        ),
        ("Pending removals", count("pending")),
    ];
    for (label, value) in lines {
        writeln!(out, "{label:>16}: {value}")?;
    }
    let has = |key: &str| vcpus.iter().any(|vcpu| vcpu.contains_key(key));
    let columns = COLUMNS.iter().enumerate();
    let columns = columns.filter(|(n, (key, _))| *n < ALWAYS || has(key));
    let columns: Vec<_> = columns.map(|(_, column)| column).collect();
    let mut table = Table::new(legend, columns.iter().map(|(_, heading)| *heading));
    for vcpu in vcpus {
        table.row(columns.iter().map(|(key, _)| cell(vcpu, key)));
    }
    table.hide_columns();
    writeln!(out)?;
    Ok(table.print(&mut out)?)
}

/// The columns of the table of all machines.
const ALL_HEADINGS: [&str; 8] = [
    "MACHINE",
    "VCPUS",
    "MAX",
    "PENDING",
    "USAGE",
    "EMULATOR",
    "WAIT",
    "THROTTLED",
];

fn print_all(legend: bool, machines: &[(String, Statistics)]) -> Result<(), Failure> {
    let mut table = Table::new(legend, ALL_HEADINGS);
    for (name, (machine, vcpus)) in machines {
        let counts = ["vcpus", "max-vcpus", "pending"].map(|key| cell(machine, key));
        let usages = ["usage-usec", "emulator-usage-usec"].map(|key| cell(machine, key));
        let sums = ["wait-usec", "throttled-usec"].map(|key| {
            let times: Vec<u64> = vcpus
                .iter()
                .filter_map(|vcpu| render::number(vcpu.get(key)))
                .collect();
            let has_any = !times.is_empty();
            seconds(has_any.then(|| times.iter().sum()))
        });
        let name = std::iter::once(name.clone());
        table.row(name.chain(counts).chain(usages).chain(sums));
    }
    table.hide_columns();
    Ok(table.print(&mut stdout())?)
}

/// Returns a value of a table.
fn cell(dict: &Dict, key: &str) -> String {
    if key.ends_with("-usec") {
        time(dict, key)
    } else {
        render::text(dict.get(key))
    }
}

fn time(dict: &Dict, key: &str) -> String {
    seconds(render::number(dict.get(key)))
}

/// Returns a time in µs as text.
fn seconds(usec: Option<u64>) -> String {
    usec.map_or_else(
        || "-".to_owned(),
        |usec| format!("{}.{:03} s", usec / 1_000_000, usec / 1_000 % 1_000),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_seconds() {
        assert_eq!(seconds(None), "-");
        assert_eq!(seconds(Some(0)), "0.000 s");
        assert_eq!(seconds(Some(12_034_999)), "12.034 s");
    }
}
