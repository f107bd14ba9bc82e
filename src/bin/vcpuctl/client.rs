//! The connection to the service.

use serde::Serialize;
use tokio::sync::OnceCell;
use vcpud::names::error_name;
use vcpud::proxy::{MachineProxy, ManagerProxy, error_reply};
use zbus::proxy::{CacheProperties, MethodFlags};
use zbus::wire::DynamicDeserialize;
use zbus::{Connection, DynamicType, OwnedObjectPath, Proxy};

use crate::agent::Agent;
use crate::cli::Global;
use crate::failure::Failure;

/// The connection to the service, and the options for all commands.
pub(crate) struct Client {
    pub(crate) bus: Connection,
    /// Results are printed as JSON.
    pub(crate) json: bool,
    /// polkit can ask for a password.
    asks: bool,
    agent: OnceCell<Option<Agent>>,
}

impl Client {
    /// Connects to the bus.
    pub(crate) async fn new(arguments: &Global) -> Result<Self, Failure> {
        Ok(Self {
            bus: connect().await?,
            json: arguments.json,
            asks: !arguments.no_ask_password,
            agent: OnceCell::new(),
        })
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

    /// Calls a method that requires the authorization of polkit. On a terminal, polkit can ask for a password.
    pub(crate) async fn call<R>(
        &self,
        proxy: &Proxy<'_>,
        method: &str,
        arguments: &(impl Serialize + DynamicType),
    ) -> Result<R, Failure>
    where
        R: for<'a> DynamicDeserialize<'a>,
    {
        let call = async |flags| {
            let reply = proxy.call_with_flags(method, flags, arguments).await;
            reply.and_then(|reply| reply.ok_or(zbus::Error::InvalidReply))
        };
        let has_name = |reply: &zbus::Result<R>, name: &str| {
            let error = reply.as_ref().err().and_then(error_reply);
            error.is_some_and(|(error, _)| error == name)
        };
        let mut reply = Err(zbus::Error::InvalidReply);
        if self.asks {
            self.agent.get_or_init(Agent::start).await;
            reply = call(MethodFlags::ALLOW_INTERACTIVE_AUTH).await;
        }
        // Without the flag, the error distinguishes a missing password from a denial.
        if !self.asks || has_name(&reply, error_name::ACCESS_DENIED) {
            reply = call(MethodFlags::default()).await;
        }
        if has_name(&reply, error_name::INTERACTIVE_AUTHORIZATION_REQUIRED) {
            return Err(Failure::PasswordRequired(self.asks));
        }
        Ok(reply?)
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
