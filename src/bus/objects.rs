//! The object tree for clients: `org.freedesktop.DBus.ObjectManager` of the root object.
//!
//! zbus has the same interface, and returns every node of the tree, also `/org/vcpud1/machine`, which has
//! no interface. zbus emits the signals for whatever has the name of the interface.

use std::borrow::Cow;
use std::collections::HashMap;

use zbus::names::InterfaceName;
use zbus::object_server::{Interface, SignalEmitter};
use zbus::{Connection, ObjectPath, ObjectServer, OwnedObjectPath, OwnedVariant, Variant};
use zbus::{fdo, interface};

use super::authority::Authority;
use super::directory::Directory;
use super::machine::MachineObject;
use super::manager::path;
use crate::names::MACHINE_INTERFACE;

/// The properties of an interface.
type Properties = HashMap<String, OwnedVariant>;

/// Serves `org.freedesktop.DBus.ObjectManager`.
#[derive(Debug)]
pub(super) struct Objects {
    directory: Directory,
    authority: Authority,
}

impl Objects {
    /// Returns the object manager of the machines in `directory`.
    pub(super) fn new(directory: Directory, authority: Authority) -> Self {
        Self {
            directory,
            authority,
        }
    }
}

#[interface(name = "org.freedesktop.DBus.ObjectManager")]
impl Objects {
    async fn get_managed_objects(
        &self,
        #[zbus(object_server)] server: &ObjectServer,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<HashMap<OwnedObjectPath, HashMap<&'static str, Properties>>> {
        let mut objects = HashMap::new();
        for machine in self.directory.all() {
            let path = path(&machine);
            let object = MachineObject::new(machine, self.authority.clone());
            let emitter = SignalEmitter::new(connection, path.as_ref())?;
            let properties = object.get_all(server, connection, None, &emitter).await?;
            let interfaces = HashMap::from([(MACHINE_INTERFACE, properties)]);
            objects.insert(path, interfaces);
        }
        Ok(objects)
    }

    #[zbus(signal)]
    async fn interfaces_added(
        emitter: &SignalEmitter<'_>,
        object_path: ObjectPath<'_>,
        interfaces_and_properties: HashMap<InterfaceName<'_>, HashMap<&str, Variant<'_>>>,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn interfaces_removed(
        emitter: &SignalEmitter<'_>,
        object_path: ObjectPath<'_>,
        interfaces: Cow<'_, [InterfaceName<'_>]>,
    ) -> zbus::Result<()>;
}

/// Emits that the machine at `path` is there, with its `properties`.
pub(super) async fn announce(
    root: &SignalEmitter<'_>,
    path: ObjectPath<'_>,
    properties: HashMap<&str, Variant<'_>>,
) -> zbus::Result<()> {
    let interface = InterfaceName::from_static_str_unchecked(MACHINE_INTERFACE);
    let interfaces = HashMap::from([(interface, properties)]);
    Objects::interfaces_added(root, path, interfaces).await
}
