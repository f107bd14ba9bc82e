//! Owns the grid of the vCPUs of a machine. It must not know how a tile looks.

use std::cell::RefCell;
use std::rc::Rc;

use adw::prelude::*;

use super::tile::Tile;
use crate::model::machine::Machine;
use crate::model::numbers;
use crate::model::vcpu::State;

/// A machine with more vCPUs has small tiles, so that the groups below the grid are not far away.
const LARGE: usize = 48;

/// Opens the details of the vCPU with a number.
pub(super) type Open = Rc<dyn Fn(u32)>;

/// The grid.
pub(super) struct Grid {
    group: adw::PreferencesGroup,
    total: gtk::Label,
    flow: gtk::FlowBox,
    tiles: RefCell<Vec<Tile>>,
    open: Open,
}

impl Grid {
    pub(super) fn new(open: Open) -> Self {
        let total = gtk::Label::new(None);
        total.add_css_class("dim-label");
        let flow = gtk::FlowBox::builder()
            .homogeneous(true)
            .selection_mode(gtk::SelectionMode::None)
            .min_children_per_line(2)
            .build();
        flow.add_css_class("vcpu-grid");
        let group = adw::PreferencesGroup::builder()
            .title("vCPUs")
            .header_suffix(&total)
            .build();
        group.add(&flow);
        let tiles = RefCell::default();
        Self {
            group,
            total,
            flow,
            tiles,
            open,
        }
    }

    pub(super) fn widget(&self) -> &adw::PreferencesGroup {
        &self.group
    }

    /// Shows the vCPUs of a machine.
    pub(super) fn show(&self, machine: &Machine) {
        if self.tiles.borrow().len() != machine.vcpus.len() {
            self.fill(machine);
        }
        for (tile, vcpu) in self.tiles.borrow().iter().zip(&machine.vcpus) {
            tile.show(vcpu);
        }
        let count = |state: State| {
            let number = machine
                .vcpus
                .iter()
                .filter(|vcpu| vcpu.state == state)
                .count();
            (number > 0).then(|| format!("{number} {}", state.label().to_lowercase()))
        };
        let counts: Vec<String> = State::ALL.into_iter().filter_map(count).collect();
        self.group.set_description(Some(&counts.join(", ")));
        self.show_use(machine);
    }

    /// Shows the use of the vCPUs of a machine.
    pub(super) fn show_use(&self, machine: &Machine) {
        for (tile, vcpu) in self.tiles.borrow().iter().zip(&machine.vcpus) {
            tile.show_use(vcpu, &machine.usage);
        }
        let total = machine.usage.total();
        let total = total.map(|total| format!("{total:.2} host CPUs used"));
        self.total.set_label(&total.unwrap_or_default());
    }

    /// Replaces the tiles.
    fn fill(&self, machine: &Machine) {
        while let Some(child) = self.flow.first_child() {
            self.flow.remove(&child);
        }
        let is_large = machine.vcpus.len() > LARGE;
        let (per_line, space) = if is_large { (16, 6) } else { (8, 10) };
        self.flow.set_max_children_per_line(per_line);
        self.flow.set_row_spacing(space);
        self.flow.set_column_spacing(space);
        let tiles = machine.vcpus.iter().map(|vcpu| {
            let tile = Tile::new(vcpu.id, is_large);
            let (open, id) = (Rc::clone(&self.open), vcpu.id);
            tile.button().connect_clicked(move |_| open(id));
            self.flow.insert(tile.button(), -1);
            // The button has the focus, and not the cell around it.
            if let Some(cell) = tile.button().parent() {
                cell.set_focusable(false);
            }
            tile
        });
        *self.tiles.borrow_mut() = tiles.collect();
        let name = numbers::count(machine.vcpus.len());
        self.flow
            .update_property(&[gtk::accessible::Property::Label(&name)]);
    }
}
