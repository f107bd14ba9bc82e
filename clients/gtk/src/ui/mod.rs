//! Owns the widgets. They show what the model knows and send commands. They must not call D-Bus.

mod actions;
mod app;
mod count;
mod details;
mod dialogs;
mod grid;
mod opener;
mod page;
mod placement;
mod pulse;
mod rows;
mod scaling;
mod search;
mod sidebar;
mod sparkline;
mod status;
mod tile;
mod toasts;
mod window;

use std::rc::Rc;

use gtk::gdk::Display;
use gtk::{CssProvider, STYLE_PROVIDER_PRIORITY_APPLICATION};

use crate::model::message::Command;

pub(crate) use app::open;

/// Sends a command to the service.
type Send = Rc<dyn Fn(Command)>;

/// Prepares what all windows share.
pub(crate) fn start(application: &adw::Application) {
    let provider = CssProvider::new();
    provider.load_from_data(include_str!("style.css"));
    if let Some(display) = Display::default() {
        gtk::style_context_add_provider_for_display(
            &display,
            &provider,
            STYLE_PROVIDER_PRIORITY_APPLICATION,
        );
    }
    gtk::Window::set_default_icon_name(crate::ID);
    actions::add_to_application(application);
}
