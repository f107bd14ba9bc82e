//! Units of machines, with a fake systemd on the bus. The lab has a real one.

use zbus::{Fd, ObjectPath, interface};

use crate::harness::*;

const UNIT: &str = "/org/freedesktop/systemd1/unit/vm";

struct Manager;

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    #[zbus(name = "GetUnitByPIDFD")]
    fn get_unit_by_pidfd(&self, _pidfd: Fd<'_>) -> (ObjectPath<'static>, String, Vec<u8>) {
        let unit = ObjectPath::from_static_str_unchecked(UNIT);
        (unit, "vm.service".to_owned(), Vec::new())
    }
}

struct Unit;

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl Unit {
    #[zbus(property)]
    fn id(&self) -> &str {
        "vm.service"
    }
}

struct Service;

#[interface(name = "org.freedesktop.systemd1.Service")]
impl Service {
    #[zbus(property)]
    fn control_group(&self) -> &str {
        "/system.slice/vm.service"
    }

    #[zbus(property)]
    fn delegate(&self) -> bool {
        false
    }
}

/// Uses a fake QEMU and systemd, and dbus-daemon.
#[tokio::test]
async fn a_machine_gets_its_unit_when_systemd_is_back() {
    let world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    machine.wait_for("Unit", "").await;
    let systemd = world.bus.connect().await;
    let server = systemd.object_server();
    server
        .at("/org/freedesktop/systemd1", Manager)
        .await
        .unwrap();
    server.at(UNIT, Unit).await.unwrap();
    server.at(UNIT, Service).await.unwrap();
    systemd
        .request_name("org.freedesktop.systemd1")
        .await
        .unwrap();
    machine.wait_for("Unit", "vm.service").await;
}
