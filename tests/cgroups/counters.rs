//! Counters of threads and of control groups, in either version. Each test creates a group of its own, and removes
//! it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::yield_now;
use std::time::Duration;

use vcpud::ids::{Pid, Tid, VcpuId};
use vcpud::placement::{Bandwidth, Kind, Tuning, UnitPlacement};
use vcpud::placer::{Host, Placer, sample};
use vcpud::process::Tasks;
use vcpud::statistics::{Reported, Sample};

use super::parts::{
    Bystander, NotRun, Qemu, Ran, applied, has_version_1, has_version_2, not_run, remove_groups,
};

tests![
    groups_and_threads_have_the_same_times,
    throttling_is_not_wait,
    threads_of_other_processes_have_no_counters,
];

const BUSY: VcpuId = VcpuId(0);

/// A QEMU whose first vCPU is busy, with its groups.
struct World {
    qemu: Qemu,
    host: Host,
    name: String,
    placer: Placer,
}

impl World {
    /// Fails on a host without control groups.
    fn new() -> Result<Self, NotRun> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let host = Host::this().unwrap();
        if !has_version_1(&host) && !has_version_2(&host) {
            return Err(not_run("this host has no controllers cpu and cpuset"));
        }
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vcpud-counters-{}-{next}", std::process::id());
        let qemu = Qemu::busy();
        for group in groups(&host, &name) {
            fs::create_dir(&group).expect("control groups can be made; these tests run as root");
            // A new cpuset of version 1 has no CPUs, and the placer gives it those above.
            let _ = fs::write(group.join("cgroup.procs"), qemu.pid().to_string());
        }
        let home = UnitPlacement {
            kind: Kind::Unit,
            unit: name.clone(),
            control_group: format!("/{name}"),
        };
        Ok(Self {
            placer: Placer::new(host.clone(), "test", home).unwrap(),
            qemu,
            host,
            name,
        })
    }

    fn place(&mut self, tuning: &Tuning) {
        let vcpus = self.qemu.vcpus();
        applied(&self.placer.reconcile(tuning, &vcpus, &self.qemu));
    }

    fn sample(&self) -> Sample {
        sample(&self.qemu, &self.qemu.vcpus(), &self.host.mounts)
    }

    /// Returns a sample, and the CPU times of the group of the busy vCPU before and after it.
    fn sample_between_usages(&self) -> (Duration, Sample, Duration) {
        (self.group_usage(), self.sample(), self.group_usage())
    }

    /// Samples until `is_enough`.
    fn sample_until(&self, is_enough: impl Fn(&Sample) -> bool) -> Sample {
        loop {
            let sample = self.sample();
            if is_enough(&sample) {
                return sample;
            }
            yield_now();
        }
    }

    /// Returns the text of a file of the group of the busy vCPU, if it exists.
    fn read(&self, file: &str) -> Option<String> {
        let mut groups = groups(&self.host, &self.name);
        let read = |group: PathBuf| fs::read_to_string(group.join("vcpud/vcpu0").join(file)).ok();
        groups.find_map(read)
    }

    /// Returns the CPU time of this group.
    fn group_usage(&self) -> Duration {
        if let Some(usage) = self.read("cpuacct.usage") {
            return Duration::from_nanos(usage.trim().parse().unwrap());
        }
        let stat = self.read("cpu.stat").unwrap();
        Duration::from_micros(number_after(&stat, "usage_usec "))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.qemu.child.kill();
        let _ = self.qemu.child.wait();
        groups(&self.host, &self.name).for_each(|group| remove_groups(&group));
    }
}

/// Returns the group `name` in each hierarchy.
fn groups(host: &Host, name: &str) -> impl Iterator<Item = PathBuf> {
    let v1 = ["cpu", "cpuacct", "cpuset"];
    let v1 = v1
        .into_iter()
        .filter_map(|c| host.mounts.controllers.get(c));
    let mut points: Vec<PathBuf> = v1.map(|mount| mount.point.clone()).collect();
    points.dedup();
    if points.is_empty() {
        points.extend(host.mounts.unified.iter().map(|mount| mount.point.clone()));
    }
    points.into_iter().map(move |point| point.join(name))
}

fn number_after(text: &str, key: &str) -> u64 {
    let (_, rest) = text
        .split_once(key)
        .unwrap_or_else(|| panic!("{key}: {text}"));
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..end].parse().unwrap()
}

fn usage(sample: &Sample) -> Duration {
    sample.threads[&BUSY].times.unwrap().usage
}

fn delay(sample: &Sample) -> Duration {
    sample.threads[&BUSY].times.unwrap().delay
}

#[track_caller]
fn assert_close(a: Duration, b: Duration) {
    let ratio = a.as_secs_f64() / b.as_secs_f64();
    assert!((0.97..=1.03).contains(&ratio), "{a:?} and {b:?}");
}

/// Uses a real QEMU whose vCPU runs for four seconds, and the groups of the kernel.
fn groups_and_threads_have_the_same_times() -> Ran {
    let mut world = World::new()?;
    world.place(&Tuning::default());
    let (from, first, since) = world.sample_between_usages();
    world.sample_until(|s| usage(s) >= usage(&first) + Duration::from_secs(4));
    let (until, last, to) = world.sample_between_usages();
    let thread = usage(&last) - usage(&first);
    assert!(thread.mul_f64(1.03) >= until - since, "{thread:?}");
    assert!(thread.mul_f64(0.97) <= to - from, "{thread:?}");

    // The groups of the machine, and its process.
    let [first_all, last_all] = [&first, &last].map(|sample| sample.groups.all.unwrap());
    let process = last.process.unwrap() - first.process.unwrap();
    assert_close(last_all - first_all, process);
    let [first, last] = [&first, &last].map(|sample| sample.groups.emulator.unwrap());
    assert!(last - first < thread / 4, "{first:?}, {last:?}");
    Ok(())
}

/// Uses a real QEMU with a quota, and the groups of the kernel: a throttled thread is delayed according to
/// `schedstat`.
fn throttling_is_not_wait() -> Ran {
    let mut world = World::new()?;
    let period = Duration::from_millis(50);
    world.place(&Tuning {
        bandwidth: Some(Bandwidth::new(50_000, 10_000).unwrap()),
        ..Tuning::default()
    });
    let throttling = |sample: &Sample| sample.threads[&BUSY].throttling.unwrap();
    let start = throttling(&world.sample()).throttled_periods;
    let first = world.sample_until(|s| throttling(s).throttled_periods > start);
    let mut reported = Reported::default();
    let wait = reported.waits(&first)[&BUSY];
    let last = world.sample_until(|s| {
        throttling(s).throttled_periods >= throttling(&first).throttled_periods + 40
    });
    let throttled = throttling(&last).time - throttling(&first).time;
    let delayed = delay(&last) - delay(&first);
    assert!(throttling(&last).periods >= throttling(&last).throttled_periods);
    assert!(delayed + period >= throttled, "{delayed:?}, {throttled:?}");
    let waited = reported.waits(&last)[&BUSY] - wait;
    assert!(
        waited + throttled <= delayed + period,
        "{waited:?}, {throttled:?}, {delayed:?}"
    );
    // The other vCPUs do not run.
    let idle = &last.threads[&VcpuId(1)];
    assert_eq!(idle.throttling.unwrap().throttled_periods, 0);
    Ok(())
}

/// Claims that the process of another one is its thread.
struct Liar<'a>(&'a Qemu);

impl Tasks for Liar<'_> {
    fn pid(&self) -> Pid {
        self.0.pid()
    }

    fn has_task(&self, _: Tid) -> bool {
        true
    }
}

/// Uses a real QEMU and another process, without control groups of their own.
fn threads_of_other_processes_have_no_counters() -> Ran {
    let (qemu, other) = (Qemu::start(), Bystander::start());
    let mut threads: BTreeMap<VcpuId, Tid> = qemu.vcpus();
    threads.insert(VcpuId(1), other.thread());
    let host = Host::this().unwrap();
    for leader in [&qemu as &dyn Tasks, &Liar(&qemu)] {
        let sample = sample(leader, &threads, &host.mounts);
        let found: Vec<u32> = sample.threads.keys().map(|vcpu| vcpu.get()).collect();
        assert_eq!(found, [0, 2, 3]);
    }
    let mut qemu = qemu;
    qemu.child.kill().unwrap();
    qemu.child.wait().unwrap();
    let ended = sample(&qemu, &threads, &host.mounts);
    assert_eq!((ended.threads, ended.process), (BTreeMap::new(), None));
    Ok(())
}
