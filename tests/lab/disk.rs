//! The file system of the runtime directory is full: requests that cannot be saved are refused.

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;

use serde_json::Value;

use crate::harness::*;

const DIRECTORY: &str = "/run/vcpud";
const IO_ERROR: &str = "org.freedesktop.DBus.Error.IOError";

/// A small file system mounted on the runtime directory. It is removed when this is dropped.
struct SmallDisk;

impl SmallDisk {
    /// Must be created while the service does not run. Dropping it stops the service.
    async fn mount() -> Self {
        let options = ["-t", "tmpfs", "-o", "size=256k,mode=0755", "vcpud"];
        output("mount", &[&options[..], &[DIRECTORY]].concat()).await;
        output("systemd-tmpfiles", &["--create", "vcpud.conf"]).await;
        Self
    }

    /// Fills the file system.
    fn fill(&self) {
        let mut file = File::create(format!("{DIRECTORY}/filler")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    /// Frees space again.
    fn free(&self) {
        fs::remove_file(format!("{DIRECTORY}/filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut stop = Command::new("systemctl");
        let _ = stop.args(["stop", "vcpud.service"]).status();
        let mut unmount = Command::new("umount");
        let _ = unmount.args(["--lazy", DIRECTORY]).status();
    }
}

/// Returns the number of vCPUs in the persisted state of the machine `name`.
fn written(name: &str) -> usize {
    let text = fs::read_to_string(format!("{DIRECTORY}/machines/{name}.json"));
    let record: Value = serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
    record["present"].as_array().map_or(0, Vec::len)
}

#[tokio::test]
async fn a_full_disk_refuses_requests_and_loses_no_events() {
    const BEHIND: &str = "cannot save the state";
    const WRITTEN: &str = "the state is saved again";
    let host = Host::enter().await;
    host.stop_service().await;
    let disk = SmallDisk::mount().await;
    let mut guest = Guest::paused("web").await;
    let other = Guest::paused_outside("other").await;
    let machine = host.machine_of(&guest).await;
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));

    disk.fill();
    let parts = &["No space left on device", "nothing was changed"];
    for count in [3, 4] {
        machine
            .set(count)
            .await
            .unwrap_err()
            .assert(IO_ERROR, parts);
    }
    let pinned = machine.pin_vcpus(&[0], "0", Default::default()).await;
    Failure::of(pinned.unwrap_err()).assert(IO_ERROR, parts);
    let manager = host.manager().await;
    let address = other.socket().to_str().unwrap().to_owned();
    let registered = manager.register_machine("other", &address, Default::default());
    let failure = Failure::of(registered.await.unwrap_err());
    failure.assert(IO_ERROR, &["No space left on device", "not registered"]);
    assert_eq!(manager.list_machines().await.unwrap().len(), 1);
    assert_eq!(guest.vcpu_threads(), [0, 1]);

    // Changes by other clients are reported as usual.
    let mark = host.signals.mark().await;
    guest.monitor.plug(5, "mine").await;
    machine.wait_for("Vcpus", 3u32).await;
    let is_told = |all: &[Signal]| !added(all).is_empty();
    host.signals.wait("VcpuAdded", mark, is_told).await;
    let told = added(&host.signals.since(mark).await);
    assert_eq!(told, [Vcpu::by_cause("web", 5, "mine", "external")]);
    assert_eq!(host.said(BEHIND).await, 1);
    assert_eq!(written("web"), 2);

    // The next instance has an older state, and reports the change twice rather than never.
    assert!(host.kill_service().await);
    let machine = host.machine_of(&guest).await;
    machine.wait_for("Vcpus", 3u32).await;
    machine.set(4).await.unwrap_err().assert(IO_ERROR, parts);
    let told = host.signals.since(mark).await;
    assert!(ids(&added(&told)).iter().all(|id| *id == 5), "{told:?}");
    assert_eq!(removed(&told), []);

    disk.free();
    until("the persisted vCPUs", 3, || written("web")).await;
    assert_eq!(host.logs(WRITTEN).await, 1);
    assert_eq!(machine.set(4).await, Ok(Outcome::added([2])));
    let mark = host.signals.mark().await;
    assert!(host.kill_service().await);
    let machine = host.machine_of(&guest).await;
    assert_eq!(machine.set(5).await, Ok(Outcome::added([3])));
    assert_eq!(ids(&added(&host.signals.since(mark).await)), [3]);
    let registered = manager.register_machine("other", &address, Default::default());
    registered.await.unwrap();
    assert!(host.machine_of(&other).await.set(2).await.is_ok());
}
