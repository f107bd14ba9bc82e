//! Changes by other programs that the kernel reports.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio::time::timeout;
use vcpud::placement::{Bandwidth, Tuning};
use vcpud::placer::Watches;
use vcpud::process::Tasks;

use super::super::parts::{Ran, applied, remove_groups};
use super::World;

tests![another_program_is_noticed_and_own_writes_are_not];

/// How long a notification may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits until the machine of `changed` is notified, and returns whether it is.
fn is_noticed(runtime: &Runtime, changed: &Notify) -> bool {
    runtime.block_on(async { timeout(LIMIT, changed.notified()).await.is_ok() })
}

/// Returns whether the machine of `changed` is notified after the reader has read all events.
fn is_noticed_already(runtime: &Runtime, changed: &Notify) -> bool {
    runtime.block_on(async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        changed.notified().now_or_never().is_some()
    })
}

/// Uses a real QEMU and version 1.
fn another_program_is_noticed_and_own_writes_are_not() -> Ran {
    let world = World::new()?;
    let vcpus = world.qemu.vcpus();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (watches, changed) = (Watches::new().unwrap(), Arc::new(Notify::new()));
    runtime.spawn(watches.clone().run());
    let watch = watches.machine(changed.clone());
    let mut placer = world.placer();
    for quota in [10_000, 20_000] {
        let tuning = Tuning {
            bandwidth: Some(Bandwidth::new(50_000, quota).unwrap()),
            ..Tuning::default()
        };
        let mut pass = || watch.during(&mut placer, |p| p.reconcile(&tuning, &vcpus, &world.qemu));
        applied(&pass());
        assert!(!is_noticed_already(&runtime, &changed), "its own writes");

        for file in ["cpu.cfs_quota_us", "cpuset.cpus"] {
            let path = world.vcpu(2, file);
            let value = fs::read_to_string(&path).unwrap();
            fs::write(&path, value.trim()).unwrap();
            assert!(is_noticed(&runtime, &changed), "{file}");
        }
        applied(&pass());
        for hierarchy in [&world.cpu, &world.cpuset] {
            for thread in world.qemu.tasks().unwrap() {
                fs::write(hierarchy.with_file_name("tasks"), thread.to_string()).unwrap();
            }
            remove_groups(&hierarchy.join("vcpud"));
        }
        assert!(is_noticed(&runtime, &changed), "the groups are gone");
        pass();
        is_noticed_already(&runtime, &changed);
    }
    drop(watch);
    fs::write(world.vcpu(2, "cpu.cfs_quota_us"), "-1").unwrap();
    assert!(!is_noticed_already(&runtime, &changed), "it is forgotten");
    Ok(())
}
