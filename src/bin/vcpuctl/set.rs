//! The commands that add and remove vCPUs: set, plug, unplug.

use std::collections::HashMap;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::json;
use vcpud::placement::VcpuList;
use vcpud::proxy::{Changed, MachineProxy};
use zbus::{Connection, OwnedVariant, Variant};

use crate::cli::{Set, These, Wait};
use crate::failure::Failure;
use crate::query;
use crate::render;

/// The pauses in milliseconds before the vCPUs are listed, while the guest has not started those that were added.
const UNSTARTED_PAUSES: [u64; 4] = [100, 200, 400, 800];

pub(crate) async fn set(bus: &Connection, request: &Set, json: bool) -> Result<(), Failure> {
    let machine = query::machine(bus, &request.name).await?;
    if request.dry_run {
        return plan(&machine, request, json).await;
    }
    let call = machine.set_vcpus(request.count, options(&request.wait));
    let added = carry_out(&machine, &request.name, call, json).await?;
    warn_of_unstarted(&machine, &request.name, &added, &request.wait).await
}

/// Adds or removes the vCPUs of a list.
pub(crate) async fn change(
    bus: &Connection,
    these: &These,
    online: bool,
    json: bool,
) -> Result<(), Failure> {
    let machine = query::machine(bus, &these.name).await?;
    let vcpus: Vec<u32> = these.vcpus.iter().collect();
    let call = machine.set_vcpu(&vcpus, online, options(&these.wait));
    let added = carry_out(&machine, &these.name, call, json).await?;
    warn_of_unstarted(&machine, &these.name, &added, &these.wait).await
}

async fn plan(machine: &MachineProxy<'_>, request: &Set, json: bool) -> Result<(), Failure> {
    let plan = machine.plan(request.count, HashMap::new()).await?;
    let text = |key: &str| render::text(plan.get(key));
    if json {
        writeln!(stdout(), "{:#}", render::json_dict(&plan))?;
    } else if !plan.contains_key("error") {
        let parts = [("add", text("added")), ("remove", text("removed"))];
        let parts = parts.iter().filter(|(_, vcpus)| vcpus != "-");
        let parts: Vec<String> = parts
            .map(|(what, vcpus)| format!("{what} {vcpus}"))
            .collect();
        let change = if parts.is_empty() {
            "change nothing".to_owned()
        } else {
            parts.join(", ")
        };
        writeln!(stdout(), "{}: would {change}", request.name)?;
    }
    let warnings = plan.get("warnings").cloned();
    let warnings = warnings.and_then(|list| Vec::<String>::try_from(list).ok());
    for warning in warnings.into_iter().flatten() {
        writeln!(stderr(), "vcpuctl: warning: {}: {warning}", request.name)?;
    }
    if plan.contains_key("error") {
        return Err(Failure::Denied {
            error_name: text("error"),
            text: text("reason"),
            nearest: text("nearest"),
        });
    }
    Ok(())
}

fn options(wait: &Wait) -> HashMap<&'static str, Variant<'static>> {
    let mut options = HashMap::new();
    if wait.no_wait {
        options.insert("async", true.into());
    }
    if wait.guest_online {
        options.insert("guest-online", true.into());
    }
    if let Some(until) = &wait.until {
        options.insert("until", until.clone().into());
    }
    if let Some(timeout) = wait.timeout {
        let usec = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
        options.insert("timeout-usec", usec.into());
    }
    options
}

/// Prints a warning if the guest has not started the vCPUs that were added after a moment.
async fn warn_of_unstarted(
    machine: &MachineProxy<'_>,
    name: &str,
    added: &[u32],
    wait: &Wait,
) -> Result<(), Failure> {
    let is_waited_for = wait.until.as_deref() == Some("started");
    if added.is_empty() || wait.no_wait || is_waited_for {
        return Ok(());
    }
    let mut unstarted = VcpuList::default();
    for pause in UNSTARTED_PAUSES {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        // The vCPUs are added, whatever comes now.
        let Ok(vcpus) = machine.list_vcpus().await else {
            return Ok(());
        };
        let number = |vcpu: &HashMap<String, OwnedVariant>| u32::try_from(&**vcpu.get("id")?).ok();
        let is_unstarted = |vcpu: &&HashMap<String, OwnedVariant>| {
            vcpu.get("started").is_some_and(|v| **v == false.into())
        };
        let numbers = vcpus.iter().filter(is_unstarted).filter_map(number);
        unstarted = numbers.filter(|vcpu| added.contains(vcpu)).collect();
        if unstarted.is_empty() {
            return Ok(());
        }
    }
    writeln!(
        stderr(),
        "vcpuctl: warning: {name}: the guest has not started vCPUs {unstarted}; bring them online in the guest, or use the option --guest-online"
    )?;
    Ok(())
}

/// Returns the vCPUs that were added.
async fn carry_out(
    machine: &MachineProxy<'_>,
    name: &str,
    call: impl Future<Output = zbus::Result<Changed>>,
    json: bool,
) -> Result<Vec<u32>, Failure> {
    let (added, removed, pending) = if stderr().is_terminal() && !json {
        with_progress(machine, call).await?
    } else {
        call.await?
    };
    if json {
        let result = json!({"added": added, "removed": removed, "pending": pending});
        writeln!(stdout(), "{result:#}")?;
        return Ok(added);
    }
    let parts = [
        ("added", &added),
        ("removed", &removed),
        ("removal pending:", &pending),
    ];
    let parts = parts.iter().filter(|(_, vcpus)| !vcpus.is_empty());
    let mut parts: Vec<String> = parts
        .map(|(what, vcpus)| format!("{what} {}", vcpus.iter().copied().collect::<VcpuList>()))
        .collect();
    if parts.is_empty() {
        parts.push("no change".to_owned());
    }
    writeln!(stdout(), "{name}: {}", parts.join(", "))?;
    Ok(added)
}

/// Awaits `call`, and prints each removed and each refused vCPU in the meantime.
async fn with_progress(
    machine: &MachineProxy<'_>,
    call: impl Future<Output = zbus::Result<Changed>>,
) -> Result<Changed, Failure> {
    let mut removed = machine.receive_vcpu_removed().await?;
    let mut failed = machine.receive_vcpu_removal_failed().await?;
    tokio::pin!(call);
    loop {
        tokio::select! {
            biased;
            Some(signal) = removed.next() => {
                writeln!(stderr(), "vCPU {} removed", signal.args()?.vcpu)?;
            }
            Some(signal) = failed.next() => {
                let arguments = signal.args()?;
                writeln!(stderr(), "vCPU {} not removed: {}", arguments.vcpu, arguments.reason)?;
            }
            result = &mut call => return Ok(result?),
        }
    }
}
