//! The machines that are on the bus. The publisher writes it, methods read it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::machine::Handle;
use crate::names::MachineName;

/// The machines that are on the bus, by name.
#[derive(Clone, Debug, Default)]
pub struct Directory(Arc<RwLock<BTreeMap<MachineName, Handle>>>);

impl Directory {
    /// All machines, by name.
    pub fn all(&self) -> Vec<Handle> {
        self.read(|machines| machines.values().cloned().collect())
    }

    /// The machine of this name.
    pub fn get(&self, name: &str) -> Option<Handle> {
        self.read(|machines| machines.get(name).cloned())
    }

    pub(super) fn insert(&self, handle: Handle) {
        let mut machines = self.0.write().unwrap_or_else(PoisonError::into_inner);
        machines.insert(handle.name().clone(), handle);
    }

    pub(super) fn remove(&self, name: &MachineName) {
        let mut machines = self.0.write().unwrap_or_else(PoisonError::into_inner);
        machines.remove(name);
    }

    fn read<T>(&self, look: impl FnOnce(&BTreeMap<MachineName, Handle>) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}
