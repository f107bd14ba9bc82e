//! The commands that change where and how vCPUs run on the host. They print nothing on success, as chrt(1)
//! and taskset(1).

use std::collections::HashMap;
use std::time::Duration;

use vcpud::placement::VcpuList;
use zbus::Variant;

use crate::cli::Tune;
use crate::client::Client;
use crate::failure::Failure;

/// Returns an argument without the word for the default.
fn or_default(text: &str) -> &str {
    if text == "default" { "" } else { text }
}

/// Returns a time in µs.
fn usec(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// Runs a command.
pub(crate) async fn tune(client: &Client, command: &Tune) -> Result<(), Failure> {
    let options: HashMap<&str, Variant<'_>> = HashMap::new();
    let numbers = |vcpus: &VcpuList| vcpus.iter().collect::<Vec<u32>>();
    let (Tune::Pin { name, .. }
    | Tune::Bandwidth { name, .. }
    | Tune::Scheduler { name, .. }
    | Tune::Cache { name, .. }) = command;
    let machine = client.machine(name).await?;
    let machine = machine.inner();
    let () = match command {
        Tune::Pin { vcpus, cpus, .. } => {
            let arguments = (numbers(vcpus), or_default(cpus), options);
            client.call(machine, "PinVcpus", &arguments).await?
        }
        Tune::Bandwidth { quota, period, .. } => {
            let period = usec(*period).unsigned_abs();
            let arguments = (period, quota.0.map_or(-1, usec), options);
            client.call(machine, "SetBandwidth", &arguments).await?
        }
        Tune::Scheduler {
            vcpus,
            policy,
            priority,
            ..
        } => {
            let arguments = (numbers(vcpus), or_default(policy), *priority, options);
            client.call(machine, "SetScheduler", &arguments).await?
        }
        Tune::Cache {
            vcpus, schemata, ..
        } => {
            let arguments = (numbers(vcpus), or_default(schemata), options);
            client
                .call(machine, "SetCacheAllocation", &arguments)
                .await?
        }
    };
    Ok(())
}
