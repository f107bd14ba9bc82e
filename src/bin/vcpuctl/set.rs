//! The commands that add and remove vCPUs: set, plug, unplug.

use std::collections::HashMap;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::json;
use vcpud::placement::VcpuList;
use vcpud::proxy::{Changed, MachineProxy};
use zbus::{OwnedVariant, Variant};

use crate::cli::{Count, Set, These, Wait};
use crate::client::Client;
use crate::failure::Failure;
use crate::render;

/// A vCPU as `ListVcpus` describes it.
type Vcpu = HashMap<String, OwnedVariant>;

/// The pauses in milliseconds before the vCPUs are listed, while the guest has not started those that were added.
const UNSTARTED_PAUSES: [u64; 4] = [100, 200, 400, 800];

pub(crate) async fn set(client: &Client, request: &Set) -> Result<(), Failure> {
    let name = &request.name;
    let machine = client.machine(name).await?;
    let count = total(&machine, request.count).await?;
    if request.dry_run {
        return plan(&machine, name, count, client.json).await;
    }
    let arguments = (count, options(&request.wait));
    let call = client.call(machine.inner(), "SetVcpus", &arguments);
    let added = carry_out(&machine, name, call, client.json).await?;
    warn_of_unstarted(&machine, name, &added, &request.wait).await
}

/// Adds or removes the vCPUs of a list.
pub(crate) async fn change(client: &Client, these: &These, present: bool) -> Result<(), Failure> {
    let machine = client.machine(&these.name).await?;
    let vcpus: Vec<u32> = these.vcpus.iter().collect();
    let arguments = (vcpus, present, options(&these.wait));
    let call = client.call(machine.inner(), "SetVcpu", &arguments);
    let added = carry_out(&machine, &these.name, call, client.json).await?;
    warn_of_unstarted(&machine, &these.name, &added, &these.wait).await
}

/// Returns the total number of vCPUs for a count. A vCPU whose removal is pending does not count as present.
async fn total(machine: &MachineProxy<'_>, count: Count) -> Result<u32, Failure> {
    if let Count::Total(count) = count {
        return Ok(count);
    }
    let vcpus = machine.list_vcpus().await?;
    let flag = |vcpu: &Vcpu, key: &str| vcpu.get(key).is_some_and(|value| **value == true.into());
    let stays = |vcpu: &&Vcpu| flag(vcpu, "present") && !flag(vcpu, "pending");
    let current = u32::try_from(vcpus.iter().filter(stays).count()).unwrap_or(u32::MAX);
    Ok(match count {
        Count::Total(count) => count,
        Count::More(count) => current.saturating_add(count),
        Count::Fewer(count) => current.saturating_sub(count),
    })
}

async fn plan(
    machine: &MachineProxy<'_>,
    name: &str,
    count: u32,
    json: bool,
) -> Result<(), Failure> {
    let mut plan = machine.plan(count, HashMap::new()).await?;
    let text = |key: &str| render::text(plan.get(key));
    if plan.contains_key("error") {
        let (error_name, text) = (text("error"), text("reason"));
        let nearest = plan.remove("nearest");
        let nearest = nearest.and_then(|list| list.try_into().ok());
        return Err(Failure::Denied {
            error_name,
            text,
            nearest: nearest.unwrap_or_default(),
        });
    }
    if json {
        render::document(&render::json_dict(&plan))?;
    } else {
        let parts = [("add", text("added")), ("remove", text("removed"))];
        let parts = parts.iter().filter(|(_, vcpus)| vcpus != "-");
        let parts: Vec<String> = parts
            .map(|(what, vcpus)| format!("{what} {vcpus}"))
            .collect();
        let change = if parts.is_empty() {
            "no change".to_owned()
        } else {
            format!("would {}", parts.join(", "))
        };
        writeln!(stdout(), "{name}: {change}")?;
    }
    let warnings = plan.remove("warnings");
    let warnings = warnings.and_then(|list| Vec::<String>::try_from(list).ok());
    for warning in warnings.into_iter().flatten() {
        writeln!(stderr(), "vcpuctl: warning: {name}: {warning}")?;
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
    // The vCPUs are added, even if the service does not answer any more.
    let Ok(state) = machine.state().await else {
        return Ok(());
    };
    let mut pauses = UNSTARTED_PAUSES.as_slice();
    if state != "running" {
        pauses = &[];
    }
    let mut unstarted = unstarted(machine, added).await;
    for pause in pauses {
        if unstarted.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(*pause)).await;
        unstarted = self::unstarted(machine, added).await;
    }
    if unstarted.is_empty() {
        return Ok(());
    }
    let vcpus = name_vcpus(&unstarted);
    let advice = if state == "running" {
        "bring them online in the guest, or use the option --guest-online".to_owned()
    } else {
        format!("the machine does not run (state: {state})")
    };
    let warning = format!("{name}: the guest has not started {vcpus}; {advice}");
    Ok(writeln!(stderr(), "vcpuctl: warning: {warning}")?)
}

/// Returns those of `added` that the guest has not started, as far as the service answers.
async fn unstarted(machine: &MachineProxy<'_>, added: &[u32]) -> VcpuList {
    let vcpus = machine.list_vcpus().await.unwrap_or_default();
    let number = |vcpu: &Vcpu| u32::try_from(&**vcpu.get("id")?).ok();
    let is_unstarted = |vcpu: &&Vcpu| {
        vcpu.get("started")
            .is_some_and(|value| **value == false.into())
    };
    let numbers = vcpus.iter().filter(is_unstarted).filter_map(number);
    numbers.filter(|vcpu| added.contains(vcpu)).collect()
}

/// Returns a list of vCPUs with its noun.
fn name_vcpus(vcpus: &VcpuList) -> String {
    let plural = if vcpus.iter().count() == 1 { "" } else { "s" };
    format!("vCPU{plural} {vcpus}")
}

/// Returns the vCPUs that were added.
async fn carry_out(
    machine: &MachineProxy<'_>,
    name: &str,
    call: impl Future<Output = Result<Changed, Failure>>,
    json: bool,
) -> Result<Vec<u32>, Failure> {
    let (added, removed, pending) = if stderr().is_terminal() && !json {
        with_progress(machine, call).await?
    } else {
        call.await?
    };
    if json {
        let result = json!({"added": added, "removed": removed, "pending": pending});
        render::document(&result)?;
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
    call: impl Future<Output = Result<Changed, Failure>>,
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
            result = &mut call => return result,
        }
    }
}
