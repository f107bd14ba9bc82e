//! Owns the list of machines. It must not know what the page of a machine shows.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use adw::prelude::*;
use gtk::{Align, Orientation};

use super::rows;
use crate::model::fleet::Fleet;
use crate::model::machine::Machine;
use crate::model::message::Path;

/// The list, and the header above it.
pub(super) struct Sidebar {
    content: gtk::Box,
    header: adw::HeaderBar,
    list: gtk::ListBox,
    rows: RefCell<HashMap<Path, Row>>,
    /// The order of the rows.
    paths: RefCell<Vec<Path>>,
    /// The program, and not the user, changes the selection.
    is_setting: Cell<bool>,
}

/// The row of a machine.
struct Row {
    row: adw::ActionRow,
    count: gtk::Label,
}

impl Sidebar {
    pub(super) fn new(menu: &gtk::MenuButton) -> Self {
        let list = gtk::ListBox::builder()
            .selection_mode(gtk::SelectionMode::Single)
            .build();
        list.add_css_class("navigation-sidebar");
        list.update_property(&[gtk::accessible::Property::Label("Machines")]);
        let scrolled = gtk::ScrolledWindow::builder()
            .hscrollbar_policy(gtk::PolicyType::Never)
            .vexpand(true)
            .child(&list)
            .build();
        let title = adw::WindowTitle::new("Machines", "");
        let header = adw::HeaderBar::builder().title_widget(&title).build();
        header.pack_end(menu);
        let content = gtk::Box::new(Orientation::Vertical, 0);
        content.set_width_request(260);
        content.append(&header);
        content.append(&scrolled);
        Self {
            content,
            header,
            list,
            rows: RefCell::default(),
            paths: RefCell::default(),
            is_setting: Cell::new(false),
        }
    }

    pub(super) fn widget(&self) -> &gtk::Box {
        &self.content
    }

    pub(super) fn header(&self) -> &adw::HeaderBar {
        &self.header
    }

    /// Calls `selected` when the user selects a machine, and `opened` when the user activates it.
    pub(super) fn connect(
        self: &Rc<Self>,
        selected: impl Fn(Path) + 'static,
        opened: impl Fn() + 'static,
    ) {
        let this = Rc::downgrade(self);
        self.list.connect_row_selected(move |_, row| {
            let this = this.upgrade().filter(|this| !this.is_setting.get());
            if let Some(path) = this.zip(row).and_then(|(this, row)| this.path(row)) {
                selected(path);
            }
        });
        self.list.connect_row_activated(move |_, _| opened());
    }

    fn path(&self, row: &gtk::ListBoxRow) -> Option<Path> {
        let index = usize::try_from(row.index()).ok()?;
        self.paths.borrow().get(index).cloned()
    }

    /// Shows all machines.
    pub(super) fn show(&self, fleet: &Fleet, selected: Option<&str>) {
        let paths = fleet.paths();
        let has_focus = self.list.focus_child().is_some();
        if *self.paths.borrow() != paths {
            self.fill(&paths);
        }
        for path in &paths {
            if let Some(machine) = fleet.get(path) {
                self.show_machine(path, machine);
            }
        }
        self.select(selected);
        // The new rows have no focus.
        if let Some(row) = self.list.selected_row().filter(|_| has_focus) {
            row.grab_focus();
        }
    }

    /// Shows one machine.
    pub(super) fn show_machine(&self, path: &str, machine: &Machine) {
        let rows = self.rows.borrow();
        let Some(Row { row, count }) = rows.get(path) else {
            return;
        };
        rows::set_title(row, &machine.name());
        rows::set_subtitle(row, &machine.summary());
        count.set_label(&format!("{} of {}", machine.present(), machine.max()));
        let text = format!(
            "{}, {} of {} vCPUs",
            machine.summary(),
            machine.present(),
            machine.max()
        );
        row.update_property(&[gtk::accessible::Property::Description(&text)]);
    }

    /// Marks the selected machine.
    pub(super) fn select(&self, selected: Option<&str>) {
        let rows = self.rows.borrow();
        let row = selected.and_then(|path| rows.get(path)).map(|row| &row.row);
        self.is_setting.set(true);
        self.list.select_row(row);
        self.is_setting.set(false);
    }

    fn fill(&self, paths: &[Path]) {
        let mut old = std::mem::take(&mut *self.rows.borrow_mut());
        while let Some(child) = self.list.first_child() {
            self.list.remove(&child);
        }
        for path in paths {
            let row = old.remove(path).unwrap_or_else(Row::new);
            self.list.append(&row.row);
            self.rows.borrow_mut().insert(path.clone(), row);
        }
        *self.paths.borrow_mut() = paths.to_vec();
    }
}

impl Row {
    fn new() -> Self {
        let row = rows::row("");
        row.set_activatable(true);
        row.set_title_lines(1);
        row.set_subtitle_lines(1);
        let count = gtk::Label::builder()
            .valign(Align::Center)
            .tooltip_text("Present and possible vCPUs")
            .build();
        count.add_css_class("dim-label");
        count.add_css_class("machine-count");
        row.add_suffix(&count);
        Self { row, count }
    }
}
