//! Owns the window: the split view, and the page without machines. It must not decide what they show.

use std::cell::RefCell;
use std::rc::Rc;

use adw::prelude::*;
use gtk::gio;

use super::Send;
use super::page::{Openers, Page};
use super::sidebar::Sidebar;
use super::status::Status;
use super::toasts::Toasts;
use crate::model::fleet::View;

/// The window and its parts.
pub(super) struct Window {
    pub(super) window: adw::ApplicationWindow,
    pub(super) toasts: Toasts,
    /// The widget that had the focus before the machines could not be shown.
    focused: RefCell<Option<gtk::Widget>>,
    stack: gtk::Stack,
    leaflet: adw::Leaflet,
    pub(super) sidebar: Rc<Sidebar>,
    pub(super) page: Page,
    status: Status,
}

impl Window {
    pub(super) fn new(application: &adw::Application, send: &Send, openers: Openers) -> Self {
        let sidebar = Rc::new(Sidebar::new(&menu_button()));
        let page = Page::new(send, openers);
        let status = Status::new(send, &menu_button());
        let leaflet = split(&sidebar, &page);
        let stack = gtk::Stack::new();
        stack.add_child(status.widget());
        stack.add_child(&leaflet);
        let toasts = Toasts::new(&stack);
        let window = adw::ApplicationWindow::builder()
            .application(application)
            .title("Virtual CPUs")
            .default_width(960)
            .default_height(720)
            .width_request(360)
            .height_request(294)
            .content(toasts.widget())
            .build();
        let shortcuts = gtk::Builder::from_string(include_str!("shortcuts.ui"));
        let shortcuts: Option<gtk::ShortcutsWindow> = shortcuts.object("shortcuts");
        window.set_help_overlay(shortcuts.as_ref());
        Self {
            window,
            toasts,
            focused: RefCell::default(),
            stack,
            leaflet,
            sidebar,
            page,
            status,
        }
    }

    /// Shows the machines, or the page without machines. Without machines, no key can change one.
    pub(super) fn show_view(&self, view: &View) {
        let (was_shown, is_shown) = (self.leaflet.is_sensitive(), *view == View::Machines);
        if !is_shown {
            self.status.show(view);
        }
        if was_shown == is_shown {
            return;
        }
        if was_shown {
            *self.focused.borrow_mut() = gtk::prelude::GtkWindowExt::focus(&self.window);
        }
        self.leaflet.set_sensitive(is_shown);
        // Assistive technologies do not know which page a stack shows. An invisible page has no objects for them.
        let (leaflet, status) = (self.leaflet.upcast_ref(), self.status.widget().upcast_ref());
        let (new, old): (&gtk::Widget, &gtk::Widget) = if is_shown {
            (leaflet, status)
        } else {
            (status, leaflet)
        };
        new.set_visible(true);
        self.stack.set_visible_child(new);
        old.set_visible(false);
        if is_shown && let Some(widget) = self.focused.take() {
            widget.grab_focus();
        }
    }

    /// Shows the page of the machine in a narrow window.
    pub(super) fn open_page(&self) {
        self.leaflet.navigate(adw::NavigationDirection::Forward);
    }

    /// Shows the list of machines in a narrow window.
    pub(super) fn open_list(&self) {
        self.leaflet.navigate(adw::NavigationDirection::Back);
    }

    /// Opens the search for a machine, also in a narrow window.
    pub(super) fn open_search(&self) {
        self.open_list();
        self.sidebar.open_search();
    }

    /// Returns whether the user sees the page of the machine, which a narrow window shows instead of the list.
    pub(super) fn is_page_shown(&self) -> bool {
        let page: &gtk::Widget = self.page.widget().upcast_ref();
        !self.leaflet.is_folded() || self.leaflet.visible_child().as_ref() == Some(page)
    }

    /// Closes the dialogs of the window, without a change.
    pub(super) fn close_dialogs(&self) {
        for dialog in gtk::Window::list_toplevels() {
            if let Some(dialog) = dialog.downcast_ref::<adw::MessageDialog>() {
                dialog.close();
            }
        }
    }
}

/// Returns the split view: side by side, or one of both in a narrow window.
fn split(sidebar: &Sidebar, page: &Page) -> adw::Leaflet {
    let leaflet = adw::Leaflet::builder().can_navigate_back(true).build();
    leaflet.append(sidebar.widget());
    let separator = gtk::Separator::new(gtk::Orientation::Vertical);
    leaflet.append(&separator).set_navigatable(false);
    leaflet.append(page.widget());
    let back = gtk::Button::from_icon_name("go-previous-symbolic");
    back.set_tooltip_text(Some("Back to the machines"));
    // A tooltip is not a name for assistive technologies.
    back.update_property(&[gtk::accessible::Property::Label("Back to the machines")]);
    back.set_action_name(Some("win.back"));
    page.header().pack_start(&back);
    leaflet
        .bind_property("folded", &back, "visible")
        .sync_create()
        .build();
    for (header, property) in [
        (sidebar.header(), "show-end-title-buttons"),
        (page.header(), "show-start-title-buttons"),
    ] {
        leaflet
            .bind_property("folded", header, property)
            .sync_create()
            .build();
    }
    leaflet
}

fn menu_button() -> gtk::MenuButton {
    let menu = gio::Menu::new();
    menu.append(Some("_Refresh"), Some("win.refresh"));
    menu.append(Some("_Keyboard Shortcuts"), Some("win.show-help-overlay"));
    menu.append(Some("_About Virtual CPUs"), Some("app.about"));
    let button = gtk::MenuButton::builder()
        .icon_name("open-menu-symbolic")
        .menu_model(&menu)
        .tooltip_text("Main Menu")
        .primary(true)
        .build();
    button.update_property(&[gtk::accessible::Property::Label("Main Menu")]);
    button
}
