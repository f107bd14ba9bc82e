//! Ten minutes of a guest under a changing load, for the chart in `doc/autoscaling.md`.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use tokio::time::{Instant, interval};
use vcpud::proxy::AutoscaleProxy;
use zbus::Variant;

use super::chart::{self, Point};
use super::{disable_all, proxy};
use crate::harness::*;

/// The numbers of busy threads of the guest, each with its time in seconds.
const LOAD: [(u32, u32); 8] = [
    (0, 30),
    (1, 60),
    (2, 60),
    (4, 90),
    (3, 60),
    (1, 90),
    (4, 90),
    (0, 120),
];
/// When other programs of the host begin to be busy, and when they end.
const CONTENTION: (Duration, Duration) = (Duration::from_secs(420), Duration::from_secs(480));
/// The number of these programs.
const RIVALS: usize = 3;

/// Returns the number of busy threads at a time.
fn demand(at: Duration) -> u32 {
    let mut end = Duration::ZERO;
    let busy = LOAD.iter().find(|(_, time)| {
        end += Duration::from_secs(u64::from(*time));
        at < end
    });
    busy.map_or(0, |(busy, _)| *busy)
}

/// Returns the present values of the autoscaler.
async fn point(autoscaler: &AutoscaleProxy<'_>, at: Duration) -> Option<Point> {
    let explanation = autoscaler.explain("web").await.expect("it is scaled");
    let number = |key: &str| explanation.get(key).cloned();
    let part = |key: &str| number(key).and_then(|value| f64::try_from(value).ok());
    let present = number("present").and_then(|value| u32::try_from(value).ok());
    Some(Point {
        at: at.as_secs_f64(),
        demand: demand(at),
        present: present?,
        stolen: part("stolen").unwrap_or_default(),
    })
}

#[tokio::test]
#[ignore = "takes ten minutes; tests/lab/chart runs it"]
async fn a_guest_under_a_changing_load_for_ten_minutes() {
    let host = Host::enter().await;
    let autoscaler = proxy(&host).await;
    let _guest = Guest::loaded("web", &LOAD).await;
    let begin = Instant::now();
    host.machine("web").await;
    let options = HashMap::from([("max", Variant::from(4_u32))]);
    autoscaler.enable("web", options).await.unwrap();
    let mut points = Vec::new();
    let mut rivals = Vec::new();
    let mut ticks = interval(Duration::from_secs(1));
    while begin.elapsed() < Duration::from_secs(600) {
        ticks.tick().await;
        let at = begin.elapsed();
        // The first sample is not taken yet.
        points.extend(point(&autoscaler, at).await);
        let is_contended = (CONTENTION.0..CONTENTION.1).contains(&at);
        if is_contended && rivals.is_empty() {
            let rival = |_| {
                let mut busy = command("sh");
                Process::spawn("a busy program", busy.args(["-c", "while :; do :; done"]))
            };
            rivals.extend((0..RIVALS).map(rival));
        }
        if !is_contended {
            rivals.clear();
        }
    }
    disable_all(&autoscaler).await;
    let results = "/run/results";
    fs::create_dir_all(results).unwrap();
    let lines = points.iter().map(|point| {
        let Point {
            at,
            demand,
            present,
            stolen,
        } = point;
        format!("{at:.0},{demand},{present},{stolen:.2}\n")
    });
    let table = format!("time,demand,vcpus,stolen\n{}", lines.collect::<String>());
    fs::write(format!("{results}/course.csv"), table).unwrap();
    fs::write(format!("{results}/course.svg"), chart::draw(&points)).unwrap();
    let most = points.iter().map(|point| point.present).max();
    assert_eq!(most, Some(4));
    assert_eq!(points.last().map(|point| point.present), Some(1));
}
