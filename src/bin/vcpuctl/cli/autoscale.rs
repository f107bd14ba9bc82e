//! The arguments of "autoscale".

use std::time::Duration;

use clap::Args;
use vcpud::arguments::parse_time;

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
    /// The wanted use of each vCPU, as a part of one host CPU, from 0.1 to 0.95 [default: 0.85].
    #[arg(long, value_name = "PART", requires = "name")]
    pub target: Option<f64>,
    /// The maximum number of vCPUs that one change adds [default: 16].
    #[arg(long, value_name = "COUNT", requires = "name")]
    pub step_up: Option<u32>,
    /// The maximum number of vCPUs that one change removes [default: 16].
    #[arg(long, value_name = "COUNT", requires = "name")]
    pub step_down: Option<u32>,
    /// The share of the machine if the host has too few CPUs for all machines, from 1 to 10000 [default: 100].
    #[arg(long, value_name = "NUMBER", requires = "name")]
    pub weight: Option<u32>,
    /// How long the number of vCPUs that another caller sets stays, in seconds or such as "1h" [default: 5min].
    #[arg(long, value_name = "TIME", value_parser = parse_time, requires = "name")]
    pub hold: Option<Duration>,
    /// How long the load must be high before vCPUs are added, from 1s to 1min [default: 3s].
    #[arg(long, value_name = "TIME", value_parser = parse_time, requires = "name")]
    pub up_window: Option<Duration>,
    /// How long the load must be low before vCPUs are removed, from 10s to 5min [default: 45s].
    #[arg(long, value_name = "TIME", value_parser = parse_time, requires = "name")]
    pub down_window: Option<Duration>,
    /// Keep vCPUs with a pin of their own, and those with lower numbers [default: true].
    #[arg(long, value_name = "BOOLEAN", requires = "name")]
    pub keep_pinned: Option<bool>,
    /// Keep the settings that have no option, and the mode without "--observe".
    #[arg(long, requires = "name")]
    pub update: bool,
    /// Report the decisions, and change nothing.
    #[arg(long, requires = "name")]
    pub observe: bool,
    /// End the scaling of the machine. Its number of vCPUs stays.
    #[arg(long, requires = "name", conflicts_with_all = [
        "min", "max", "target", "step_up", "step_down", "weight", "hold", "up_window", "down_window", "keep_pinned",
        "update", "observe",
    ])]
    pub off: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use humantime::parse_duration;
    use vcpud::autoscale::Limits;

    use crate::cli::Arguments;

    #[test]
    fn the_help_has_the_defaults_of_the_policy() {
        let mut program = Arguments::command();
        let command = program.find_subcommand_mut("autoscale").unwrap();
        let help = |name: &str| {
            let mut arguments = command.get_arguments();
            let argument = arguments.find(|argument| argument.get_id() == name);
            argument.unwrap().get_help().unwrap().to_string()
        };
        let default = |name: &str| {
            let help = help(name);
            let (_, default) = help.split_once("[default: ").unwrap();
            default.split(']').next().unwrap().to_owned()
        };
        let limits = Limits::new(1, 1);
        let time = |name: &str| parse_duration(&default(name)).unwrap();
        assert_eq!(default("min"), "1");
        assert_eq!(default("target"), limits.target.to_string());
        assert_eq!(default("step_up"), limits.step_up.to_string());
        assert_eq!(default("step_down"), limits.step_down.to_string());
        assert_eq!(default("weight"), limits.weight.to_string());
        assert_eq!(time("hold"), limits.hold);
        assert_eq!(time("up_window"), limits.up_window);
        assert_eq!(time("down_window"), limits.down_window);
    }
}
