//! What the service costs beside the same by hand: `cargo bench --bench floor`.
//!
//! vCPUs are plugged into a real QEMU, one by `SetVcpus` and the next by a QMP client that does
//! nothing but `device_add`, in turn; the ratio is what D-Bus, the look at what came of it and the
//! placement of the thread cost. Real dbus-daemon, vcpud and QEMU without a guest; root, so no polkit.

#[path = "../tests/suite/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the suite uses the rest")]
mod harness;
mod timing;

use harness::*;
use serde_json::json;
use timing::{Times, heading};

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the figures")]
async fn main() {
    let world = World::without_polkit().await;
    let (mut by_hand, mut by_service) = (Times::default(), Times::default());
    let boot = Boot {
        linux: false,
        ..Boot::default()
    };
    let mut qemu = Qemu::start(&world, "web", &boot).await;
    let machine = world.machine("web").await;
    machine.wait_for("State", "running").await;
    for n in (1..MAX_VCPUS).step_by(2) {
        let arguments = json!({
            "driver": "qemu64-x86_64-cpu", "socket-id": 0, "core-id": n, "thread-id": 0,
        });
        by_hand.take(qemu.execute("device_add", arguments)).await;
        machine.wait_for("Vcpus", n + 1).await;
        if n + 1 < MAX_VCPUS {
            let call = by_service.take(machine.set(n + 2)).await;
            call.expect("there is room");
        }
    }
    println!("{}", heading(&["device_add by hand", "SetVcpus"]));
    println!("{}", by_hand.beside("one vCPU more", &by_service));
}
