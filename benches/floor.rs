//! What the service costs beside the same by hand: `cargo bench --bench floor`.
//!
//! vCPUs are plugged into two real QEMUs, one by one and in turn: into one by `SetVcpus`, into the
//! other by a QMP client that does nothing but `device_add`. The ratio is what D-Bus, the look at
//! what came of it and the placement of the thread cost. Real dbus-daemon, vcpud and QEMUs without
//! a guest; root, so no polkit.

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
use timing::{Times, heading};

/// How many vCPUs each gets.
const VCPUS: u32 = 40;

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
    for n in 1..=VCPUS {
        let arguments = json!({
            "driver": "qemu64-x86_64-cpu", "socket-id": 0, "core-id": n, "thread-id": 0,
        });
        by_hand.take(alone.execute("device_add", arguments)).await;
        let call = by_service.take(machine.set(n + 1)).await;
        call.expect("there is room");
    }
    println!("{}", heading(&["device_add by hand", "SetVcpus"]));
    println!("{}", by_hand.beside("one vCPU more", &by_service));
}
