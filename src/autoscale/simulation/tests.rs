//! The comparison of the policies on the traces of `doc/autoscaling`. The simulation is deterministic.

use std::fs;
use std::path::Path;

use super::super::limits::Limits;
use super::*;

fn trace(name: &str) -> Trace {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("doc/autoscaling/traces");
    let text = fs::read(path.join(format!("{name}.csv"))).unwrap();
    Trace::parse(&text).unwrap()
}

/// Returns the scores of vcpud, of the load average, and of the threshold.
fn scores(name: &str) -> [Score; 3] {
    let trace = trace(name);
    Policy::ALL.map(|policy| simulate(&trace, policy, &Limits::new(1, 16)).score)
}

/// Returns the rival that serves more of the demand.
fn better(scores: &[Score; 3]) -> &Score {
    let [_, load_average, threshold] = scores;
    if load_average.avoidable <= threshold.avoidable {
        load_average
    } else {
        threshold
    }
}

const TRACES: [&str; 12] = [
    "boot",
    "contended",
    "daily",
    "full-host",
    "missing-samples",
    "noise",
    "on-off",
    "ramp",
    "refusing-guest",
    "spikes",
    "step",
    "two-machines",
];

#[test]
fn each_trace_is_compared() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("doc/autoscaling/traces");
    let files = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut names: Vec<String> = files
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, TRACES);
}

#[test]
fn no_addition_under_contention() {
    for name in TRACES {
        assert_eq!(scores(name)[0].contended, 0, "{name}");
    }
}

/// Two traces are exceptions: after contention, vcpud finds free CPUs by probes only, and on a quiet day
/// the threshold keeps three times as many vCPUs.
#[test]
fn the_unserved_demand_is_not_more_than_that_of_the_better_rival() {
    for name in TRACES {
        let scores = scores(name);
        let [vcpud, load_average, threshold] = &scores;
        match name {
            "contended" => assert!(vcpud.avoidable < threshold.avoidable),
            "daily" => assert!(vcpud.avoidable < load_average.avoidable / 100.0),
            _ => assert!(vcpud.avoidable <= better(&scores).avoidable, "{name}"),
        }
    }
}

#[test]
fn the_waste_is_30_percent_below_that_of_the_better_rival_on_these_traces() {
    for name in [
        "boot",
        "contended",
        "daily",
        "full-host",
        "ramp",
        "spikes",
        "two-machines",
    ] {
        let scores = scores(name);
        let [vcpud, ..] = &scores;
        assert!(vcpud.wasted <= 0.7 * better(&scores).wasted, "{name}");
    }
}

#[test]
fn noise_leads_to_a_third_of_the_requests_of_the_load_average() {
    let [vcpud, load_average, _] = scores("noise");
    assert!(3 * vcpud.requests <= load_average.requests);
}

#[test]
fn the_same_trace_leads_to_the_same_decisions() {
    let trace = trace("contended");
    let limits = Limits::new(1, 16);
    let run = || simulate(&trace, Policy::Vcpud, &limits);
    assert_eq!(run(), run());
}
