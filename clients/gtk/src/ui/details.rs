//! Owns the group with facts about QEMU. It must not have anything that changes the machine.

use adw::prelude::*;

use super::rows;
use crate::model::machine::Machine;

/// The group.
pub(super) struct Details {
    group: adw::PreferencesGroup,
    version: adw::ActionRow,
}

impl Details {
    pub(super) fn new() -> Self {
        let version = rows::row("");
        let group = adw::PreferencesGroup::builder()
            .title("Virtual Machine")
            .build();
        group.add(&version);
        Self { group, version }
    }

    pub(super) fn widget(&self) -> &adw::PreferencesGroup {
        &self.group
    }

    pub(super) fn show(&self, machine: &Machine) {
        rows::set_title(&self.version, &machine.qemu());
        rows::set_subtitle(&self.version, &machine.process());
    }
}
