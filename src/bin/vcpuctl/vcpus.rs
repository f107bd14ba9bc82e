//! The command "vcpus".

use std::collections::HashMap;
use std::io::{Write, stdout};

use serde_json::json;
use vcpud::placement::VcpuList;
use zbus::OwnedVariant;

use crate::client::Client;
use crate::failure::Failure;
use crate::render::{self, Table};

/// A vCPU as `ListVcpus` describes it.
type Vcpu = HashMap<String, OwnedVariant>;

/// The columns that are shown only if a vCPU has a value: from the guest and its agent, the threads, and the
/// topology.
const EXTRA: [(&str, &str); 13] = [
    ("started", "STARTED"),
    ("online", "ONLINE"),
    ("affinity", "AFFINITY"),
    ("scheduler", "SCHEDULER"),
    ("node-id", "NODE"),
    ("drawer-id", "DRAWER"),
    ("book-id", "BOOK"),
    ("socket-id", "SOCKET"),
    ("die-id", "DIE"),
    ("cluster-id", "CLUSTER"),
    ("module-id", "MODULE"),
    ("core-id", "CORE"),
    ("thread-id-in-core", "THREAD"),
];

/// Prints the vCPUs of a machine. Without `all`, the free ones are in one line.
pub(crate) async fn vcpus(client: &Client, name: &str, all: bool) -> Result<(), Failure> {
    let vcpus = client.machine(name).await?.list_vcpus().await?;
    if client.json {
        let list: Vec<_> = vcpus.iter().map(render::json_dict).collect();
        return Ok(render::document(&json!(list))?);
    }
    let is_present = |vcpu: &&Vcpu| flag(vcpu, "present");
    let shown: Vec<&Vcpu> = vcpus
        .iter()
        .filter(|vcpu| all || is_present(vcpu))
        .collect();
    let has = |key: &str| shown.iter().any(|vcpu| vcpu.contains_key(key));
    let extra: Vec<_> = EXTRA.iter().filter(|(key, _)| has(key)).collect();
    let headings = ["VCPU", "STATE", "REMOVABLE", "TID", "ALIAS"];
    let headings = headings
        .into_iter()
        .chain(extra.iter().map(|(_, heading)| *heading));
    let mut table = Table::new(client.legend, headings);
    for vcpu in &shown {
        let first = ["id", "state", "removable", "thread-id", "alias"];
        let keys = first.into_iter().chain(extra.iter().map(|(key, _)| *key));
        table.row(keys.map(|key| cell(vcpu, key)));
    }
    table.hide_columns();
    table.print(&mut stdout())?;
    let free = vcpus.iter().filter(|vcpu| !is_present(vcpu));
    let free = free.filter_map(|vcpu| u32::try_from(render::number(vcpu.get("id"))?).ok());
    let free: VcpuList = free.collect();
    if client.legend && !all && !free.is_empty() {
        writeln!(stdout(), "\nFree: {free}")?;
    }
    Ok(())
}

fn flag(vcpu: &Vcpu, key: &str) -> bool {
    vcpu.get(key).is_some_and(|value| **value == true.into())
}

fn cell(vcpu: &Vcpu, key: &str) -> String {
    let text = |key: &str| render::text(vcpu.get(key));
    match key {
        "state" => match (flag(vcpu, "present"), flag(vcpu, "pending")) {
            (true, true) => "pending",
            (true, false) => "present",
            (false, _) => "free",
        }
        .to_owned(),
        "removable" => if flag(vcpu, key) { "yes" } else { "no" }.to_owned(),
        "scheduler" => match render::number(vcpu.get("priority")) {
            Some(priority) if priority > 0 => format!("{}:{priority}", text(key)),
            _ => text(key),
        },
        _ => text(key),
    }
}
