//! The commands that add and remove vCPUs: set, plug, unplug.

use std::collections::HashMap;
use std::io::{Write, stderr, stdout};
use std::time::Duration;

use serde_json::json;
use vcpud::placement::VcpuList;
use vcpud::proxy::{Changed, MachineProxy};
use zbus::{OwnedVariant, Variant};

use crate::cli::{Count, Set, These, Wait};
use crate::client::Client;
use crate::failure::{Failure, Unfinished};
use crate::progress::{Progress, interrupted};
use crate::render::{self, name_vcpus};
use crate::watch::Watch;

/// A vCPU as `ListVcpus` describes it.
type Vcpu = HashMap<String, OwnedVariant>;

/// The pauses in milliseconds before the vCPUs are listed, while the guest has not started those that were added.
const UNSTARTED_PAUSES: [u64; 4] = [100, 200, 400, 800];

pub(crate) async fn set(client: &Client, request: &Set) -> Result<(), Failure> {
    let name = &request.name;
    let machine = client.machine(name).await?;
    let count = total(&machine, name, request.count).await?;
    if request.dry_run {
        return plan(client, &machine, name, count).await;
    }
    let arguments = (count, options(&request.wait));
    let call = client.call(machine.inner(), "SetVcpus", &arguments);
    let added = carry_out(client, name, call).await?;
    warn_of_unstarted(client, &machine, name, &added, &request.wait).await
}

/// Adds or removes the vCPUs of a list.
pub(crate) async fn change(client: &Client, these: &These, present: bool) -> Result<(), Failure> {
    let machine = client.machine(&these.name).await?;
    let vcpus: Vec<u32> = these.vcpus.iter().collect();
    let arguments = (vcpus, present, options(&these.wait));
    let call = client.call(machine.inner(), "SetVcpu", &arguments);
    let added = carry_out(client, &these.name, call).await?;
    warn_of_unstarted(client, &machine, &these.name, &added, &these.wait).await
}

/// Returns the total number of vCPUs for a count. A vCPU whose removal is pending does not count as present.
async fn total(machine: &MachineProxy<'_>, name: &str, count: Count) -> Result<u32, Failure> {
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
        Count::Fewer(wanted) if wanted > current => {
            return Err(Failure::TooFew {
                machine: name.to_owned(),
                wanted,
                present: current,
            });
        }
        Count::Fewer(count) => current - count,
    })
}

async fn plan(
    client: &Client,
    machine: &MachineProxy<'_>,
    name: &str,
    count: u32,
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
    if client.quiet {
        return Ok(());
    }
    if client.json {
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
    client: &Client,
    machine: &MachineProxy<'_>,
    name: &str,
    added: &[u32],
    wait: &Wait,
) -> Result<(), Failure> {
    let is_waited_for = wait.until.as_deref() == Some("started");
    if client.quiet || added.is_empty() || wait.no_wait || is_waited_for {
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

/// Returns the vCPUs that were added.
async fn carry_out(
    client: &Client,
    name: &str,
    call: impl Future<Output = Result<Changed, Failure>>,
) -> Result<Vec<u32>, Failure> {
    let (added, removed, pending) = with_progress(client, name, call).await?;
    if client.quiet {
        return Ok(added);
    }
    if client.json {
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

/// Awaits `call`, and shows the pending removals in the meantime.
async fn with_progress(
    client: &Client,
    name: &str,
    call: impl Future<Output = Result<Changed, Failure>>,
) -> Result<Changed, Failure> {
    let mut watch = Watch::new(client, name).await?;
    let mut progress = Progress::new(name, client.shows_progress());
    // The line would hide the question for a password.
    if !client.prepare().await {
        progress.show(&watch.pending);
    }
    tokio::pin!(call);
    let interrupted = interrupted();
    tokio::pin!(interrupted);
    loop {
        tokio::select! {
            biased;
            result = &mut call => return result,
            signal = &mut interrupted => {
                signal.map_err(Failure::NoSignals)?;
                break;
            }
            change = watch.change() => match change {
                Ok(()) => progress.show(&watch.pending),
                // The reply has the reason.
                Err(_) => return call.await,
            }
        }
    }
    drop(progress);
    let text = if watch.pending.is_empty() {
        format!("{name}: interrupted; \"vcpuctl status {name}\" shows the number of vCPUs")
    } else {
        let vcpus = name_vcpus(&watch.pending.iter().copied().collect());
        format!(
            "{name}: interrupted; the removal of {vcpus} stays pending, and \"vcpuctl wait {name}\" waits for it"
        )
    };
    Err(Unfinished {
        error_name: None,
        text,
        pending: watch.pending,
        removed: watch.removed,
        refused: watch.refused,
    }
    .into())
}
