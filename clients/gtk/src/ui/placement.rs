//! Owns the group with the placement of the vCPUs on the host: host CPUs, pins, the limit of CPU time, and what is
//! missing. It must not check values.

use std::cell::RefCell;
use std::rc::Rc;

use adw::prelude::*;

use super::rows;
use crate::model::machine::Machine;
use crate::model::sentence::sentence;
use crate::model::vcpu::Vcpu;

/// The dialogs that the rows open.
pub(super) struct Dialogs {
    pub(super) default: Rc<dyn Fn()>,
    pub(super) pins: Rc<dyn Fn()>,
    pub(super) limit: Rc<dyn Fn()>,
}

/// The group.
pub(super) struct Placement {
    group: adw::PreferencesGroup,
    affinity: adw::ActionRow,
    pins: adw::ActionRow,
    limit: adw::ActionRow,
    errors: adw::ActionRow,
    /// The texts of the rows, which are compared to save work.
    last: RefCell<Vec<String>>,
}

impl Placement {
    pub(super) fn new(dialogs: &Dialogs) -> Self {
        let open = |title: &str, dialog: &Rc<dyn Fn()>| {
            let dialog = Rc::clone(dialog);
            rows::opening(title, move || dialog())
        };
        let affinity = open("Host CPUs", &dialogs.default);
        let pins = open("Pins", &dialogs.pins);
        let limit = open("Limit of CPU time", &dialogs.limit);
        let errors = rows::warning("Parts of the placement are missing");
        let group = adw::PreferencesGroup::builder().title("Placement").build();
        for row in [&errors, &affinity, &pins, &limit] {
            group.add(row);
        }
        let last = RefCell::default();
        Self {
            group,
            affinity,
            pins,
            limit,
            errors,
            last,
        }
    }

    pub(super) fn widget(&self) -> &adw::PreferencesGroup {
        &self.group
    }

    /// Shows the placement of a machine.
    pub(super) fn show(&self, machine: &Machine) {
        let affinity = match (machine.affinity(), machine.effective_affinity()) {
            (wanted, _) if !wanted.is_empty() => {
                format!("vCPUs without a pin run on the host CPUs {wanted}")
            }
            (_, actual) if !actual.is_empty() => {
                format!("vCPUs without a pin run on the host CPUs {actual}")
            }
            _ => "vCPUs without a pin run on all host CPUs".to_owned(),
        };
        let limit = if machine.has_control_groups() {
            machine.bandwidth().text()
        } else {
            "Not possible, because the machine has no control groups of its own".to_owned()
        };
        let errors: Vec<String> = machine
            .placement_errors()
            .iter()
            .map(|text| sentence(text))
            .collect();
        let texts = vec![affinity, pins(&machine.vcpus), limit, errors.join("\n")];
        if *self.last.borrow() == texts {
            return;
        }
        let rows = [&self.affinity, &self.pins, &self.limit, &self.errors];
        for (row, text) in rows.into_iter().zip(&texts) {
            rows::set_subtitle(row, text);
        }
        self.errors.set_visible(!texts[3].is_empty());
        self.limit.set_sensitive(machine.has_control_groups());
        *self.last.borrow_mut() = texts;
    }
}

/// Returns the pins as text, such as `vCPU 2 on 4-5`.
fn pins(vcpus: &[Vcpu]) -> String {
    let pinned = vcpus.iter().filter(|vcpu| !vcpu.pin.is_empty());
    let pins: Vec<String> = pinned
        .map(|vcpu| format!("vCPU {} on {}", vcpu.id, vcpu.pin))
        .collect();
    if pins.is_empty() {
        "No vCPU has a pin of its own".to_owned()
    } else {
        pins.join(", ")
    }
}
