//! The object tree for clients: `org.freedesktop.DBus.ObjectManager` of the root object.
//!
//! zbus has the same interface, and returns every node of the tree, also `/org/vcpud1/machine`, which has
//! no interface. zbus emits the signals for whatever has the name of the interface.

use std::borrow::Cow;
use std::collections::HashMap;

use zbus::names::InterfaceName;
use zbus::object_server::{Interface, SignalEmitter};
use zbus::{Connection, ObjectPath, ObjectServer, OwnedObjectPath, Variant, fdo, interface};

use super::directory::Directory;
use super::manager::Manager;
use super::published::Encoded;
use crate::names::{MACHINE_INTERFACE, MANAGER_INTERFACE, ROOT_PATH};

/// The interfaces of an object, and their properties.
type Interfaces = HashMap<&'static str, Encoded>;

/// Serves `org.freedesktop.DBus.ObjectManager`.
#[derive(Debug)]
pub(super) struct Objects {
    directory: Directory,
}

impl Objects {
    /// Returns the object manager of the machines in `directory`.
    pub(super) fn new(directory: Directory) -> Self {
        Self { directory }
    }
}

#[interface(name = "org.freedesktop.DBus.ObjectManager")]
impl Objects {
    async fn get_managed_objects(
        &self,
        #[zbus(object_server)] server: &ObjectServer,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<HashMap<OwnedObjectPath, Interfaces>> {
        let manager = server.interface::<_, Manager>(ROOT_PATH).await?;
        let emitter = manager.signal_emitter();
        let properties = manager.get().await;
        let properties = properties.get_all(server, connection, None, emitter);
        let properties = Encoded::new(&properties.await?)?;
        let root = OwnedObjectPath::from(ObjectPath::from_static_str_unchecked(ROOT_PATH));
        let root = (root, HashMap::from([(MANAGER_INTERFACE, properties)]));
        let machines = self.directory.known().into_iter();
        let objects = machines.map(|(name, properties)| {
            let path = ObjectPath::from_string_unchecked(name.object_path());
            let interfaces = HashMap::from([(MACHINE_INTERFACE, properties)]);
            (OwnedObjectPath::from(path), interfaces)
        });
        Ok(objects.chain([root]).collect())
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
