//! Owns the page without machines: connecting, no machines, and the reasons why none can be shown. It must not connect.

use adw::prelude::*;
use gtk::glib::markup_escape_text;
use gtk::{Align, Orientation};

use super::Send;
use crate::model::fleet::View;
use crate::model::message::{Command, Loss};

/// The page.
pub(super) struct Status {
    content: gtk::Box,
    page: adw::StatusPage,
    spinner: gtk::Spinner,
    again: gtk::Button,
}

impl Status {
    pub(super) fn new(send: &Send, menu: &gtk::MenuButton) -> Self {
        let again = gtk::Button::builder()
            .label("_Try Again")
            .use_underline(true)
            .halign(Align::Center)
            .build();
        again.add_css_class("pill");
        again.add_css_class("suggested-action");
        let send = send.clone();
        again.connect_clicked(move |_| send(Command::Connect));
        let spinner = gtk::Spinner::builder()
            .width_request(32)
            .height_request(32)
            .build();
        let below = gtk::Box::new(Orientation::Vertical, 12);
        below.append(&spinner);
        below.append(&again);
        let page = adw::StatusPage::builder()
            .vexpand(true)
            .child(&below)
            .build();
        let header = adw::HeaderBar::new();
        header.add_css_class("flat");
        header.pack_end(menu);
        let content = gtk::Box::new(Orientation::Vertical, 0);
        content.append(&header);
        content.append(&page);
        Self {
            content,
            page,
            spinner,
            again,
        }
    }

    pub(super) fn widget(&self) -> &gtk::Box {
        &self.content
    }

    /// Shows a view without machines.
    pub(super) fn show(&self, view: &View) {
        let (icon, title, text, advice) = texts(view);
        self.page.set_icon_name(icon);
        self.page.set_title(title);
        let text = [text, advice.to_owned()]
            .into_iter()
            .filter(|part| !part.is_empty());
        let text: Vec<String> = text
            .map(|part| markup_escape_text(&part).to_string())
            .collect();
        self.page.set_description(Some(&text.join("\n\n")));
        let is_connecting = matches!(view, View::Connecting);
        self.spinner.set_visible(is_connecting);
        self.spinner.set_spinning(is_connecting);
        let can_try = matches!(view, View::Lost(loss) if *loss != Loss::Silent);
        self.again.set_visible(can_try);
    }
}

/// Returns the icon, the title, the text and the advice.
fn texts(view: &View) -> (Option<&'static str>, &'static str, String, &'static str) {
    let none = String::new();
    match view {
        View::Connecting | View::Machines => (None, "Connecting to vcpud", none, ""),
        View::Empty => (
            Some("computer-symbolic"),
            "No Machines",
            none,
            "Start QEMU with a QMP socket in /run/vcpud/qmp, or register a running QEMU with \
             “vcpuctl register”. Its machine appears here at once.",
        ),
        View::Lost(Loss::Bus(text)) => (
            Some("network-offline-symbolic"),
            "No Connection to the System Bus",
            text.clone(),
            "The application tries to connect every 5 seconds.",
        ),
        View::Lost(Loss::Service(text)) => (
            Some("dialog-warning-symbolic"),
            "vcpud Is Not Running",
            text.clone(),
            "Check that vcpud is installed. “systemctl status vcpud” prints the reason.",
        ),
        View::Lost(Loss::Refused(text)) => (
            Some("dialog-warning-symbolic"),
            "vcpud Does Not List the Machines",
            text.clone(),
            "“journalctl -u vcpud” prints its messages.",
        ),
        View::Lost(Loss::Silent) => (
            Some("dialog-warning-symbolic"),
            "vcpud Does Not Answer",
            "The window shows the machines again as soon as vcpud answers.".to_owned(),
            "“journalctl -u vcpud” prints its messages.",
        ),
        View::Lost(Loss::Denied) => (
            Some("changes-prevent-symbolic"),
            "Access Denied",
            none,
            "The policy of the system bus does not allow you to call vcpud. An administrator can \
             change the policy.",
        ),
    }
}
