//! The commands "autoscale" and "explain": the client of vcpud-autoscale.

use std::collections::{BTreeMap, HashMap};
use std::io::{Write, stdout};

use serde_json::json;
use vcpud::proxy::AutoscaleProxy;
use zbus::proxy::CacheProperties;
use zbus::{OwnedVariant, Variant};

use crate::cli::Autoscale;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::{self, Table};

type Dict = HashMap<String, OwnedVariant>;

/// Begins or ends the scaling of a machine, or lists the machines.
pub(crate) async fn autoscale(client: &Client, request: &Autoscale) -> Result<(), Failure> {
    let service = service(client).await?;
    let Some(name) = &request.name else {
        return list(client, &service).await;
    };
    if request.off {
        return client.call(service.inner(), "Disable", &(name,)).await;
    }
    let mut options: HashMap<&str, Variant<'_>> = HashMap::new();
    let counts = [
        ("min", request.min),
        ("max", request.max),
        ("step-up", request.step_up),
        ("step-down", request.step_down),
        ("weight", request.weight),
    ];
    for (key, count) in counts {
        if let Some(count) = count {
            options.insert(key, count.into());
        }
    }
    if let Some(target) = request.target {
        options.insert("target", target.into());
    }
    if let Some(hold) = request.hold {
        let hold = humantime::format_duration(hold).to_string();
        options.insert("hold", hold.into());
    }
    if request.observe {
        options.insert("mode", "observe".into());
    }
    client
        .call(service.inner(), "Enable", &(name, options))
        .await
}

/// Prints the machines, and the errors of the configuration as warnings.
async fn list(client: &Client, service: &AutoscaleProxy<'_>) -> Result<(), Failure> {
    let machines = service.list().await?;
    if client.json {
        let machine = |(name, row): (&String, &Dict)| {
            let mut object = render::json_dict(row);
            object["machine"] = json!(name);
            object
        };
        let list: Vec<_> = machines.iter().map(machine).collect();
        render::document(&json!(list))?;
    } else {
        table(client, &machines)?;
    }
    if client.quiet {
        return Ok(());
    }
    for error in service.configuration_errors().await? {
        let error = render::printable(&error);
        writeln!(std::io::stderr(), "vcpuctl: warning: {error}")?;
    }
    Ok(())
}

fn table(client: &Client, machines: &BTreeMap<String, Dict>) -> Result<(), Failure> {
    let headings = ["MACHINE", "MODE", "VCPUS", "GOAL", "MIN", "MAX", "REASON"];
    let mut table = Table::new(client.legend, headings);
    for (name, row) in machines {
        let keys = ["mode", "present", "goal", "min", "max", "reason"];
        let cells = keys.map(|key| render::text(row.get(key)));
        table.row([render::printable(name)].into_iter().chain(cells));
    }
    Ok(table.print(&mut stdout())?)
}

/// The lines of "explain": the key and the heading.
const LINES: [(&str, &str); 17] = [
    ("machine", "Machine"),
    ("mode", "Mode"),
    ("reason", "Reason"),
    ("sampling-error", "No new sample"),
    ("present", "vCPUs"),
    ("goal", "Goal"),
    ("requested", "Requested"),
    ("failure", "Last failure"),
    ("used", "Used host CPUs"),
    ("stolen", "Stolen"),
    ("throttled", "Throttled"),
    ("needed", "Needed vCPUs"),
    ("target", "Target"),
    ("min", "Minimum"),
    ("max", "Maximum"),
    ("floor", "Kept for pins"),
    ("cap", "Share of the host"),
];

/// Prints what is decided about a machine, and why.
pub(crate) async fn explain(client: &Client, name: &str) -> Result<(), Failure> {
    let explanation = service(client).await?.explain(name).await?;
    if client.json {
        return Ok(render::document(&render::json_dict(&explanation))?);
    }
    for (key, heading) in LINES {
        let Some(value) = explanation.get(key) else {
            continue;
        };
        let text = match &**value {
            Variant::F64(number) => format!("{number:.2}"),
            _ => render::text(Some(value)),
        };
        writeln!(stdout(), "{heading:>17}: {text}")?;
    }
    Ok(())
}

async fn service(client: &Client) -> Result<AutoscaleProxy<'static>, Failure> {
    let builder = AutoscaleProxy::builder(&client.bus);
    let builder = builder.cache_properties(CacheProperties::No);
    Ok(builder.build().await?)
}
