//! Owns the group of automatic scaling: the last decision, and the buttons that begin and end it. It must not decide.

use std::rc::Rc;

use adw::prelude::*;
use gtk::Orientation;

use super::rows;
use crate::model::scaling::Scaling;

/// The group.
pub(super) struct ScalingGroup {
    group: adw::PreferencesGroup,
    row: adw::ActionRow,
    change: gtk::Button,
    stop: gtk::Button,
}

impl ScalingGroup {
    /// `change` opens the settings, and `stop` ends the scaling.
    pub(super) fn new(change: Rc<dyn Fn()>, stop: Rc<dyn Fn()>) -> Self {
        let row = rows::row("");
        let button = |label: &str, clicked: Rc<dyn Fn()>| {
            let button = rows::button(label);
            button.connect_clicked(move |_| clicked());
            button
        };
        let (change, stop) = (button("_Turn On…", change), button("Turn _Off", stop));
        let end = gtk::Box::new(Orientation::Horizontal, 6);
        end.set_margin_start(6);
        end.append(&stop);
        end.append(&change);
        row.add_suffix(&end);
        let group = adw::PreferencesGroup::builder()
            .title("Automatic Scaling")
            .build();
        group.add(&row);
        Self {
            group,
            row,
            change,
            stop,
        }
    }

    pub(super) fn widget(&self) -> &adw::PreferencesGroup {
        &self.group
    }

    /// Shows the scaling of a machine.
    pub(super) fn show(&self, scaling: &Scaling) {
        let (title, subtitle) = scaling.text();
        rows::set_title(&self.row, &title);
        rows::set_subtitle(&self.row, &subtitle);
        let is_on = scaling.decision().is_some();
        if self.stop.has_focus() && !is_on {
            self.change.grab_focus();
        }
        self.stop.set_visible(is_on);
        self.change.set_sensitive(scaling.is_known());
        self.change
            .set_label(if is_on { "_Change…" } else { "_Turn On…" });
    }
}
