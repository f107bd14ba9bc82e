//! What others notice while one user calls as fast as he can: `cargo bench --bench storm`.
//!
//! root reads and changes one machine, at first in quiet and then while the user nobody, with eight
//! connections of 32 calls each, asks for all there is to ask for, most of which polkit denies him.
//! The bus daemon's own answer is the floor: it has to carry the storm too, and so has the machine.
//! Real dbus-daemon, polkitd and vcpud; scripted QEMUs.

#[path = "../tests/suite/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the suite uses the rest")]
mod harness;
mod timing;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;
use harness::*;
use timing::{Times, heading};
use vcpud::proxy::{MachineProxy, ManagerProxy};
use zbus::Connection;
use zbus::fdo::DBusProxy;

const CONNECTIONS: usize = 8;
const CALLS_EACH: usize = 32;
const ROUNDS: usize = 60;

/// How long the bus, a read and a change of a machine take.
async fn measure(bus: &DBusProxy<'_>, machine: &Machine) -> [Times; 3] {
    let mut times: [Times; 3] = Default::default();
    for round in 0..ROUNDS {
        let [floor, read, change] = &mut times;
        floor.take(bus.get_id()).await.expect("the bus answers");
        read.take(machine.rows()).await;
        let count = 1 + (round as u32 + 1) % 2;
        change.take(machine.set(count)).await.expect("it is done");
    }
    times
}

/// Calls whatever there is until `over`.
async fn storm(connection: Connection, over: &AtomicBool, answered: &AtomicUsize) {
    let manager = ManagerProxy::new(&connection).await.expect("a proxy");
    let builder = MachineProxy::builder(&connection).path("/org/vcpud1/machine/web");
    let machine = builder.build().await.expect("a proxy");
    let call = async |n: usize| {
        // Whether it is granted is not the matter.
        match n % 4 {
            0 => drop(machine.set_vcpus(2, HashMap::new()).await),
            1 => drop(machine.list_vcpus().await),
            2 => drop(manager.get_machine("nowhere").await),
            _ => drop(
                manager
                    .register_machine("mine", "/nowhere", HashMap::new())
                    .await,
            ),
        }
    };
    let caller = async |n: usize| {
        while !over.load(Ordering::Relaxed) {
            call(n).await;
            answered.fetch_add(1, Ordering::Relaxed);
        }
    };
    join_all((0..CALLS_EACH).map(&caller)).await;
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the figures")]
async fn main() {
    let world = World::with_polkit("").await;
    let _peers = ["web", "db"].map(|name| world.peer(name, Model::x86(1, 4)));
    world.machine("web").await;
    let machine = world.machine("db").await;
    let bus = DBusProxy::new(&world.connection).await.expect("the bus");
    measure(&bus, &machine).await; // warms up
    let quiet = measure(&bus, &machine).await;

    let (over, answered) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let address = world.bus.address().to_owned();
    let stormer = {
        let (over, answered) = (over.clone(), answered.clone());
        world.with_nobody(move |_| async move {
            let one = async || {
                let builder = zbus::connection::Builder::address(address.as_str());
                let connection = builder.build().await;
                storm(connection.expect("the bus takes nobody"), &over, &answered).await;
            };
            join_all((0..CONNECTIONS).map(|_| one())).await;
        })
    };
    let measured = async {
        while answered.load(Ordering::Relaxed) < CONNECTIONS * CALLS_EACH {
            tokio::task::yield_now().await;
        }
        let (before, since) = (answered.load(Ordering::Relaxed), std::time::Instant::now());
        let times = measure(&bus, &machine).await;
        let calls = answered.load(Ordering::Relaxed) - before;
        over.store(true, Ordering::Relaxed);
        (times, calls as f64 / since.elapsed().as_secs_f64())
    };
    let ((), (stormy, rate)) = tokio::join!(stormer, measured);

    println!("{}", heading(&["quiet", "in the storm"]));
    let names = ["bus: GetId", "ListVcpus", "SetVcpus 1 to 2 and back"];
    for (name, (quiet, stormy)) in names.into_iter().zip(quiet.iter().zip(&stormy)) {
        println!("{}", quiet.beside(name, stormy));
    }
    println!("the storm: {rate:.0} calls a second were answered");
}
