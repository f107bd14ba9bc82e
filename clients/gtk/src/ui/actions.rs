//! Owns the actions and their keys. It must not know what an action does: the window passes that.

use adw::prelude::*;
use gtk::gio::ActionEntry;

/// The keys of each action. `shortcuts.ui` shows them.
const KEYS: [(&str, &[&str]); 15] = [
    (
        "win.more",
        &["<Control>plus", "<Control>KP_Add", "<Control>equal"],
    ),
    ("win.fewer", &["<Control>minus", "<Control>KP_Subtract"]),
    ("win.reset", &["<Control>0", "<Control>KP_0"]),
    ("win.apply", &["<Control>Return", "<Control>KP_Enter"]),
    ("win.limit", &["<Control>l"]),
    ("win.pin", &["<Control>p"]),
    ("win.scale", &["<Control>s"]),
    ("win.next", &["<Control>Page_Down"]),
    ("win.previous", &["<Control>Page_Up"]),
    ("win.back", &["<Alt>Left"]),
    ("win.search", &["<Control>f"]),
    ("win.refresh", &["<Control>r", "F5"]),
    ("win.show-help-overlay", &["<Control>question"]),
    ("window.close", &["<Control>w"]),
    ("app.quit", &["<Control>q"]),
];

/// Adds the actions of the application, and the keys of all actions.
pub(super) fn add_to_application(application: &adw::Application) {
    let quit = ActionEntry::builder("quit")
        .activate(|application: &adw::Application, _, _| application.quit());
    let about = ActionEntry::builder("about")
        .activate(|application: &adw::Application, _, _| open_about(application));
    application.add_action_entries([quit.build(), about.build()]);
    for (action, keys) in KEYS {
        application.set_accels_for_action(action, keys);
    }
}

/// The name of an action, and what it does.
pub(super) type Action = (&'static str, Box<dyn Fn()>);

/// Adds actions to a window.
pub(super) fn add_to_window(
    window: &adw::ApplicationWindow,
    actions: impl IntoIterator<Item = Action>,
) {
    for (name, perform) in actions {
        let entry =
            ActionEntry::builder(name).activate(move |_: &adw::ApplicationWindow, _, _| perform());
        window.add_action_entries([entry.build()]);
    }
}

fn open_about(application: &adw::Application) {
    let about = adw::AboutWindow::builder()
        .application_name("Virtual CPUs")
        .application_icon(crate::ID)
        .version(env!("CARGO_PKG_VERSION"))
        .developer_name("The vcpud maintainers")
        .license_type(gtk::License::Lgpl21)
        .comments("Adds and removes virtual CPUs of running QEMU machines with vcpud.")
        .modal(true)
        .build();
    about.set_transient_for(application.active_window().as_ref());
    about.present();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_of_shortcuts_has_each_action() {
        let shown = include_str!("shortcuts.ui");
        for (action, keys) in KEYS {
            let key = keys[0].replace('<', "&lt;").replace('>', "&gt;");
            assert!(shown.contains(&format!(">{key}<")), "{action}");
        }
    }
}
