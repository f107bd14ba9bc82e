//! The commands that only read: list, status, vcpus.

use std::collections::HashMap;
use std::io::{Write, stdout};

use serde_json::json;
use vcpud::names::{BUS_NAME, MACHINE_INTERFACE, ROOT_PATH};
use vcpud::placement::CpuList;
use zbus::Connection;
use zbus::fdo::{ObjectManagerProxy, PropertiesProxy};
use zbus::proxy::CacheProperties;
use zbus::{OwnedObjectPath, OwnedVariant};

use crate::client::Client;
use crate::failure::Failure;

use crate::render::{self, Table};

pub(crate) type Properties = HashMap<String, OwnedVariant>;

/// Returns all properties of an object.
pub(crate) async fn properties(
    client: &Client,
    path: &str,
    interface: &str,
) -> Result<Properties, Failure> {
    let proxy = PropertiesProxy::builder(&client.bus)
        .destination(BUS_NAME)
        .path(path.to_owned())
        .cache_properties(CacheProperties::No)
        .build()
        .await?;
    Ok(proxy.get_all(interface.try_into()?).await?)
}

/// The properties of all machines.
pub(crate) type Machines = HashMap<OwnedObjectPath, Properties>;

pub(crate) async fn machines(bus: &Connection) -> zbus::Result<Machines> {
    let objects = ObjectManagerProxy::builder(bus)
        .destination(BUS_NAME)
        .path(ROOT_PATH)
        .cache_properties(CacheProperties::No)
        .build()
        .await?
        .get_managed_objects()
        .await?;
    let machine = |(path, mut interfaces): (_, HashMap<_, _>)| {
        Some((path, interfaces.remove(MACHINE_INTERFACE)?))
    };
    Ok(objects.into_iter().filter_map(machine).collect())
}

pub(crate) async fn list(client: &Client) -> Result<(), Failure> {
    let mut machines: Vec<Properties> = machines(&client.bus).await?.into_values().collect();
    machines.sort_by_key(|m| render::text(m.get("Name")));
    if client.json {
        let list: Vec<_> = machines.iter().map(render::json_dict).collect();
        return Ok(render::document(&json!(list))?);
    }
    let mut table = Table::new(
        client.legend,
        ["MACHINE", "STATE", "VCPUS", "MAX", "PENDING", "LEADER"],
    );
    for machine in &machines {
        let columns = [
            "Name",
            "State",
            "Vcpus",
            "MaxVcpus",
            "PendingRemovals",
            "Leader",
        ];
        table.row(columns.map(|key| render::text(machine.get(key))));
    }
    table.print(&mut stdout())?;
    if client.legend {
        let count = counted(machines.len(), "machine");
        writeln!(stdout(), "\n{count} listed.")?;
    }
    Ok(())
}

/// Prints the properties of machines.
pub(crate) async fn status(client: &Client, names: &[String]) -> Result<(), Failure> {
    let mut machines = Vec::new();
    let mut result = Ok(());
    for name in names {
        let machine = async {
            let path = client.find(name).await?;
            properties(client, &path, MACHINE_INTERFACE).await
        };
        match machine.await {
            Ok(machine) => machines.push((name, machine)),
            // The first error is the result.
            Err(error) => result = result.and(Err(error)),
        }
    }
    if client.json {
        result?;
        let machines = machines.iter();
        let machines = machines.map(|(_, machine)| render::json_dict(machine));
        return Ok(render::one_or_all(machines.collect())?);
    }
    for (n, (name, machine)) in machines.iter().enumerate() {
        if n > 0 {
            writeln!(stdout())?;
        }
        print_status(client, name, machine).await?;
    }
    result
}

async fn print_status(client: &Client, name: &str, machine: &Properties) -> Result<(), Failure> {
    let text = |key: &str| render::text(machine.get(key));
    let qemu = format!(
        "{} ({}, {})",
        text("QemuVersion"),
        text("Architecture"),
        text("Accelerator")
    );
    let affinity = affinity(client, name, machine).await?;
    let limit = |quota, period| match text(quota).as_str() {
        "-1" => "unlimited".to_owned(),
        quota => format!("{quota} µs per {} µs", text(period)),
    };
    let cpu_time = effective(
        limit(
            "EffectiveBandwidthQuotaUSec",
            "EffectiveBandwidthPeriodUSec",
        ),
        limit("BandwidthQuotaUSec", "BandwidthPeriodUSec"),
    );
    let lines = [
        ("State", text("State")),
        ("UUID", text("Uuid")),
        ("Leader", text("Leader")),
        ("QEMU", qemu),
        ("vCPUs", count_of_vcpus(machine)),
        ("Pending removals", text("PendingRemovals")),
        ("Hot-plug", text("HotplugMethod")),
        ("vCPUs per slot", text("VcpusPerSlot")),
        ("Placement", text("Placement")),
        ("Unit", text("Unit")),
        ("Affinity", affinity),
        ("CPU quota", cpu_time),
    ];
    let mut out = stdout().lock();
    writeln!(out, "{name}")?;
    for (label, value) in lines {
        writeln!(out, "{label:>16}: {value}")?;
    }
    for error in list_of(machine.get("PlacementErrors")) {
        writeln!(out, "{:>16}: {error}", "Missing")?;
    }
    Ok(())
}

/// Returns the number of vCPUs, and of those that the guest has started if it has not started all.
fn count_of_vcpus(machine: &Properties) -> String {
    let text = |key: &str| render::text(machine.get(key));
    let (present, started) = (text("Vcpus"), text("StartedVcpus"));
    let count = format!("{present} of {}", text("MaxVcpus"));
    // A guest that runs has started a vCPU, so there is no evidence.
    let is_unknown = started == "0" && text("State") == "running";
    if present == started || is_unknown {
        count
    } else {
        format!("{count}, {started} started by the guest")
    }
}

/// Returns the host CPUs of the vCPUs. If no vCPU without a pin has a thread, they are those of the others.
async fn affinity(client: &Client, name: &str, properties: &Properties) -> Result<String, Failure> {
    let text = |key: &str| render::text(properties.get(key));
    let desired = text("Affinity");
    let in_force = properties.get("EffectiveAffinity");
    if in_force.is_none_or(|cpus| **cpus != "".into()) {
        return Ok(effective(text("EffectiveAffinity"), desired));
    }
    let vcpus = client.machine(name).await?.list_vcpus().await?;
    let lists = vcpus.iter().filter_map(|vcpu| vcpu.get("affinity"));
    let lists = lists.filter_map(|list| render::text(Some(list)).parse::<CpuList>().ok());
    let pinned = lists.fold(CpuList::default(), |all, list| all.union(&list));
    Ok(if pinned.is_empty() {
        effective("-".to_owned(), desired)
    } else {
        format!("{pinned} (vCPUs without a pin: {desired})")
    })
}

/// Returns the texts of a property that is a list.
fn list_of(property: Option<&OwnedVariant>) -> Vec<String> {
    let list = property.and_then(|list| Vec::<String>::try_from(list.clone()).ok());
    list.unwrap_or_default()
}

/// Returns the value in force, with the desired one if that is another.
fn effective(in_force: String, desired: String) -> String {
    if in_force == desired {
        in_force
    } else {
        format!("{in_force} (desired: {desired})")
    }
}

/// Returns a number with its noun.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Prints the status of the service.
pub(crate) async fn service(client: &Client) -> Result<(), Failure> {
    let manager = client.manager().await?;
    let version = manager.version().await?;
    let machines = manager.list_machines().await?.len();
    let errors = manager.configuration_errors().await?;
    if client.json {
        let service = json!({
            "Version": version,
            "Machines": machines,
            "ConfigurationErrors": errors,
        });
        return Ok(render::document(&service)?);
    }
    let mut out = stdout().lock();
    writeln!(out, "vcpud {version}")?;
    writeln!(out, "{:>16}: {machines}", "Machines")?;
    let count = match errors.len() {
        0 => "no errors".to_owned(),
        count => counted(count, "error"),
    };
    writeln!(out, "{:>16}: {count}", "Configuration")?;
    for error in errors {
        writeln!(out, "  {}", render::printable(&error))?;
    }
    Ok(())
}
