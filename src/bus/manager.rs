//! The root object's own interface, `org.vcpud1.Manager`.

use std::collections::HashMap;
use std::path::PathBuf;

use futures_util::future::join_all;
use tokio::net::UnixStream;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{ObjectPath, OwnedFd, OwnedObjectPath, interface};

use super::authority::{Action, Authority};
use super::directory::Directory;
use super::error::Error;
use super::guarded_call::GuardedCall;
use super::options::{self, Options};
use super::statistics;
use crate::config::socket_path;
use crate::ids::{Pid, Uid};
use crate::machine::{ConnectError, Handle, QmpEndpoint};
use crate::names::MachineName;
use crate::process::{SocketError, SocketFile, adopt, peer_user};
use crate::registry::{self, Registrar, Registration};

/// The capabilities that later versions can extend.
const FEATURES: [&str; 11] = [
    "can-set-vcpus",
    "can-tune",
    "current",
    "get-tuning",
    "guest-online",
    "partial-results",
    "plan-codes",
    "reason-code",
    "statistics",
    "until",
    "vcpu-changed",
];

/// Serves `org.vcpud1.Manager`.
#[derive(Debug)]
pub struct Manager {
    directory: Directory,
    registrar: Registrar,
    authority: Authority,
}

impl Manager {
    /// A manager of the machines in `directory`, which registers machines with `registrar` for
    /// callers that `authority` authorizes.
    pub(super) fn new(directory: Directory, registrar: Registrar, authority: Authority) -> Self {
        Self {
            directory,
            registrar,
            authority,
        }
    }

    /// Registers the machine `name` if the caller is authorized.
    async fn register(
        &self,
        header: &Header<'_>,
        name: MachineName,
        options: Options,
        access: Access,
    ) -> Result<OwnedObjectPath, Error> {
        let mut keys: Vec<&str> = options.keys().map(String::as_str).collect();
        keys.sort_unstable();
        let keys = keys.join(",");
        let (settings, leader) = options::register(options)?;
        let mut call = GuardedCall::named(name.clone(), Action::ManageMachines, "register")
            .with("options", keys)
            .with_some("leader", leader)
            .with_some("owner", access.owner())
            .with_some("address", access.address());
        for (key, value) in settings.describe() {
            call = call.with(key, value);
        }
        let uid = call.authorize(header, &self.authority).await?.uid();
        let no_link = |error| failed(&name, registry::Error::from(ConnectError::from(error)));
        let registration = Registration {
            endpoint: access.endpoint(uid).map_err(no_link)?,
            name: name.clone(),
            settings,
            leader,
            uid,
        };
        let result = self.registrar.register(registration).await;
        result.map_err(|error| failed(&name, error))?;
        Ok(ObjectPath::from_string_unchecked(name.object_path()).into())
    }
}

/// The connection to the QMP of a machine that is to be registered. Nothing is sent before the caller
/// is authorized.
enum Access {
    Socket {
        path: PathBuf,
        /// The socket as an unprivileged user may reach it. A failure is reported only to an
        /// authorized caller.
        opened: Result<SocketFile, SocketError>,
    },
    Connection {
        stream: UnixStream,
        owner: Option<Uid>,
    },
}

impl Access {
    /// Returns the user of the QEMU process, as far as it is known before the connection is made.
    fn owner(&self) -> Option<Uid> {
        match self {
            Self::Socket { opened, .. } => opened.as_ref().ok().and_then(SocketFile::owner),
            Self::Connection { owner, .. } => *owner,
        }
    }

    /// Returns the path of the socket.
    fn address(&self) -> Option<String> {
        match self {
            Self::Socket { path, .. } => Some(path.display().to_string()),
            Self::Connection { .. } => None,
        }
    }

    /// Returns the endpoint that the registry uses for the authorized user `uid`.
    fn endpoint(self, uid: Uid) -> Result<QmpEndpoint, SocketError> {
        match self {
            Self::Socket { path, .. } if uid.is_root() => {
                Ok(QmpEndpoint::Socket(SocketFile::chosen_by_root(path)))
            }
            Self::Socket { opened, .. } => opened.map(QmpEndpoint::Socket),
            Self::Connection { stream, .. } => Ok(QmpEndpoint::Connection(Some(stream))),
        }
    }
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
        options: Options,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath, Error> {
        let name = machine_name(name)?;
        let path = socket_path(qmp_address).map_err(Error::InvalidArgs)?;
        let opened = SocketFile::open_for_user(path.clone()).await;
        let access = Access::Socket { path, opened };
        self.register(&header, name, options, access).await
    }

    #[zbus(out_args("machine"))]
    async fn register_machine_with_fd(
        &self,
        name: &str,
        qmp: OwnedFd,
        options: Options,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath, Error> {
        let name = machine_name(name)?;
        let no_link = |error: SocketError| {
            let error = ConnectError::from(error);
            failed(&name, registry::Error::from(error))
        };
        let stream = adopt(qmp.into()).map_err(no_link)?;
        let owner = peer_user(&stream).ok();
        let access = Access::Connection { stream, owner };
        self.register(&header, name, options, access).await
    }

    async fn unregister_machine(
        &self,
        name: &str,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        let name = machine_name(name)?;
        let (action, operation) = (Action::ManageMachines, "unregister");
        let call = match self.directory.get(name.as_str()) {
            Some(machine) => GuardedCall::on(&machine, action, operation),
            None => GuardedCall::named(name.clone(), action, operation),
        };
        call.authorize(&header, &self.authority).await?;
        let result = self.registrar.unregister(name.clone()).await;
        result.map_err(|error| failed(&name, error))
    }

    async fn reload(&self, #[zbus(header)] header: Header<'_>) -> Result<(), Error> {
        let call = GuardedCall::on_all(Action::ManageMachines, "reload");
        call.authorize(&header, &self.authority).await?;
        self.registrar.reload().await.map_err(Error::Reload)
    }

    #[zbus(out_args("machines"))]
    fn list_machines(&self) -> Vec<(String, OwnedObjectPath, u32)> {
        let row = |machine: &Handle| {
            let leader = machine.snapshot().leader().get();
            (machine.name().to_string(), path(machine), leader)
        };
        self.directory.all().iter().map(row).collect()
    }

    #[zbus(out_args("machines"))]
    async fn get_statistics(
        &self,
        options: Options,
    ) -> Result<HashMap<OwnedObjectPath, statistics::Rows>, Error> {
        let with_kvm = options::statistics(options)?;
        let machines = self.directory.all();
        statistics::check_size(&machines)?;
        let kvm = machines.iter().filter(|_| with_kvm).map(Handle::kvm);
        let kvm = join_all(kvm).await;
        let mut all = HashMap::new();
        // One after the other, so that each waits for its turn among the machines of other callers.
        for (n, machine) in machines.iter().enumerate() {
            let kvm = kvm.get(n).map_or(&[][..], |kvm| kvm);
            let statistics = machine.statistics(kvm).await;
            all.insert(path(machine), statistics::rows(&statistics));
        }
        Ok(all)
    }

    #[zbus(out_args("machine"))]
    fn get_machine(&self, name: String) -> Result<OwnedObjectPath, Error> {
        let machine = self.directory.get(&name);
        let none = || {
            let shown: String = name.chars().take(80).collect();
            Error::NoSuchMachine(format!("{shown:?}"))
        };
        machine.as_ref().map(path).ok_or_else(none)
    }

    #[zbus(name = "GetMachineByPID", out_args("machine"))]
    fn get_machine_by_pid(&self, pid: u32) -> Result<OwnedObjectPath, Error> {
        let mut machines = self.directory.all().into_iter();
        let machine = machines.find(|machine| pid != 0 && machine.snapshot().leader() == Pid(pid));
        let none = || Error::NoSuchMachine(format!("whose leader is process {pid}"));
        machine.as_ref().map(path).ok_or_else(none)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn features(&self) -> &'static [&'static str] {
        &FEATURES
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
