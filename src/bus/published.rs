//! A machine that is on the bus, and its properties as clients know them. The publisher owns it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use zbus::fdo::Properties;
use zbus::names::InterfaceName;
use zbus::object_server::{Interface, SignalEmitter};
use zbus::wire::serialized::{Context, Data};
use zbus::wire::{NATIVE_ENDIAN, to_bytes};
use zbus::{OwnedVariant, Signature, Type, Variant};

use super::describe::Dict;
use super::machine::MachineObject;
use crate::ids::VcpuId;
use crate::machine::Snapshot;
use crate::names::MACHINE_INTERFACE;

/// The properties of a machine, of type `a{sv}`. Encoded, because a map takes five times as much memory, and because
/// it takes more time to make one from the machine.
#[derive(Clone, Debug)]
pub(super) struct Encoded(Data<'static, 'static>);

/// The properties of a machine as clients know them. The publisher writes them, and methods read them.
#[derive(Clone, Debug)]
pub(super) struct Known(Arc<RwLock<Encoded>>);

/// A machine that is on the bus.
#[derive(Debug)]
pub(super) struct Published {
    object: MachineObject,
    emitter: SignalEmitter<'static>,
    known: Known,
    /// The state whose vCPUs clients know.
    seen: Arc<Snapshot>,
}

impl Encoded {
    pub(super) fn new(properties: &HashMap<String, OwnedVariant>) -> zbus::Result<Self> {
        to_bytes(Context::new(NATIVE_ENDIAN, 0), properties).map(Self)
    }

    /// Returns the properties.
    ///
    /// # Errors
    ///
    /// Those of the encoding.
    pub(super) fn decode(&self) -> zbus::Result<HashMap<&str, Variant<'_>>> {
        Ok(self.0.deserialize()?.0)
    }
}

impl Type for Encoded {
    const SIGNATURE: &'static Signature = Dict::SIGNATURE;
}

impl Serialize for Encoded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let properties = self.decode().map_err(S::Error::custom)?;
        properties.serialize(serializer)
    }
}

impl Known {
    /// Returns the present properties.
    pub(super) fn get(&self) -> Encoded {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }

    fn replace(&self, properties: Encoded) -> Encoded {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *known, properties)
    }
}

impl Published {
    /// Reads the properties of `object`. The caller announces them. `emitter` has the path of the object.
    ///
    /// # Errors
    ///
    /// Fails if the properties cannot be read.
    pub(super) async fn read(
        object: MachineObject,
        emitter: SignalEmitter<'static>,
    ) -> zbus::Result<Self> {
        let seen = object.snapshot();
        let known = Encoded::new(&properties(&object, &emitter).await?)?;
        let known = Known(Arc::new(RwLock::new(known)));
        Ok(Self {
            object,
            emitter,
            known,
            seen,
        })
    }

    /// Continues with the same machine on another connection.
    pub(super) fn move_to(&mut self, object: MachineObject, emitter: SignalEmitter<'static>) {
        self.object = object;
        self.emitter = emitter;
    }

    /// Returns the emitter of the signals of the machine.
    pub(super) fn emitter(&self) -> &SignalEmitter<'static> {
        &self.emitter
    }

    /// Returns the properties as clients know them.
    pub(super) fn known(&self) -> &Known {
        &self.known
    }

    /// Emits one `PropertiesChanged` with all that clients do not know, and then `VcpuChanged` with the vCPUs about
    /// which they do not know all.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub(super) async fn tell_changes(&mut self) -> zbus::Result<()> {
        // Read first, so that no vCPU is reported before the properties that changed with it.
        let now = self.object.snapshot();
        self.tell_properties().await?;
        let changed = now.changed_vcpus(&self.seen);
        if !changed.is_empty() {
            let changed = changed.into_iter().map(VcpuId::get).collect();
            MachineObject::vcpu_changed(&self.emitter, changed).await?;
        }
        self.seen = now;
        Ok(())
    }

    async fn tell_properties(&self) -> zbus::Result<()> {
        let now = properties(&self.object, &self.emitter).await?;
        let known = self.known.get();
        let known = known.decode()?;
        let is_new =
            |(name, value): &(&String, &OwnedVariant)| known.get(name.as_str()) != Some(&***value);
        let changed: HashMap<&str, Variant<'_>> = now
            .iter()
            .filter(is_new)
            .map(|(name, value)| (name.as_str(), Variant::clone(value)))
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        // No reply after the signal may have what was before it.
        let before = self.known.replace(Encoded::new(&now)?);
        let interface = InterfaceName::from_static_str_unchecked(MACHINE_INTERFACE);
        Properties::properties_changed(&self.emitter, interface, changed, Cow::Borrowed(&[]))
            .await
            .inspect_err(|_| drop(self.known.replace(before)))
    }
}

async fn properties(
    object: &MachineObject,
    emitter: &SignalEmitter<'_>,
) -> zbus::Result<HashMap<String, OwnedVariant>> {
    let connection = emitter.connection();
    let server = connection.object_server();
    Ok(object.get_all(server, connection, None, emitter).await?)
}
