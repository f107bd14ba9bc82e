//! The root object's own interface, `org.vcpud1.Manager`.

use std::collections::HashMap;

use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, interface};
use zbus::{ObjectPath, OwnedFd, OwnedObjectPath, OwnedVariant};

use super::authority::{Action, Authority};
use super::callers::{Caller, Callers};
use super::directory::Directory;
use super::error::Error;
use super::options;
use crate::config::socket_path;
use crate::host::{adopt, peer_user};
use crate::machine::{Handle, NoLink};
use crate::names::MachineName;
use crate::registry::{self, Registrar, Registration, Way};

/// Serves `org.vcpud1.Manager`.
#[derive(Debug)]
pub struct Manager {
    directory: Directory,
    registrar: Registrar,
    callers: Callers,
}

impl Manager {
    /// A manager of the machines in `directory`, whose machines come and go by `registrar` as
    /// `callers` want.
    pub fn new(directory: Directory, registrar: Registrar, callers: Callers) -> Self {
        Self {
            directory,
            registrar,
            callers,
        }
    }

    /// Lets the sender of `call` pass, who would manage the machine `name`, or all where that is
    /// empty.
    async fn authorize(
        &self,
        call: &Call<'_>,
        name: &str,
        details: &[(&str, &str)],
    ) -> Result<Caller, Error> {
        let mut all = HashMap::from([("machine", name)]);
        all.extend(details.iter().copied());
        let authority = Authority::new(call.connection.clone(), self.callers.clone());
        authority
            .check(&call.header, Action::ManageMachines, &all)
            .await
    }

    /// Registers the machine `name` if the caller may. `way` is looked for after that is known.
    async fn register(
        &self,
        call: Call<'_>,
        name: &str,
        details: &[(&str, &str)],
        options: HashMap<String, OwnedVariant>,
        way: impl FnOnce() -> Result<Way, Error>,
    ) -> Result<OwnedObjectPath, Error> {
        let name = machine_name(name)?;
        let mut keys: Vec<&str> = options.keys().map(String::as_str).collect();
        keys.sort_unstable();
        let keys = keys.join(",");
        let details = [details, &[("options", keys.as_str())]].concat();
        let caller = self.authorize(&call, name.as_str(), &details).await?;
        let (settings, leader) = options::register(options)?;
        let registration = Registration {
            way: way()?,
            name: name.clone(),
            settings,
            leader,
            uid: caller.uid(),
        };
        let result = self.registrar.register(registration).await;
        result.map_err(|error| failed(&name, error))?;
        Ok(ObjectPath::from_string_unchecked(name.object_path()).into())
    }

    fn by_pid(&self, pid: u32) -> Result<OwnedObjectPath, Error> {
        let mut machines = self.directory.all().into_iter();
        let machine = machines.find(|machine| pid != 0 && machine.snapshot().leader == pid);
        let none = || Error::NoSuchMachine(format!("whose leader is process {pid}"));
        machine.as_ref().map(path).ok_or_else(none)
    }
}

/// A call that is to be authorized.
struct Call<'a> {
    header: Header<'a>,
    connection: &'a Connection,
}

fn machine_name(name: &str) -> Result<MachineName, Error> {
    name.parse()
        .map_err(|error| Error::InvalidArgs(format!("{error}")))
}

fn failed(name: &MachineName, error: registry::Error) -> Error {
    let name = name.clone();
    Error::Registry { name, error }
}

/// The object path of a machine.
pub(super) fn path(machine: &Handle) -> OwnedObjectPath {
    ObjectPath::from_string_unchecked(machine.name().object_path()).into()
}

#[interface(name = "org.vcpud1.Manager")]
impl Manager {
    #[zbus(out_args("machine"))]
    async fn register_machine(
        &self,
        name: &str,
        qmp_address: &str,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let call = Call { header, connection };
        let path = socket_path(qmp_address).map_err(Error::InvalidArgs)?;
        let details = [("address", qmp_address)];
        let way = || Ok(Way::Socket(path));
        self.register(call, name, &details, options, way).await
    }

    #[zbus(out_args("machine"))]
    async fn register_machine_with_fd(
        &self,
        name: &str,
        qmp: OwnedFd,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let call = Call { header, connection };
        let parsed = machine_name(name)?;
        let no_link = |error: NoLink| failed(&parsed, registry::Error::NoLink(error));
        let stream = adopt(qmp.into()).map_err(|error| no_link(error.into()))?;
        // Nothing is sent to it, and nothing read, before the caller may.
        let owner = peer_user(&stream).map(|uid| uid.to_string());
        let owner = owner.unwrap_or_default();
        let details = [("owner", owner.as_str())];
        let way = || Ok(Way::Connection(stream));
        self.register(call, name, &details, options, way).await
    }

    async fn unregister_machine(
        &self,
        name: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), Error> {
        let name = machine_name(name)?;
        let call = Call { header, connection };
        let _caller = self.authorize(&call, name.as_str(), &[]).await?;
        let result = self.registrar.unregister(name.clone()).await;
        result.map_err(|error| failed(&name, error))
    }

    async fn reload(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), Error> {
        let call = Call { header, connection };
        let _caller = self.authorize(&call, "", &[]).await?;
        self.registrar.reload().await.map_err(Error::Reload)
    }

    #[zbus(out_args("machines"))]
    fn list_machines(&self) -> Vec<(String, OwnedObjectPath, u32)> {
        let row = |machine: &Handle| {
            let leader = machine.snapshot().leader;
            (machine.name().to_string(), path(machine), leader)
        };
        self.directory.all().iter().map(row).collect()
    }

    #[zbus(out_args("machine"))]
    fn get_machine(&self, name: String) -> Result<OwnedObjectPath, Error> {
        let machine = self.directory.get(&name);
        let none = || Error::NoSuchMachine(format!("{name:?}"));
        machine.as_ref().map(path).ok_or_else(none)
    }

    #[zbus(out_args("machine"))]
    fn get_machine_by_pid(&self, pid: u32) -> Result<OwnedObjectPath, Error> {
        self.by_pid(pid)
    }

    #[zbus(name = "GetMachineByPID", out_args("machine"))]
    fn get_machine_by_pid_as_machined_spells_it(&self, pid: u32) -> Result<OwnedObjectPath, Error> {
        self.by_pid(pid)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    #[zbus(property)]
    fn configuration_errors(&self) -> Vec<String> {
        self.directory.problems()
    }

    #[zbus(signal)]
    pub(super) async fn machine_added(
        emitter: &SignalEmitter<'_>,
        name: &str,
        machine: &ObjectPath<'_>,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    pub(super) async fn machine_removed(
        emitter: &SignalEmitter<'_>,
        name: &str,
        machine: &ObjectPath<'_>,
    ) -> zbus::Result<()>;
}
