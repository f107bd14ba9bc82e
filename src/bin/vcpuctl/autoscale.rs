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
use crate::query::counted;
use crate::render::{self, Table};

type Dict = HashMap<String, OwnedVariant>;

/// Begins or ends the scaling of a machine, or lists the machines.
pub(crate) async fn autoscale(client: &Client, request: &Autoscale) -> Result<(), Failure> {
    let service = service(client).await?;
    let Some(name) = &request.name else {
        return list(client, &service).await;
    };
    let is_silent = client.json || client.quiet;
    let mut result = format!("{name}: no longer scaled");
    if request.off {
        let _: () = client.call(service.inner(), "Disable", &(name,)).await?;
    } else {
        let arguments = (name, options(request));
        let _: () = client.call(service.inner(), "Enable", &arguments).await?;
        if !is_silent {
            result = scaled(&service, name).await;
        }
    }
    if !is_silent {
        writeln!(stdout(), "{}", render::printable(&result))?;
    }
    Ok(render::done(client.json)?)
}

/// Returns the options of the call. The mode is one of them, because the file for all machines can have another one.
/// Only an update keeps the mode.
fn options(request: &Autoscale) -> HashMap<&'static str, Variant<'static>> {
    let mut options: HashMap<&str, Variant<'_>> = HashMap::new();
    if request.update {
        options.insert("update", true.into());
    }
    if request.observe {
        options.insert("mode", "observe".into());
    } else if !request.update {
        options.insert("mode", "on".into());
    }
    let counts = [
        ("min", request.min),
        ("max", request.max),
        ("step-up", request.step_up),
        ("step-down", request.step_down),
        ("weight", request.weight),
    ];
    for (key, count) in counts {
        options.extend(count.map(|count| (key, count.into())));
    }
    let times = [
        ("hold", request.hold),
        ("up-window", request.up_window),
        ("down-window", request.down_window),
    ];
    for (key, time) in times {
        let time = time.map(|time| humantime::format_duration(time).to_string());
        options.extend(time.map(|time| (key, time.into())));
    }
    options.extend(request.target.map(|target| ("target", target.into())));
    let keep_pinned = request.keep_pinned;
    options.extend(keep_pinned.map(|is_kept| ("keep-pinned", is_kept.into())));
    options
}

/// Returns the settings of a machine in words. The limits are not known before QEMU has answered.
async fn scaled(service: &AutoscaleProxy<'_>, name: &str) -> String {
    let explanation = service.explain(name).await.unwrap_or_default();
    let limit = |key: &str| render::number(explanation.get(key));
    let mode = render::text(explanation.get("mode"));
    match (limit("min"), limit("max")) {
        (Some(min), Some(max)) => {
            let plural = if max == 1 { "" } else { "s" };
            format!("{name}: scaled from {min} to {max} vCPU{plural}, mode {mode}")
        }
        _ => {
            format!("{name}: scaled, mode {mode}; \"vcpuctl explain {name}\" shows the decisions")
        }
    }
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
    table.print(&mut stdout())?;
    if client.legend {
        let count = counted(machines.len(), "machine");
        writeln!(stdout(), "\n{count} listed.")?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Arguments, Command};

    /// Returns the options of the call for a command line.
    fn options_of(line: &str) -> HashMap<&'static str, Variant<'static>> {
        let words = ["vcpuctl", "autoscale", "web"].into_iter();
        let arguments = Arguments::try_parse_from(words.chain(line.split_whitespace())).unwrap();
        let Some(Command::Autoscale(request)) = arguments.command else {
            panic!("{line}");
        };
        options(&request)
    }

    #[test]
    fn only_an_update_keeps_the_mode() {
        assert_eq!(options_of(""), HashMap::from([("mode", "on".into())]));
        let observe = HashMap::from([("mode", "observe".into())]);
        assert_eq!(options_of("--observe"), observe);
        let update = HashMap::from([("update", true.into())]);
        assert_eq!(options_of("--update"), update);
    }

    #[test]
    fn the_call_has_an_option_for_each_setting() {
        let line = "--min 1 --max 4 --target 0.7 --step-up 2 --step-down 3 --weight 50 --hold 0.5 --up-window 5 \
                    --down-window 1min --keep-pinned false";
        let expected = HashMap::from([
            ("mode", "on".into()),
            ("min", 1_u32.into()),
            ("max", 4_u32.into()),
            ("target", 0.7.into()),
            ("step-up", 2_u32.into()),
            ("step-down", 3_u32.into()),
            ("weight", 50_u32.into()),
            ("hold", "500ms".into()),
            ("up-window", "5s".into()),
            ("down-window", "1m".into()),
            ("keep-pinned", false.into()),
        ]);
        assert_eq!(options_of(line), expected);
    }
}
