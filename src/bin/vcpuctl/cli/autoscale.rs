//! The arguments of "autoscale".

use std::time::Duration;

use clap::Args;

use super::values::parse_time;
use crate::completion::machines;

/// The arguments of "autoscale".
#[derive(Debug, Args)]
pub(crate) struct Autoscale {
    /// The machine. Without a name: list the machines whose vCPUs are scaled.
    #[arg(add = machines())]
    pub name: Option<String>,
    /// The minimum number of vCPUs [default: 1].
    #[arg(long, value_name = "COUNT", requires = "name")]
    pub min: Option<u32>,
    /// The maximum number of vCPUs [default: the maximum of the machine].
    #[arg(long, value_name = "COUNT", requires = "name")]
    pub max: Option<u32>,
    /// The wanted use of each vCPU, as a part of one host CPU, such as "0.7".
    #[arg(long, value_name = "PART", requires = "name")]
    pub target: Option<f64>,
    /// The maximum number of vCPUs that one change adds.
    #[arg(long, value_name = "COUNT", requires = "name")]
    pub step_up: Option<u32>,
    /// The maximum number of vCPUs that one change removes.
    #[arg(long, value_name = "COUNT", requires = "name")]
    pub step_down: Option<u32>,
    /// The share of the machine if the host has too few CPUs for all machines, from 1 to 10000.
    #[arg(long, value_name = "NUMBER", requires = "name")]
    pub weight: Option<u32>,
    /// How long the number of vCPUs that another caller sets stays, in seconds or such as "5min".
    #[arg(long, value_name = "TIME", value_parser = parse_time, requires = "name")]
    pub hold: Option<Duration>,
    /// Report the decisions, and change nothing.
    #[arg(long, requires = "name")]
    pub observe: bool,
    /// End the scaling of the machine. Its number of vCPUs stays.
    #[arg(long, requires = "name", conflicts_with_all = [
        "min", "max", "target", "step_up", "step_down", "weight", "hold", "observe",
    ])]
    pub off: bool,
}
