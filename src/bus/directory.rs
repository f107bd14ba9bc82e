//! The content of the bus: the machines, and the errors of the configuration. The publisher writes it,
//! and methods read it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::published::{Encoded, Known};
use crate::machine::Handle;
use crate::names::MachineName;

/// The machines that are on the bus, by name, and the errors in the configuration.
#[derive(Clone, Debug, Default)]
pub struct Directory(Arc<RwLock<Content>>);

#[derive(Debug, Default)]
struct Content {
    machines: BTreeMap<MachineName, (Handle, Known)>,
    problems: Vec<String>,
}

impl Directory {
    /// All machines, by name.
    pub fn all(&self) -> Vec<Handle> {
        self.read(|content| {
            content
                .machines
                .values()
                .map(|(handle, _)| handle.clone())
                .collect()
        })
    }

    /// All machines, with the properties that clients know of them.
    pub(super) fn known(&self) -> Vec<(MachineName, Encoded)> {
        let known = |(name, (_, known)): (&MachineName, &(_, Known))| (name.clone(), known.get());
        self.read(|content| content.machines.iter().map(known).collect())
    }

    /// The machine of this name.
    pub fn get(&self, name: &str) -> Option<Handle> {
        self.read(|content| content.machines.get(name).map(|(handle, _)| handle.clone()))
    }

    /// The errors of the configuration.
    pub fn problems(&self) -> Vec<String> {
        self.read(|content| content.problems.clone())
    }

    pub(super) fn insert(&self, handle: Handle, known: Known) {
        let name = handle.name().clone();
        self.write(|content| content.machines.insert(name, (handle, known)));
    }

    pub(super) fn remove(&self, name: &MachineName) {
        self.write(|content| content.machines.remove(name));
    }

    pub(super) fn set_problems(&self, problems: Vec<String>) {
        self.write(|content| content.problems = problems);
    }

    fn read<T>(&self, look: impl FnOnce(&Content) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Content) -> T) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }
}
