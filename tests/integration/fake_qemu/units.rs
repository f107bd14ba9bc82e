//! Units of machines, with a scripted systemd on the bus that fails in each step. The lab has a real one.

use std::collections::HashMap;

use futures_util::future::join_all;
use zbus::fdo::ObjectManagerProxy;
use zbus::{Message, ObjectPath, Variant};

use crate::harness::*;

/// The steps of the way to a scope, with the ways to fail there and the resulting line of `PlacementErrors`.
const CASES: [(At, Trouble, &str); 16] = [
    (At::Lookup, Trouble::Refuse, "systemd refused: scripted"),
    (At::Lookup, Trouble::Limit, "systemd refused: scripted"),
    (At::Lookup, Trouble::Withhold, WAITS),
    (At::Lookup, Trouble::Late, LATE),
    (At::Lookup, Trouble::Reload, WAITS),
    (At::Lookup, Trouble::Leave, ABSENT),
    (At::Start, Trouble::Refuse, "systemd refused: scripted"),
    (At::Start, Trouble::Exists, "systemd refused: scripted"),
    (At::Start, Trouble::Late, LATE),
    (At::Start, Trouble::Reload, WAITS),
    (At::Start, Trouble::Leave, ABSENT),
    (
        At::Job,
        Trouble::Refuse,
        "systemd's job ended as \"failed\"",
    ),
    (
        At::Job,
        Trouble::Limit,
        "systemd's job ended as \"canceled\"",
    ),
    (At::Job, Trouble::Late, LATE),
    (At::Job, Trouble::Leave, ABSENT),
    (At::Job, Trouble::Forget, "systemd refused"),
];
const WAITS: &str = "systemd has not answered yet";
const LATE: &str = "systemd did not do it within 10 s";
const ABSENT: &str = "systemd is not on the system bus";

/// The number of machines of the largest tests. With `cargo test --release` it is larger, and each trouble occurs.
const MANY: usize = if cfg!(debug_assertions) { 100 } else { 1000 };

/// Many machines, with a scripted systemd.
struct Storm {
    world: World,
    units: Units,
    qemus: Vec<(Process, Peer)>,
}

impl Storm {
    /// Starts `count` QEMUs, and then the service.
    async fn begin(count: usize, trouble: Option<(Trouble, At)>) -> Self {
        Self::begin_in(World::without_service().await, count, trouble).await
    }

    /// The same in `world`.
    async fn begin_in(mut world: World, count: usize, trouble: Option<(Trouble, At)>) -> Self {
        let units = Units::start_with(&world.bus, trouble, 3).await;
        let qemu = |n: usize| world.process_peer(&format!("vm{n}"), Model::x86(1, 2));
        let qemus: Vec<_> = (0..count).map(qemu).collect();
        let sockets = world.bus.runtime_directory().join("qmp");
        let listen = || std::fs::read_dir(&sockets).unwrap().count() == count;
        until("the QEMUs to listen", listen).await;
        world.serve().await;
        Self {
            world,
            units,
            qemus,
        }
    }

    /// Ends the QEMUs, so that the control groups can be removed.
    async fn end(mut self) {
        for (process, _) in &mut self.qemus {
            process.kill().await;
        }
    }

    /// Checks that the service answers, and that its machines can be used, without a unit.
    async fn assert_served(&self, reason: &str) {
        // The file of a socket exists before its process listens, and vcpud can look in between.
        for number in 0..self.qemus.len() {
            self.world.machine(&format!("vm{number}")).await;
        }
        let machines = within("ListMachines", self.world.names()).await;
        assert_eq!(machines.len(), self.qemus.len());
        let machine = self.world.machine("vm0").await;
        machine.wait_for("State", "running").await;
        assert_eq!(machine.placement().await.unwrap(), "none");
        assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
        self.has_error(reason).await;
        assert_eq!(machine.state().await.unwrap(), "running");
    }

    /// Waits until a machine has `reason` in `PlacementErrors`.
    async fn has_error(&self, reason: &str) {
        // A call that systemd does not answer ends at its time limit.
        let reasons = match reason {
            WAITS => vec![WAITS, LATE],
            other => vec![other],
        };
        let is_there = |machine: &Properties| {
            let Variant::Array(errors) = &*machine["PlacementErrors"] else {
                panic!("{machine:?}");
            };
            let mut errors = errors.iter();
            let is_one = |text: &str| reasons.iter().any(|reason| text.contains(reason));
            errors.any(|error| matches!(error, Variant::Str(text) if is_one(text)))
        };
        self.until(reason, |machines| machines.values().any(is_there))
            .await;
    }

    /// Waits until each machine is in its scope.
    async fn are_placed(&self) {
        let is_placed = |(name, machine): (&String, &Properties)| {
            let scope = format!("vcpud-{name}.scope");
            *machine["Unit"] == Variant::from(scope)
                && *machine["Placement"] == Variant::from(self.units.placement())
        };
        let count = self.qemus.len();
        self.units.started(count).await;
        self.until("all machines in their scopes", |machines| {
            machines.len() == count && machines.iter().all(is_placed)
        })
        .await;
        for (n, (process, _)) in self.qemus.iter().enumerate() {
            let scope = format!("vcpud-vm{n}.scope");
            assert!(self.units.has_groups(&scope, process.pid()), "{scope}");
        }
        if self.units.placement() == "scope" {
            let errors = |machine: &Properties| machine["PlacementErrors"].try_clone().unwrap();
            let none = Variant::from(Vec::<String>::new());
            let machines = self.machines().await;
            assert!(machines.values().all(|machine| *errors(machine) == none));
        }
    }

    /// Waits until the machines fulfil `condition`.
    async fn until(&self, what: &str, condition: impl Fn(&HashMap<String, Properties>) -> bool) {
        let mut signals = self.world.signals.clone();
        let fulfilled = async {
            loop {
                signals.catch_up();
                if condition(&self.machines().await) {
                    return;
                }
                signals.next().await;
            }
        };
        within(what, fulfilled).await;
    }

    /// The properties of all machines, by their names.
    async fn machines(&self) -> HashMap<String, Properties> {
        let path = ObjectPath::from_static_str_unchecked("/org/vcpud1");
        let connection = &self.world.connection;
        let manager = ObjectManagerProxy::new(connection, "org.vcpud1", path).await;
        let objects = manager.unwrap().get_managed_objects().await.unwrap();
        let machines = objects.into_values().filter_map(|mut interfaces| {
            let properties = interfaces.remove("org.vcpud1.Machine")?;
            Some((
                String::try_from(properties["Name"].clone()).ok()?,
                properties,
            ))
        });
        machines.collect()
    }
}

type Properties = HashMap<String, zbus::OwnedVariant>;

/// A systemd that fails, in one way, for `count` machines, and then works.
async fn weather(count: usize, (at, trouble, reason): (At, Trouble, &str)) {
    let mut storm = Storm::begin(count, Some((trouble, at))).await;
    storm.units.struck(1).await;
    if trouble == Trouble::Leave {
        storm.units.leave().await;
    }
    storm.assert_served(reason).await;
    storm.units.heal().await;
    storm.are_placed().await;
    storm.end().await;
}

/// Scripted QEMUs in processes of their own, a scripted systemd, dbus-daemon.
#[tokio::test]
async fn a_machine_gets_its_scope_after_each_trouble_of_systemd() {
    join_all(CASES.map(|case| weather(1, case))).await;
}

/// Scripted QEMUs in processes of their own, a scripted systemd, dbus-daemon.
#[tokio::test]
async fn twenty_machines_get_their_scopes_after_each_trouble_of_systemd() {
    join_all(CASES.map(|case| weather(20, case))).await;
}

/// Scripted QEMUs in processes of their own, a scripted systemd, dbus-daemon.
#[tokio::test]
async fn many_machines_get_their_scopes_at_once() {
    let storm = Storm::begin(MANY, None).await;
    storm.are_placed().await;
    storm.end().await;
}

/// Scripted QEMUs in processes of their own, a scripted systemd, dbus-daemon.
#[tokio::test]
async fn many_machines_get_their_scopes_after_the_troubles_of_systemd() {
    let worst = [3, 8, 11, 14];
    let is_told = |n: &usize| !cfg!(debug_assertions) || worst.contains(n);
    for n in (0..CASES.len()).filter(is_told) {
        weather(MANY, CASES[n]).await;
    }
}

/// Scripted QEMU in a process of its own, a scripted systemd, dbus-daemon: systemd could not move the process
/// (systemd before version 247 reports such a job as done).
#[tokio::test]
async fn a_scope_that_is_done_without_its_process_gets_it() {
    let storm = Storm::begin(1, Some((Trouble::Outside, At::Job))).await;
    storm.are_placed().await;
    storm.end().await;
}

/// Scripted QEMUs in processes of their own, a scripted systemd, dbus-daemon, and a monitor of the bus that
/// reads nothing: dbus-daemon counts the descriptors of all messages for it as under way.
#[tokio::test]
async fn a_monitor_that_reads_nothing_stops_no_scope() {
    let world = World::without_service().await;
    let mut monitor = RawClient::connect(&world.bus, 0).await;
    let call = Message::method_call("/org/freedesktop/DBus", "BecomeMonitor")
        .destination("org.freedesktop.DBus")
        .interface("org.freedesktop.DBus.Monitoring");
    let call = monitor.call(call, &(Vec::<String>::new(), 0u32)).await;
    assert_eq!(monitor.reply(call).await.error, None);
    // More than its socket takes.
    for _ in 0..16 {
        let (filler, nobody) = ("x".repeat(1 << 16), None::<&str>);
        let interface = "org.example.Filler";
        let emitted = world
            .connection
            .emit_signal(nobody, "/filler", interface, "Filler", &filler);
        emitted.await.unwrap();
    }
    let storm = Storm::begin_in(world, 100, None).await;
    storm.are_placed().await;
    storm.end().await;
    drop(monitor);
}

/// Scripted QEMUs, a scripted systemd, dbus-daemon.
#[tokio::test]
async fn a_machine_gets_its_unit_when_systemd_is_back() {
    let world = World::without_polkit().await;
    let (mut process, _peer) = world.process_peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    machine.wait_for("Unit", "").await;
    let units = Units::start(&world.bus).await;
    machine.wait_for("Placement", units.placement()).await;
    machine.wait_for("Unit", "vcpud-web.scope").await;
    process.kill().await;
}

/// Scripted QEMU in a process of its own, a scripted systemd, dbus-daemon: another program moves QEMU.
#[tokio::test]
async fn a_machine_that_was_moved_to_another_unit_gets_its_scope_again() {
    let mut world = World::without_service().await;
    let units = Units::start(&world.bus).await;
    world.serve().await;
    let (mut process, _peer) = world.process_peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    let scope = "vcpud-web.scope";
    machine.wait_for("Placement", units.placement()).await;
    let is_in_scope = || units.has_groups(scope, process.pid());
    if units.placement() == "scope" {
        assert!(is_in_scope());
        units.take(scope, process.pid());
        assert!(!is_in_scope());
        units.started(2).await;
        until("the control groups", is_in_scope).await;
        machine
            .wait_for("PlacementErrors", Vec::<String>::new())
            .await;
        assert_eq!(machine.unit().await.unwrap(), scope);
    }
    process.kill().await;
}

/// Scripted QEMU, a scripted systemd, dbus-daemon: many jobs of other units end before the reply.
#[tokio::test]
async fn jobs_of_other_units_do_not_delay_a_scope() {
    let world = World::without_service().await;
    let units = Units::start_with(&world.bus, None, 2_000).await;
    let mut world = world;
    world.serve().await;
    let (mut process, _peer) = world.process_peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    machine.wait_for("Unit", "vcpud-web.scope").await;
    assert_eq!(machine.placement().await.unwrap(), units.placement());
    process.kill().await;
}
