//! Owns the kinds of rows that several groups use. It must not know what the rows show.

use adw::prelude::*;
use gtk::Align;

/// Returns a row whose texts are no markup. Long texts wrap.
pub(super) fn row(title: &str) -> adw::ActionRow {
    let row = adw::ActionRow::builder()
        .use_markup(false)
        .title(title)
        .build();
    row.set_title_lines(0);
    row.set_subtitle_lines(0);
    row
}

/// Returns a row that opens something.
pub(super) fn opening(title: &str, open: impl Fn() + 'static) -> adw::ActionRow {
    let row = row(title);
    row.set_activatable(true);
    row.add_suffix(&gtk::Image::from_icon_name("go-next-symbolic"));
    row.connect_activated(move |_| open());
    row
}

/// Returns a row with a warning.
pub(super) fn warning(title: &str) -> adw::ActionRow {
    let row = row(title);
    let icon = gtk::Image::from_icon_name("dialog-warning-symbolic");
    icon.add_css_class("warning");
    row.add_prefix(&icon);
    row
}

/// Returns a button for the end of a row.
pub(super) fn button(label: &str) -> gtk::Button {
    gtk::Button::builder()
        .label(label)
        .use_underline(true)
        .valign(Align::Center)
        .build()
}

/// Sets a subtitle without an event for assistive technologies if it is the same.
pub(super) fn set_subtitle(row: &adw::ActionRow, text: &str) {
    if row.subtitle().is_none_or(|old| old != text) {
        row.set_subtitle(text);
    }
}

/// Sets a title in the same way.
pub(super) fn set_title(row: &adw::ActionRow, text: &str) {
    if row.title() != text {
        row.set_title(text);
    }
}
