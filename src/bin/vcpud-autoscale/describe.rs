//! What callers get to know of a machine: the dictionaries of the interface.

use std::collections::HashMap;

use vcpud::autoscale::{Decision, Load};
use vcpud::names::MachineName;
use zbus::Variant;

use crate::fleet::{Fleet, Scaled};
use crate::settings::Mode;

/// A dictionary of the interface.
pub(crate) type Dict = HashMap<&'static str, Variant<'static>>;

/// Returns the row of `List` for a machine. `failure` is the reason why the last reading failed.
pub(crate) fn row(fleet: &Fleet, machine: &Scaled, failure: Option<&str>) -> Dict {
    let mut row = Dict::from([
        ("mode", fleet.mode(machine).as_str().into()),
        ("origin", machine.origin.as_str().into()),
    ]);
    if let Some(Ok(limits)) = &machine.limits {
        row.insert("min", limits.min.into());
        row.insert("max", limits.max.into());
    }
    let is_off = fleet.mode(machine) == Mode::Off;
    let (code, text) = match (&machine.decision, failure) {
        _ if is_off => ("off", "the mode is off".to_owned()),
        (_, Some(failure)) => ("stale", format!("vcpud gives no new data: {failure}")),
        (Some(decision), None) => (decision.reason.code(), decision.reason.to_string()),
        (None, None) => undecided(machine),
    };
    if let Some(decision) = machine.decision.as_ref().filter(|_| !is_off) {
        row.insert("present", decision.details.present.into());
        row.insert("goal", decision.goal.into());
    }
    row.insert("reason", text.into());
    row.insert("reason-code", code.into());
    row
}

/// Returns the reason why there is no decision about a machine, as a code and in words.
fn undecided(machine: &Scaled) -> (&'static str, String) {
    match &machine.limits {
        None if !machine.is_sampled => ("no-data", "the machine was not sampled yet".to_owned()),
        None if machine.is_known() => ("no-data", "QEMU has not answered vcpud yet".to_owned()),
        None => (
            "no-machine",
            "vcpud has no machine with this name, or does not run".to_owned(),
        ),
        Some(Err(error)) => ("invalid-settings", error.clone()),
        Some(Ok(_)) => ("no-data", "the machine was not sampled yet".to_owned()),
    }
}

/// Returns the result of `Explain`.
pub(crate) fn explanation(
    fleet: &Fleet,
    name: &MachineName,
    machine: &Scaled,
    failure: Option<&str>,
) -> Dict {
    let mut all = row(fleet, machine, failure);
    if let Some(failure) = failure {
        all.insert("sampling-error", failure.to_owned().into());
    }
    all.insert("machine", name.as_str().to_owned().into());
    if let Some(decision) = &machine.decision {
        all.extend(numbers(decision));
    }
    if let Some(Ok(limits)) = &machine.limits {
        all.insert("target", limits.target.into());
        all.insert("weight", limits.weight.into());
    }
    if machine.bounds.floor > 0 {
        all.insert("floor", machine.bounds.floor.into());
    }
    if let Some(cap) = machine.cap() {
        all.insert("cap", cap.into());
    }
    if let Some(goal) = fleet.requested.get(name) {
        all.insert("requested", (*goal).into());
    }
    if let Some(failure) = &machine.failure {
        all.insert("failure", failure.clone().into());
    }
    all
}

/// Returns the numbers that led to a decision.
pub(crate) fn numbers(decision: &Decision) -> Dict {
    let mut numbers = Dict::new();
    if let Some(Load {
        used,
        stolen,
        throttled,
    }) = decision.details.load
    {
        numbers.insert("used", used.into());
        numbers.insert("stolen", stolen.into());
        numbers.insert("throttled", throttled.into());
    }
    if let Some(needed) = decision.details.needed {
        numbers.insert("needed", needed.into());
    }
    numbers
}
