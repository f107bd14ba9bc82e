//! Owns the search for a machine: its button, its entry, and which rows of the list are shown. It must not know machines.

use adw::prelude::*;
use gtk::Align;

const TITLE: &str = "Search machines";

/// The search above a list.
pub(super) struct Search {
    bar: gtk::SearchBar,
    entry: gtk::SearchEntry,
    button: gtk::ToggleButton,
}

impl Search {
    /// Adds a search by title to a list of rows.
    pub(super) fn new(list: &gtk::ListBox) -> Self {
        let entry = gtk::SearchEntry::builder().hexpand(true).build();
        entry.update_property(&[gtk::accessible::Property::Label(TITLE)]);
        let bar = gtk::SearchBar::builder().child(&entry).build();
        bar.connect_entry(&entry);
        // Typing in the list starts the search.
        bar.set_key_capture_widget(Some(list));
        let button = gtk::ToggleButton::builder()
            .icon_name("system-search-symbolic")
            .tooltip_text(TITLE)
            .build();
        button.update_property(&[gtk::accessible::Property::Label(TITLE)]);
        button
            .bind_property("active", &bar, "search-mode-enabled")
            .bidirectional()
            .build();
        connect(&entry, list);
        Self { bar, entry, button }
    }

    pub(super) fn bar(&self) -> &gtk::SearchBar {
        &self.bar
    }

    pub(super) fn button(&self) -> &gtk::ToggleButton {
        &self.button
    }

    /// Shows a row if the search finds its title, and otherwise hides it.
    pub(super) fn apply(&self, row: &adw::ActionRow) {
        show_row(row, &self.entry.text());
    }

    /// Shows the entry, and moves the focus there.
    pub(super) fn open(&self) {
        self.bar.set_search_mode(true);
        self.entry.grab_focus();
    }
}

/// Follows the text of the entry. Enter opens the first row that it finds.
fn connect(entry: &gtk::SearchEntry, list: &gtk::ListBox) {
    let nothing = gtk::Label::builder()
        .label("No machine has this name")
        .wrap(true)
        .valign(Align::Start)
        .build();
    nothing.add_css_class("dim-label");
    list.set_placeholder(Some(&nothing));
    let changed = list.clone();
    entry.connect_search_changed(move |entry| show_rows(&changed, &entry.text()));
    let list = list.clone();
    entry.connect_activate(move |entry| {
        // The entry reports a change with a delay.
        show_rows(&list, &entry.text());
        if let Some(row) = shown_rows(&list).next() {
            list.select_row(Some(&row));
            row.activate();
        }
    });
}

/// Shows the rows whose titles contain a text.
fn show_rows(list: &gtk::ListBox, text: &str) {
    for row in rows(list).filter_map(|row| row.downcast::<adw::ActionRow>().ok()) {
        show_row(&row, text);
    }
}

/// Shows or hides a row. Assistive technologies would see a row that a filter of the list hides.
fn show_row(row: &adw::ActionRow, text: &str) {
    row.set_visible(is_match(&row.title(), text));
}

/// Returns the rows that the search shows.
pub(super) fn shown_rows(list: &gtk::ListBox) -> impl Iterator<Item = gtk::ListBoxRow> {
    rows(list).filter(WidgetExt::is_visible)
}

fn rows(list: &gtk::ListBox) -> impl Iterator<Item = gtk::ListBoxRow> {
    (0..).map_while(|index| list.row_at_index(index))
}

/// Returns whether a search for a text, in any case, finds a name.
fn is_match(name: &str, text: &str) -> bool {
    name.to_lowercase().contains(&text.trim().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_ignores_case_and_spaces_around_the_text() {
        assert!(is_match("Web-1", " web "));
        assert!(is_match("web", ""));
        assert!(!is_match("web", "db"));
        assert!(!is_match("", "db"));
    }
}
