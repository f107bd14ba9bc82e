//! The connection to the service.

use std::ffi::OsString;
use std::io::{Error, ErrorKind, IsTerminal, stderr};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use vcpud::names::error_name;
use vcpud::proxy::{MachineProxy, ManagerProxy, error_reply};
use zbus::address::transport::{Transport, Unixexec};
use zbus::connection::Builder;
use zbus::proxy::{CacheProperties, MethodFlags};
use zbus::wire::DynamicDeserialize;
use zbus::{Address, Connection, DynamicType, OwnedObjectPath, Proxy};

use crate::agent::Agent;
use crate::cli::Global;
use crate::failure::{Failure, Remote};

/// The connection to the service, and the options for all commands.
pub(crate) struct Client {
    pub(crate) bus: Connection,
    /// Results are printed as JSON.
    pub(crate) json: bool,
    /// Results and warnings are not printed.
    pub(crate) quiet: bool,
    /// Tables have headings and a last line with the number of rows.
    pub(crate) legend: bool,
    /// The service is one of this host.
    pub(crate) is_local: bool,
    /// polkit can ask for a password.
    asks: bool,
    agent: OnceCell<Option<Agent>>,
}

impl Client {
    /// Connects to the bus.
    pub(crate) async fn new(arguments: &Global) -> Result<Self, Failure> {
        Ok(Self {
            bus: connect(arguments).await?,
            json: arguments.json,
            quiet: arguments.quiet,
            legend: !arguments.no_legend,
            is_local: arguments.is_local(),
            asks: !arguments.no_ask_password && arguments.is_local(),
            agent: OnceCell::new(),
        })
    }

    /// Starts the agent that asks for passwords, if it is necessary. Returns whether it runs.
    pub(crate) async fn prepare(&self) -> bool {
        self.asks && self.agent.get_or_init(Agent::start).await.is_some()
    }

    /// Whether people see the progress on the terminal.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.json && !self.quiet && stderr().is_terminal()
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
            self.prepare().await;
            reply = call(MethodFlags::ALLOW_INTERACTIVE_AUTH).await;
        }
        // Without the flag, the error distinguishes a missing password from a denial.
        if !self.asks || has_name(&reply, error_name::ACCESS_DENIED) {
            reply = call(MethodFlags::default()).await;
        }
        if has_name(&reply, error_name::INTERACTIVE_AUTHORIZATION_REQUIRED) {
            let error = reply.as_ref().err().and_then(error_reply);
            // The text of the service begins with the action.
            let text = error.map(|(_, text)| text).unwrap_or_default();
            let action = text.split(' ').next().unwrap_or_default().to_owned();
            let is_asked = self.asks;
            return Err(Failure::PasswordRequired { action, is_asked });
        }
        Ok(reply?)
    }
}

/// Connects to the bus of this host, of another host or of a container.
pub(crate) async fn connect(arguments: &Global) -> Result<Connection, Failure> {
    let bridge = |path: &str, arguments: &[&str]| {
        let arguments = arguments.iter().map(OsString::from).collect();
        let transport = Transport::Unixexec(Unixexec::new(path.into(), None, arguments));
        Builder::address(Address::from(transport))
    };
    let (builder, remote) = match (&arguments.host, &arguments.machine) {
        (Some(host), _) => {
            let remote = Remote {
                place: format!("host {host}"),
                command: format!("ssh {host} {BRIDGE}"),
            };
            (bridge("ssh", &["-xT", "--", host, BRIDGE]), Some(remote))
        }
        (None, Some(container)) => {
            let option = format!("--machine={container}");
            let remote = Remote {
                place: format!("container {container}"),
                command: format!("{BRIDGE} {option}"),
            };
            (bridge(BRIDGE, &[&option]), Some(remote))
        }
        (None, None) => (Builder::system(), None),
    };
    let limit = remote.as_ref().map_or(CONNECT_LIMIT, |_| REMOTE_LIMIT);
    let built = build(builder, limit).await;
    built.map_err(|error| Failure::NoBus(remote, error))
}

/// Connects to a bus, which has to answer within `limit`.
async fn build(builder: Builder<'_>, limit: Duration) -> zbus::Result<Connection> {
    timeout(limit, builder.build()).await.unwrap_or_else(|_| {
        let text = format!("the bus does not answer within {} s", limit.as_secs());
        let error = Error::new(ErrorKind::TimedOut, text);
        Err(zbus::Error::InputOutput(error.into()))
    })
}

/// How long the bus has to accept the connection. sd-bus has the same limit.
const CONNECT_LIMIT: Duration = Duration::from_secs(25);
/// The same for another host or a container: ssh(1) can ask for a password.
const REMOTE_LIMIT: Duration = Duration::from_secs(120);

/// The program that connects its standard input and output with the bus, a part of systemd.
const BRIDGE: &str = "systemd-stdio-bridge";

/// Returns the proxy of the root object.
pub(crate) async fn manager(bus: &Connection) -> Result<ManagerProxy<'static>, Failure> {
    let builder = ManagerProxy::builder(bus).cache_properties(CacheProperties::No);
    Ok(builder.build().await?)
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bus_that_does_not_answer_is_an_error() {
        let path = std::env::temp_dir().join(format!("vcpuctl-bus-{}", std::process::id()));
        let silent = UnixListener::bind(&path).unwrap();
        let address = format!("unix:path={}", path.display());
        let builder = Builder::address(address.as_str());
        let error = build(builder, CONNECT_LIMIT).await.unwrap_err();
        assert_eq!(
            Failure::NoBus(None, error).to_string(),
            "cannot connect to the system bus: I/O error: the bus does not answer within 25 s"
        );
        drop(silent);
        std::fs::remove_file(&path).unwrap();
    }
}
