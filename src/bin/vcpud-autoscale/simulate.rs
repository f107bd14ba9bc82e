//! The command `simulate`: reads traces, and prints decisions and scores. The simulation is in
//! `vcpud::autoscale::simulation`.

use std::fs::File;
use std::io::{self, Read, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde_json::{Value, json};
use thiserror::Error;
use vcpud::arguments::parse_time;
use vcpud::autoscale::simulation::{self, Choice, Report, Score, Trace, TraceError};
use vcpud::autoscale::{Limits, LimitsError};

/// The maximum length of a trace, in bytes.
const MAX_LENGTH: u64 = 16 << 20;

/// Simulate a policy on traces of the load.
///
/// A trace is a CSV file. Its columns are the time in seconds, the number of host CPUs, and the number of host CPUs
/// that each machine wants. The command needs no vcpud, and changes nothing. doc/autoscaling.md describes traces and
/// scores.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The traces.
    #[arg(required = true, value_name = "TRACE")]
    traces: Vec<PathBuf>,
    /// The policy.
    #[arg(long, value_enum, default_value_t = Policy::Vcpud)]
    policy: Policy,
    /// Compare all policies.
    #[arg(long, conflicts_with = "policy")]
    compare: bool,
    /// Print each request, and each new reason to make none.
    #[arg(long, short)]
    verbose: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    limits: LimitArguments,
}

/// The limits of each machine. The names are those of the keys of the configuration.
#[derive(Args)]
struct LimitArguments {
    /// The minimum number of vCPUs.
    #[arg(long, default_value_t = 1)]
    min: u32,
    /// The maximum number of vCPUs.
    #[arg(long, default_value_t = 16)]
    max: u32,
    /// The wanted use of each vCPU.
    #[arg(long, default_value_t = Limits::new(1, 1).target)]
    target: f64,
    /// The maximum number of vCPUs that one request adds.
    #[arg(long, value_name = "VCPUS", default_value_t = Limits::new(1, 1).step_up)]
    step_up: u32,
    /// The maximum number of vCPUs that one request removes.
    #[arg(long, value_name = "VCPUS", default_value_t = Limits::new(1, 1).step_down)]
    step_down: u32,
    /// How long the load must be high, in seconds or such as "1min".
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "3s")]
    up_window: Duration,
    /// How long the load must be low, in seconds or such as "1min".
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "45s")]
    down_window: Duration,
}

impl LimitArguments {
    fn limits(&self) -> Result<Limits, LimitsError> {
        let limits = Limits {
            target: self.target,
            step_up: self.step_up,
            step_down: self.step_down,
            up_window: self.up_window,
            down_window: self.down_window,
            ..Limits::new(self.min, self.max)
        };
        limits.check()?;
        Ok(limits)
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Policy {
    /// The policy of vcpud
    Vcpud,
    /// The load average of the guest, divided by 0.9
    LoadAverage,
    /// One more vCPU above 80 % use, and one fewer below 20 %
    Threshold,
}

impl From<Policy> for simulation::Policy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Vcpud => Self::Vcpud,
            Policy::LoadAverage => Self::LoadAverage,
            Policy::Threshold => Self::Threshold,
        }
    }
}

/// Why the command failed.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error("cannot read the trace \"{}\": {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("cannot read the trace \"{}\": it is longer than {} MiB", .0.display(), MAX_LENGTH >> 20)]
    Long(PathBuf),
    #[error("the trace \"{}\" is wrong in {error}", path.display())]
    Trace { path: PathBuf, error: TraceError },
    #[error("the option --{0}")]
    Limits(#[from] LimitsError),
    #[error("cannot write the result: {0}")]
    Write(#[from] io::Error),
}

impl Failure {
    /// Returns the exit status.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            // The command line is not valid, as for a wrong option.
            Self::Limits(_) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }
}

/// One trace with one policy.
struct Run {
    trace: String,
    machines: Vec<String>,
    policy: simulation::Policy,
    report: Report,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let limits = arguments.limits.limits()?;
    let one = [arguments.policy.into()];
    let policies: &[simulation::Policy] = if arguments.compare {
        &simulation::Policy::ALL
    } else {
        &one
    };
    let mut runs = Vec::new();
    for path in &arguments.traces {
        let trace = read(path)?;
        let name = path.file_stem().unwrap_or(path.as_os_str());
        runs.extend(policies.iter().map(|&policy| Run {
            trace: name.to_string_lossy().into_owned(),
            machines: trace.machines.clone(),
            policy,
            report: simulation::simulate(&trace, policy, &limits),
        }));
    }
    match print(&runs, arguments) {
        // The reader, such as head(1), has closed the pipe.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

fn print(runs: &[Run], arguments: &Arguments) -> io::Result<()> {
    let mut output = stdout().lock();
    if arguments.json {
        let runs: Vec<Value> = runs.iter().map(Run::json).collect();
        return writeln!(output, "{:#}", Value::Array(runs));
    }
    if arguments.verbose {
        runs.iter().try_for_each(|run| run.print(&mut output))?;
    }
    writeln!(output, "{}", table(runs))
}

fn read(path: &Path) -> Result<Trace, Failure> {
    let mut bytes = Vec::new();
    let file = File::open(path);
    let read = file.and_then(|file| file.take(MAX_LENGTH + 1).read_to_end(&mut bytes));
    read.map_err(|error| Failure::Read {
        path: path.to_owned(),
        error,
    })?;
    if bytes.len() as u64 > MAX_LENGTH {
        return Err(Failure::Long(path.to_owned()));
    }
    Trace::parse(&bytes).map_err(|error| Failure::Trace {
        path: path.to_owned(),
        error,
    })
}

impl Run {
    fn json(&self) -> Value {
        let Score {
            short,
            avoidable,
            wasted,
            steal,
            requests,
            refused,
            contended,
        } = self.report.score;
        let decisions = self.report.decisions.iter();
        let decisions = decisions.map(|choice| {
            json!({
                "time": choice.at,
                "machine": self.machine(choice),
                "from": choice.from,
                "to": choice.to,
                "reason": choice.reason.0,
                "text": choice.reason.1,
            })
        });
        json!({
            "trace": self.trace,
            "policy": self.policy.to_string(),
            "score": {
                "short": short,
                "avoidable": avoidable,
                "wasted": wasted,
                "steal": steal,
                "requests": requests,
                "refused": refused,
                "contended-additions": contended,
            },
            "decisions": decisions.collect::<Vec<_>>(),
        })
    }

    fn machine(&self, choice: &Choice) -> &str {
        self.machines.get(choice.machine).map_or("", String::as_str)
    }

    fn print(&self, output: &mut impl Write) -> io::Result<()> {
        writeln!(output, "{} with the policy {}:", self.trace, self.policy)?;
        for choice in &self.report.decisions {
            let change = if choice.from == choice.to {
                choice.from.to_string()
            } else {
                format!("{} to {}", choice.from, choice.to)
            };
            let (code, text) = &choice.reason;
            let (at, name) = (choice.at, self.machine(choice));
            writeln!(output, "{at:>7} s  {name}: {change:<8}  {code}: {text}")?;
        }
        writeln!(output)
    }
}

fn table(runs: &[Run]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header([
        "trace",
        "policy",
        "short",
        "avoidable",
        "wasted",
        "steal",
        "requests",
        "refused",
        "contended additions",
    ]);
    for run in runs {
        let score = &run.report.score;
        let seconds = [score.short, score.avoidable, score.wasted, score.steal];
        let counts = [score.requests, score.refused, score.contended];
        let mut row = vec![run.trace.clone(), run.policy.to_string()];
        row.extend(seconds.map(|seconds| format!("{seconds:.0}")));
        row.extend(counts.map(|count| count.to_string()));
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn limits(options: &[&str]) -> Result<Limits, LimitsError> {
        let arguments = ["simulate", "x.csv"].iter().chain(options);
        let program = Program::try_parse_from(arguments).unwrap();
        program.arguments.limits.limits()
    }

    #[test]
    fn the_defaults_are_those_of_the_policy() {
        assert_eq!(limits(&[]), Ok(Limits::new(1, 16)));
    }

    #[test]
    fn times_have_the_forms_of_vcpuctl() {
        let limits = limits(&["--up-window=5", "--down-window=1min 30s"]).unwrap();
        let second = Duration::from_secs;
        assert_eq!(
            (limits.up_window, limits.down_window),
            (second(5), second(90))
        );
    }

    #[test]
    fn a_trace_without_end_is_refused() {
        let error = read(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read the trace \"/dev/zero\": it is longer than 16 MiB"
        );
    }

    #[test]
    fn a_wrong_option_is_named() {
        let error = Failure::from(limits(&["--min=4", "--max=2"]).unwrap_err());
        assert_eq!(error.to_string(), "the option --max must be at least min");
    }

    /// The document has the table of this version.
    #[test]
    fn the_document_has_the_present_scores() {
        let doc = Path::new(env!("CARGO_MANIFEST_DIR")).join("doc");
        let document = fs::read_to_string(doc.join("autoscaling.md")).unwrap();
        let mut traces: Vec<PathBuf> = fs::read_dir(doc.join("autoscaling/traces"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        traces.sort();
        let mut runs = Vec::new();
        for path in traces {
            let trace = read(&path).unwrap();
            let name = path.file_stem().unwrap().to_str().unwrap();
            runs.extend(simulation::Policy::ALL.map(|policy| Run {
                trace: name.to_owned(),
                machines: trace.machines.clone(),
                policy,
                report: simulation::simulate(&trace, policy, &Limits::new(1, 16)),
            }));
        }
        let table = table(&runs).to_string();
        assert!(document.contains(&table), "write this table:\n{table}");
    }
}
