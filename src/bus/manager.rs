//! The root object's own interface, `org.vcpud1.Manager`.

use zbus::object_server::SignalEmitter;
use zbus::{interface, zvariant};
use zvariant::{ObjectPath, OwnedObjectPath};

use super::directory::Directory;
use super::error::Error;
use crate::machine::Handle;

/// Serves `org.vcpud1.Manager`.
#[derive(Debug)]
pub struct Manager {
    directory: Directory,
}

impl Manager {
    /// A manager of the machines in `directory`.
    pub fn new(directory: Directory) -> Self {
        Self { directory }
    }

    fn by_pid(&self, pid: u32) -> Result<OwnedObjectPath, Error> {
        let mut machines = self.directory.all().into_iter();
        let machine = machines.find(|machine| pid != 0 && machine.snapshot().leader == pid);
        let none = || Error::NoSuchMachine(format!("whose leader is process {pid}"));
        machine.as_ref().map(path).ok_or_else(none)
    }
}

/// The object path of a machine.
pub(super) fn path(machine: &Handle) -> OwnedObjectPath {
    ObjectPath::from_string_unchecked(machine.name().object_path()).into()
}

#[interface(name = "org.vcpud1.Manager")]
impl Manager {
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
