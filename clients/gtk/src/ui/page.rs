//! Owns the page of the selected machine: the groups and their order. It must not know what the groups show.

use std::cell::RefCell;
use std::rc::Rc;

use adw::prelude::*;
use gtk::Orientation;

use super::Send;
use super::count::Count;
use super::details::Details;
use super::grid::{Grid, Open};
use super::placement::{Dialogs, Placement};
use super::scaling::ScalingGroup;
use crate::model::machine::Machine;

/// The functions that open dialogs.
pub(super) struct Openers {
    pub(super) vcpu: Open,
    pub(super) placement: Dialogs,
    pub(super) scaling: Rc<dyn Fn()>,
    pub(super) stop_scaling: Rc<dyn Fn()>,
}

/// The page.
pub(super) struct Page {
    content: gtk::Box,
    title: adw::WindowTitle,
    header: adw::HeaderBar,
    scrolled: gtk::ScrolledWindow,
    pub(super) count: Rc<Count>,
    grid: Grid,
    placement: Placement,
    scaling: ScalingGroup,
    details: Details,
    path: RefCell<String>,
}

impl Page {
    pub(super) fn new(send: &Send, openers: Openers) -> Self {
        let count = Count::new(send.clone());
        let grid = Grid::new(openers.vcpu);
        let placement = Placement::new(&openers.placement);
        let scaling = ScalingGroup::new(openers.scaling, openers.stop_scaling);
        let details = Details::new();
        let groups = gtk::Box::new(Orientation::Vertical, 24);
        let all = [
            count.widget(),
            grid.widget(),
            scaling.widget(),
            placement.widget(),
            details.widget(),
        ];
        for group in all {
            groups.append(group);
        }
        let (title, header, scrolled, content) = frame(&groups);
        let path = RefCell::default();
        Self {
            content,
            title,
            header,
            scrolled,
            count,
            grid,
            placement,
            scaling,
            details,
            path,
        }
    }

    pub(super) fn widget(&self) -> &gtk::Box {
        &self.content
    }

    pub(super) fn header(&self) -> &adw::HeaderBar {
        &self.header
    }

    /// Shows a machine.
    pub(super) fn show(&self, path: &str, machine: &Machine) {
        if *self.path.borrow() != path {
            path.clone_into(&mut self.path.borrow_mut());
            self.scrolled.vadjustment().set_value(0.0);
        }
        self.title.set_title(&machine.name());
        self.title.set_subtitle(&machine.summary());
        self.count.show(path, machine);
        self.grid.show(machine);
        self.placement.show(machine);
        self.scaling.show(&machine.scaling);
        self.details.show(machine);
    }

    /// Shows the use of the vCPUs.
    pub(super) fn show_use(&self, machine: &Machine) {
        self.grid.show_use(machine);
    }
}

/// Returns what is around the groups.
fn frame(
    groups: &gtk::Box,
) -> (
    adw::WindowTitle,
    adw::HeaderBar,
    gtk::ScrolledWindow,
    gtk::Box,
) {
    let clamp = adw::Clamp::builder()
        .maximum_size(760)
        .margin_top(24)
        .margin_bottom(24)
        .margin_start(12)
        .margin_end(12)
        .child(groups)
        .build();
    let scrolled = gtk::ScrolledWindow::builder()
        .hscrollbar_policy(gtk::PolicyType::Never)
        .vexpand(true)
        .child(&clamp)
        .build();
    let title = adw::WindowTitle::new("", "");
    let header = adw::HeaderBar::builder().title_widget(&title).build();
    let content = gtk::Box::new(Orientation::Vertical, 0);
    content.set_hexpand(true);
    content.append(&header);
    content.append(&scrolled);
    (title, header, scrolled, content)
}
