//! What any user can send to the service, and what that must not do to it and to others.

mod descriptors;
mod members;
mod messages;
mod reading;
mod reconnection;
mod sizes;

use zbus::fdo::DBusProxy;

use crate::harness::*;

/// A service with the machine `web`, of 2 of 4 vCPUs, and its connection as it is now.
struct Served {
    world: World,
    machine: Machine,
    peer: Peer,
    connection: String,
}

impl Served {
    async fn start() -> Self {
        Self::with(Model::x86(2, 4)).await
    }

    async fn with(model: Model) -> Self {
        let world = World::without_polkit().await;
        let peer = world.peer("web", model);
        let machine = world.machine("web").await;
        let connection = owner(&world).await;
        Self {
            world,
            machine,
            peer,
            connection,
        }
    }

    async fn nobody(&self) -> RawClient {
        RawClient::nobody(&self.world.bus).await
    }

    /// Returns a raw client whose signals the bus delivers to the service.
    async fn root(&self) -> RawClient {
        RawClient::connect(&self.world.bus, 0).await
    }

    /// Checks that the service answers, and over the same connection as before.
    async fn assert_untouched(&self, after: &str) {
        assert_eq!(self.machine.vcpus().await.unwrap(), 2, "after {after}");
        assert_eq!(owner(&self.world).await, self.connection, "after {after}");
        let log = self.world.service.as_ref().expect("it runs").log();
        assert!(!log.contains("panicked"), "after {after}");
    }

    /// Memory of the service, in MiB.
    fn resident(&self) -> u64 {
        self.world.service.as_ref().expect("it runs").peak_memory()
    }
}

/// The unique name that owns the service's name.
async fn owner(world: &World) -> String {
    let bus = DBusProxy::new(&world.connection)
        .await
        .expect("the bus is there");
    let name = "org.vcpud1".try_into().expect("a bus name");
    let owner = bus.get_name_owner(name).await.expect("it is owned");
    owner.to_string()
}
