//! Parts of the texts of errors. They do not name the machine.

use std::time::Duration;

use super::refusal::Refusal;
use crate::guest_agent;
use crate::ids::VcpuId;
use crate::inventory::name_vcpus;
use crate::placement::StepError;
use crate::text::Text;

/// Returns a time in seconds, without digits that nobody reads.
pub(super) fn seconds(time: Duration) -> f64 {
    let unit = if time < Duration::from_secs(1) {
        1000.0
    } else {
        10.0
    };
    (time.as_secs_f64() * unit).round() / unit
}

pub(super) fn join_refusals(refusals: &[Refusal]) -> String {
    let each = refusals.iter().flat_map(|refusal| {
        let vcpus = refusal.vcpus.iter().copied();
        vcpus.map(move |vcpu| (vcpu, refusal.reason.text.clone()))
    });
    group_reasons(each).join("; ")
}

pub(super) fn join_failures(failures: &[(VcpuId, StepError)]) -> String {
    let each = failures.iter();
    group_reasons(each.map(|(vcpu, error)| (*vcpu, error.to_string()))).join("; ")
}

/// Returns the reasons in their order, each with all vCPUs that have it.
pub(super) fn group_reasons(reasons: impl Iterator<Item = (VcpuId, String)>) -> Vec<String> {
    let mut groups: Vec<(Vec<VcpuId>, String)> = Vec::new();
    for (vcpu, reason) in reasons {
        match groups.iter_mut().find(|(_, other)| *other == reason) {
            Some((vcpus, _)) => vcpus.push(vcpu),
            None => groups.push((vec![vcpu], reason)),
        }
    }
    let line = |(vcpus, reason): &(Vec<VcpuId>, String)| format!("{}: {reason}", name_vcpus(vcpus));
    groups.iter().map(line).collect()
}

pub(super) fn added_part(added: &[VcpuId]) -> String {
    match added {
        [] => String::new(),
        some => format!("; added: {}", name_vcpus(some)),
    }
}

pub(super) fn retry_part(reason: &guest_agent::Error) -> &'static str {
    match reason {
        guest_agent::Error::Fewer { .. } => "",
        _ => "; try again when the guest agent responds",
    }
}

pub(super) fn not_running(state: Option<&Text>) -> String {
    let text = |state| format!("the guest does not run: QEMU is in the state \"{state}\"; ");
    state.map(text).unwrap_or_default()
}

pub(super) fn start_advice(is_stopped: bool) -> &'static str {
    if is_stopped {
        "continue the VM"
    } else {
        "bring them online in the guest, for example with a udev rule, or use the guest agent with the option \"guest-online\""
    }
}

pub(super) fn after_loss(is_last: bool) -> &'static str {
    if is_last {
        "the machine ends, because the service cannot make the connection that was passed to it again; register the machine again"
    } else {
        "ListVcpus shows the result when the machine is connected again"
    }
}

pub(super) fn also_refused(refusals: &[Refusal]) -> String {
    match refusals {
        [] => String::new(),
        some => format!(" and refused some ({})", join_refusals(some)),
    }
}

pub(super) fn name_cpus(numbers: &[u32]) -> String {
    let list: Vec<String> = numbers.iter().map(u32::to_string).collect();
    let noun = if numbers.len() == 1 { "CPU" } else { "CPUs" };
    format!("{noun} {}", list.join(", "))
}
