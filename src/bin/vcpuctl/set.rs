//! The command that changes something.

use std::collections::HashMap;
use std::io::{IsTerminal, Write, stderr, stdout};

use futures_util::StreamExt;
use serde_json::json;
use vcpud::proxy::{Changed, MachineProxy};
use zbus::Connection;

use crate::cli::Set;
use crate::failure::Failure;
use crate::query;
use crate::render;

pub(crate) async fn set(bus: &Connection, request: &Set, json: bool) -> Result<(), Failure> {
    let machine = query::machine(bus, &request.name).await?;
    let mut options = HashMap::new();
    if request.no_wait {
        options.insert("async", true.into());
    }
    if let Some(timeout) = request.timeout {
        let usec = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
        options.insert("timeout-usec", usec.into());
    }
    let call = machine.set_vcpus(request.count, options);
    let (added, removed, pending) = if stderr().is_terminal() && !json {
        with_progress(&machine, call).await?
    } else {
        call.await?
    };
    if json {
        let result = json!({"added": added, "removed": removed, "pending": pending});
        return Ok(writeln!(stdout(), "{result:#}")?);
    }
    let parts = [("added", added), ("removed", removed), ("leaving", pending)];
    let parts = parts.iter().filter(|(_, vcpus)| !vcpus.is_empty());
    let parts = parts.map(|(what, vcpus)| format!("{what} {}", render::ranges(vcpus)));
    let mut parts: Vec<String> = parts.collect();
    if parts.is_empty() {
        parts.push(format!("has {} vCPUs already", request.count));
    }
    Ok(writeln!(
        stdout(),
        "{}: {}",
        request.name,
        parts.join(", ")
    )?)
}

/// Tells of every vCPU that leaves while the call is under way.
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
                writeln!(stderr(), "vCPU {} left", signal.args()?.vcpu)?;
            }
            Some(signal) = failed.next() => {
                let arguments = signal.args()?;
                writeln!(stderr(), "vCPU {} stays: {}", arguments.vcpu, arguments.reason)?;
            }
            result = &mut call => return Ok(result?),
        }
    }
}
