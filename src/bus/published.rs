//! A machine that is on the bus, and its properties as clients know them. The publisher owns it.

use std::borrow::Cow;
use std::collections::HashMap;

use zbus::fdo::Properties;
use zbus::names::InterfaceName;
use zbus::object_server::{Interface, SignalEmitter};
use zbus::wire::serialized::{Context, Data};
use zbus::wire::{NATIVE_ENDIAN, to_bytes};
use zbus::{OwnedVariant, Variant};

use super::machine::MachineObject;
use crate::names::MACHINE_INTERFACE;

/// A machine that is on the bus.
#[derive(Debug)]
pub(super) struct Published {
    object: MachineObject,
    emitter: SignalEmitter<'static>,
    /// The properties as clients know them. Encoded, because a map takes five times as much memory.
    known: Data<'static, 'static>,
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
        let known = encode(&properties(&object, &emitter).await?)?;
        Ok(Self {
            object,
            emitter,
            known,
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
    ///
    /// # Errors
    ///
    /// Those of the encoding.
    pub(super) fn known(&self) -> zbus::Result<HashMap<&str, Variant<'_>>> {
        Ok(self.known.deserialize()?.0)
    }

    /// Emits one `PropertiesChanged` with all that clients do not know.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub(super) async fn tell_changes(&mut self) -> zbus::Result<()> {
        let now = properties(&self.object, &self.emitter).await?;
        let known = self.known()?;
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
        let interface = InterfaceName::from_static_str_unchecked(MACHINE_INTERFACE);
        Properties::properties_changed(&self.emitter, interface, changed, Cow::Borrowed(&[]))
            .await?;
        self.known = encode(&now)?;
        Ok(())
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

fn encode(properties: &HashMap<String, OwnedVariant>) -> zbus::Result<Data<'static, 'static>> {
    to_bytes(Context::new(NATIVE_ENDIAN, 0), properties)
}
