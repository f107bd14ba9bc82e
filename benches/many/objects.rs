//! `GetManagedObjects` with many machines.

use std::collections::HashMap;

use zbus::{Connection, OwnedObjectPath, OwnedVariant, interface};

use super::harness::World;
use super::rounds;
use super::timing::{Report, Times, compare, timed};

type Objects = HashMap<OwnedObjectPath, HashMap<String, HashMap<String, OwnedVariant>>>;

/// Measures `GetManagedObjects` of the service, and of a service that only has the values.
pub(super) async fn measure(world: &World, report: &mut Report) {
    let manager = "org.freedesktop.DBus.ObjectManager";
    let call = async |connection: &Connection, name: &str| {
        let reply = connection
            .call_method(
                Some(name),
                "/org/vcpud1",
                Some(manager),
                "GetManagedObjects",
                &(),
            )
            .await;
        reply.expect("it answers")
    };
    let values = call(&world.connection, "org.vcpud1").await;
    let values: Objects = values.body().deserialize().expect("the signature");
    // A bus without vcpud, which lets root own this name and call its owner.
    let other = World::without_service().await;
    let service = other.bus.connect().await;
    let served = service
        .object_server()
        .at("/org/vcpud1", Floor(values))
        .await;
    assert!(served.expect("a connection").is_none(), "the path is free");
    let name = "org.freedesktop.systemd1";
    service.request_name(name).await.expect("root may own it");
    let services = [(&other.connection, name), (&world.connection, "org.vcpud1")];
    let ask = async |way: usize| {
        let (connection, name) = services[way];
        [timed(call(connection, name)).await.1]
    };
    let [times]: [[Times; 2]; 1] = compare(rounds(), ask).await;
    let names = ["the same values by zbus", "vcpud"];
    report.compare("GetManagedObjects", names.into_iter().zip(&times));
}

/// A service that sends the values that it has.
struct Floor(Objects);

#[interface(name = "org.freedesktop.DBus.ObjectManager")]
impl Floor {
    fn get_managed_objects(&self) -> Objects {
        let interface = |(name, properties): (&String, &HashMap<String, OwnedVariant>)| {
            let properties = properties
                .iter()
                .map(|(name, value)| (name.clone(), value.try_clone().expect("no descriptor")));
            (name.clone(), properties.collect())
        };
        let object = |(path, interfaces): (&OwnedObjectPath, &HashMap<String, _>)| {
            (path.clone(), interfaces.iter().map(interface).collect())
        };
        self.0.iter().map(object).collect()
    }
}
