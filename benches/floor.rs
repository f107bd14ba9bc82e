//! The cost of the service compared with QMP commands: `cargo bench --bench floor`.
//!
//! vCPUs are added to two real QEMUs, one by one and in turn: to one with `SetVcpus`, and to the other with a QMP
//! client that only sends `device_add`. The ratio is the cost of D-Bus, the refresh and the placement of the
//! thread. Real dbus-daemon, vcpud and QEMUs without a guest; root, so without polkit.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a failed step ends the benchmark"
)]

#[path = "../tests/integration/harness/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "the integration tests use the rest"
)]
mod harness;
#[allow(dead_code, reason = "the other benches use the rest")]
mod timing;

use harness::*;
use serde_json::json;
use timing::{Times, heading, unless_brief};

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the figures")]
async fn main() {
    let world = World::without_polkit().await;
    let (mut by_hand, mut by_service) = (Times::default(), Times::default());
    let boot = Boot {
        linux: false,
        ..Boot::default()
    };
    let mut alone = Qemu::start(&world, "alone", &boot).await;
    let _served = Qemu::start(&world, "served", &boot).await;
    let machine = world.machine("served").await;
    for name in ["alone", "served"] {
        world.machine(name).await.wait_for("State", "running").await;
    }
    // The number of vCPUs that are added to each.
    let vcpus = unless_brief(40, 2);
    for n in 1..=vcpus {
        let arguments = json!({
            "driver": "qemu64-x86_64-cpu", "socket-id": 0, "core-id": n, "thread-id": 0,
        });
        by_hand.take(alone.execute("device_add", arguments)).await;
        let call = by_service.take(machine.set(n + 1)).await;
        call.expect("the vCPU is added");
    }
    println!("{}", heading(&["device_add by hand", "SetVcpus"]));
    println!("{}", by_hand.beside("one vCPU more", &by_service));
}
