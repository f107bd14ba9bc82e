//! The commands that change where and how vCPUs run on the host. They print nothing on success, as chrt(1)
//! and taskset(1).

use std::collections::HashMap;
use std::time::Duration;

use vcpud::placement::VcpuList;
use zbus::Connection;

use crate::cli::Quota;
use crate::failure::Failure;
use crate::query;

/// The argument that removes a setting.
const DEFAULT: &str = "default";

pub(crate) async fn pin(
    bus: &Connection,
    name: &str,
    vcpus: &VcpuList,
    cpus: &str,
) -> Result<(), Failure> {
    let machine = query::machine(bus, name).await?;
    let cpus = if cpus == DEFAULT { "" } else { cpus };
    let vcpus: Vec<u32> = vcpus.iter().collect();
    Ok(machine.pin_vcpus(&vcpus, cpus, HashMap::new()).await?)
}

pub(crate) async fn bandwidth(
    bus: &Connection,
    name: &str,
    quota: Quota,
    period: Duration,
) -> Result<(), Failure> {
    let machine = query::machine(bus, name).await?;
    let usec = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    let quota = quota.0.map_or(-1, usec);
    let period = usec(period).unsigned_abs();
    let call = machine.set_bandwidth(period, quota, HashMap::new());
    Ok(call.await?)
}

pub(crate) async fn scheduler(
    bus: &Connection,
    name: &str,
    vcpus: &VcpuList,
    policy: &str,
    priority: i32,
) -> Result<(), Failure> {
    let machine = query::machine(bus, name).await?;
    let vcpus: Vec<u32> = vcpus.iter().collect();
    let call = machine.set_scheduler(&vcpus, policy, priority, HashMap::new());
    Ok(call.await?)
}

pub(crate) async fn cache(
    bus: &Connection,
    name: &str,
    vcpus: &VcpuList,
    schemata: &str,
) -> Result<(), Failure> {
    let machine = query::machine(bus, name).await?;
    let schemata = if schemata == DEFAULT { "" } else { schemata };
    let vcpus: Vec<u32> = vcpus.iter().collect();
    let call = machine.set_cache_allocation(&vcpus, schemata, HashMap::new());
    Ok(call.await?)
}
