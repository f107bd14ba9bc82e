//! The command "tuning": the desired values of the placement.

use std::collections::{BTreeMap, HashMap};
use std::io::{Write, stdout};

use serde_json::{Map, Value as Json};
use zbus::OwnedVariant;

use crate::client::Client;
use crate::failure::Failure;
use crate::render;

type Tuning = HashMap<String, OwnedVariant>;

/// The lists of `GetTuning`, and the members of their structures.
const LISTS: [(&str, &[&str]); 3] = [
    ("pins", &["vcpu", "cpus"]),
    ("schedulers", &["vcpu", "policy", "priority"]),
    ("cache", &["vcpu", "schemata"]),
];

/// Prints the desired values of a machine.
pub(crate) async fn tuning(client: &Client, name: &str) -> Result<(), Failure> {
    let tuning = client.machine(name).await?.get_tuning().await?;
    if client.json {
        return Ok(render::document(&object(&tuning))?);
    }
    let text = |key: &str| render::text(tuning.get(key));
    let limit = match text("bandwidth-quota-usec").as_str() {
        "-1" => "unlimited".to_owned(),
        quota => format!("{quota} µs per {} µs", text("bandwidth-period-usec")),
    };
    let scheduler = scheduler(&text("scheduler"), &text("priority"));
    let lines = [
        ("Affinity", text("affinity")),
        ("Memory nodes", text("memory-nodes")),
        ("CPU quota", limit),
        ("Scheduler", scheduler),
    ];
    let mut out = stdout().lock();
    writeln!(out, "{name}")?;
    for (label, value) in lines {
        writeln!(out, "{label:>16}: {value}")?;
    }
    for (vcpu, values) in of_vcpus(&tuning) {
        let label = format!("vCPU {vcpu}");
        writeln!(out, "{label:>16}: {}", values.join(", "))?;
    }
    Ok(())
}

/// Returns the values as JSON, with objects instead of structures.
fn object(tuning: &Tuning) -> Json {
    let mut object = Map::new();
    for (key, value) in tuning {
        let value = render::json(value);
        let members = LISTS.iter().find(|(list, _)| list == key);
        let value = match members {
            Some((_, members)) => rows(&value, members).into_iter().collect(),
            None => value,
        };
        object.insert(key.clone(), value);
    }
    Json::Object(object)
}

/// Returns the objects of a list of structures with `members`.
fn rows(list: &Json, members: &[&str]) -> Vec<Json> {
    let row = |row: &Json| {
        let values = row.as_array().into_iter().flatten().map(|value| {
            // A text of resctrl has a newline at its end.
            let text = value.as_str().map(|text| Json::from(text.trim_end()));
            text.unwrap_or_else(|| value.clone())
        });
        let members = members.iter().map(|member| (*member).to_owned());
        Json::Object(members.zip(values).collect())
    };
    list.as_array().into_iter().flatten().map(row).collect()
}

/// Returns the values of the vCPUs that have some of their own, as text.
fn of_vcpus(tuning: &Tuning) -> BTreeMap<u64, Vec<String>> {
    let mut vcpus: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for (key, members) in LISTS {
        let list = tuning.get(key).map(|list| render::json(list));
        for row in rows(&list.unwrap_or_default(), members) {
            let text = |member: &str| match &row[member] {
                Json::String(text) => text.replace('\n', " "),
                value => value.to_string(),
            };
            let value = match key {
                "pins" => format!("affinity {}", text("cpus")),
                "cache" => format!("cache {}", text("schemata")),
                _ => format!(
                    "scheduler {}",
                    scheduler(&text("policy"), &text("priority"))
                ),
            };
            let vcpu = row["vcpu"].as_u64().unwrap_or_default();
            vcpus.entry(vcpu).or_default().push(value);
        }
    }
    vcpus
}

/// Returns a scheduling policy with its priority, if it has one.
fn scheduler(policy: &str, priority: &str) -> String {
    if matches!(priority, "0" | "-") {
        policy.to_owned()
    } else {
        format!("{policy}:{priority}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use zbus::Variant;

    use super::*;

    fn sample() -> Tuning {
        let value = |value: Variant<'static>| OwnedVariant::try_from(value).unwrap();
        let tuning = [
            ("affinity", value("0-3".into())),
            ("pins", value(vec![(2_u32, "4-5")].into())),
            ("schedulers", value(vec![(2_u32, "fifo", 10)].into())),
            ("cache", value(vec![(3_u32, "L3:0=f\nMB:0=10\n")].into())),
        ];
        tuning.map(|(key, value)| (key.to_owned(), value)).into()
    }

    #[test]
    fn json_names_the_values_of_vcpus() {
        let expected = json!({
            "affinity": "0-3",
            "pins": [{"vcpu": 2, "cpus": "4-5"}],
            "schedulers": [{"vcpu": 2, "policy": "fifo", "priority": 10}],
            "cache": [{"vcpu": 3, "schemata": "L3:0=f\nMB:0=10"}],
        });
        assert_eq!(object(&sample()), expected);
    }

    #[test]
    fn a_vcpu_has_all_its_values_in_one_line() {
        let vcpus = of_vcpus(&sample());
        assert_eq!(vcpus[&2], ["affinity 4-5", "scheduler fifo:10"]);
        assert_eq!(vcpus[&3], ["cache L3:0=f MB:0=10"]);
    }
}
