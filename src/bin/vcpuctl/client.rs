//! The connection to the service.

use serde::Serialize;
use vcpud::proxy::{MachineProxy, ManagerProxy};
use zbus::proxy::{CacheProperties, MethodFlags};
use zbus::wire::DynamicDeserialize;
use zbus::{Connection, DynamicType, OwnedObjectPath, Proxy};

use crate::failure::Failure;

/// The connection to the service, and the options for all commands.
pub(crate) struct Client {
    pub(crate) bus: Connection,
    /// Results are printed as JSON.
    pub(crate) json: bool,
}

impl Client {
    /// Connects to the bus.
    pub(crate) async fn new(json: bool) -> Result<Self, Failure> {
        let bus = connect().await?;
        Ok(Self { bus, json })
    }

    /// Returns the proxy of the root object.
    pub(crate) async fn manager(&self) -> Result<ManagerProxy<'static>, Failure> {
        manager(&self.bus).await
    }

    /// Returns the object path of the machine `name`.
    pub(crate) async fn find(&self, name: &str) -> Result<OwnedObjectPath, Failure> {
        Ok(self.manager().await?.get_machine(name).await?)
    }

    /// Returns a proxy of the machine `name`.
    pub(crate) async fn machine(&self, name: &str) -> Result<MachineProxy<'static>, Failure> {
        let builder = MachineProxy::builder(&self.bus).path(self.find(name).await?);
        Ok(builder
            .cache_properties(CacheProperties::No)
            .build()
            .await?)
    }

    /// Calls a method that requires the authorization of polkit.
    pub(crate) async fn call<R>(
        &self,
        proxy: &Proxy<'_>,
        method: &str,
        arguments: &(impl Serialize + DynamicType),
    ) -> zbus::Result<R>
    where
        R: for<'a> DynamicDeserialize<'a>,
    {
        let flags = MethodFlags::ALLOW_INTERACTIVE_AUTH;
        let reply = proxy.call_with_flags(method, flags, arguments).await?;
        reply.ok_or(zbus::Error::InvalidReply)
    }
}

/// Connects to the bus.
pub(crate) async fn connect() -> Result<Connection, Failure> {
    Connection::system().await.map_err(Failure::NoBus)
}

/// Returns the proxy of the root object.
pub(crate) async fn manager(bus: &Connection) -> Result<ManagerProxy<'static>, Failure> {
    let builder = ManagerProxy::builder(bus).cache_properties(CacheProperties::No);
    Ok(builder.build().await?)
}
