//! Owns the list of machines. It must not know what the page of a machine shows.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use adw::prelude::*;
use gtk::{Align, Orientation};

use super::rows;
use super::search::{Search, shown_rows};
use crate::model::fleet::Fleet;
use crate::model::machine::Machine;
use crate::model::message::Path;

/// The list, and the header above it.
pub(super) struct Sidebar {
    content: gtk::Box,
    header: adw::HeaderBar,
    list: gtk::ListBox,
    search: Search,
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
        let search = Search::new(&list);
        header.pack_start(search.button());
        let content = gtk::Box::new(Orientation::Vertical, 0);
        content.set_width_request(260);
        // The entry of the search would expand it.
        content.set_hexpand(false);
        content.append(&header);
        content.append(search.bar());
        content.append(&scrolled);
        Self {
            content,
            header,
            list,
            search,
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

    /// Opens the search for a machine.
    pub(super) fn open_search(&self) {
        self.search.open();
    }

    /// Returns the machine some rows below a machine, or above it. If the search hides that machine, this is the first
    /// one.
    pub(super) fn neighbour(&self, path: &str, step: isize) -> Option<Path> {
        let shown: Vec<Path> = shown_rows(&self.list)
            .filter_map(|row| self.path(&row))
            .collect();
        let place = shown.iter().position(|shown| shown == path);
        let next = place.map_or(Some(0), |place| place.checked_add_signed(step))?;
        shown.get(next).cloned()
    }

    fn path(&self, row: &gtk::ListBoxRow) -> Option<Path> {
        let index = usize::try_from(row.index()).ok()?;
        self.paths.borrow().get(index).cloned()
    }

    /// Shows all machines.
    pub(super) fn show(&self, fleet: &Fleet, selected: Option<&str>) {
        let paths = fleet.paths();
        if *self.paths.borrow() != paths {
            self.fill(&paths);
        }
        for path in &paths {
            if let Some(machine) = fleet.get(path) {
                self.show_machine(path, machine);
            }
        }
        self.select(selected);
    }

    /// Shows one machine.
    pub(super) fn show_machine(&self, path: &str, machine: &Machine) {
        let rows = self.rows.borrow();
        let Some(Row { row, count }) = rows.get(path) else {
            return;
        };
        rows::set_title(row, &machine.name());
        self.search.apply(row);
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

    /// Adds and removes rows. Other rows stay, so that the focus stays. The name of a machine, and thus its place among
    /// others, does not change.
    fn fill(&self, paths: &[Path]) {
        let mut rows = self.rows.borrow_mut();
        let old = std::mem::take(&mut *rows).into_iter();
        let (stay, gone): (HashMap<Path, Row>, HashMap<Path, Row>) =
            old.partition(|(path, _)| paths.contains(path));
        *rows = stay;
        for row in gone.values() {
            self.list.remove(&row.row);
        }
        for (place, path) in (0..).zip(paths) {
            rows.entry(path.clone()).or_insert_with(|| {
                let row = Row::new();
                self.list.insert(&row.row, place);
                row
            });
        }
        drop(rows);
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
