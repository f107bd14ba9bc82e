//! Owns the tile of one vCPU: its number, state and use. It must not know other vCPUs.

use std::cell::{Cell, RefCell};

use gtk::prelude::*;
use gtk::{Align, Orientation};

use super::sparkline::Sparkline;
use crate::model::usage::Usage;
use crate::model::vcpu::{State, Vcpu};

/// A button with the number, the state and the use of a vCPU.
pub(super) struct Tile {
    button: gtk::Button,
    state: gtk::Label,
    used: gtk::Label,
    line: Sparkline,
    is_small: bool,
    shown: Cell<Option<State>>,
    /// The name for assistive technologies.
    name: RefCell<String>,
}

impl Tile {
    /// Returns the tile of the vCPU `id`. A small tile has only the number, the use, and a sign for an unusual state; the
    /// colour, the tooltip and the name for assistive technologies have the state.
    pub(super) fn new(id: u32, is_small: bool) -> Self {
        let label = |class: &str, align| {
            let label = gtk::Label::builder().halign(align).build();
            label.add_css_class(class);
            label
        };
        let number = label("number", Align::Start);
        number.set_label(&id.to_string());
        let (state, used) = (label("state", Align::Start), label("use", Align::End));
        used.set_hexpand(true);
        let line = Sparkline::new();
        let top = gtk::Box::new(Orientation::Horizontal, 6);
        top.append(&number);
        let content = gtk::Box::new(Orientation::Vertical, if is_small { 0 } else { 3 });
        content.append(&top);
        if is_small {
            top.append(&state);
            content.append(&used);
        } else {
            top.append(&used);
            content.append(line.widget());
            content.append(&state);
        }
        let button = gtk::Button::builder().child(&content).build();
        button.add_css_class("card");
        button.add_css_class("vcpu");
        if is_small {
            button.add_css_class("small");
        }
        Self {
            button,
            state,
            used,
            line,
            is_small,
            shown: Cell::default(),
            name: RefCell::default(),
        }
    }

    pub(super) fn button(&self) -> &gtk::Button {
        &self.button
    }

    /// Shows the state of a vCPU.
    pub(super) fn show(&self, vcpu: &Vcpu) {
        let old = self.shown.replace(Some(vcpu.state));
        if old == Some(vcpu.state) {
            return;
        }
        if let Some(old) = old {
            self.button.remove_css_class(old.class());
        }
        self.button.add_css_class(vcpu.state.class());
        let text = if self.is_small {
            vcpu.state.sign()
        } else {
            vcpu.state.label()
        };
        self.state.set_label(text);
        self.button.set_tooltip_text(Some(vcpu.state.explanation()));
    }

    /// Shows the use of a vCPU.
    pub(super) fn show_use(&self, vcpu: &Vcpu, usage: &Usage) {
        let used = usage.of(vcpu.id).filter(|_| vcpu.is_present());
        let used = used
            .map(|used| format!("{:.0} %", used * 100.0))
            .unwrap_or_default();
        let mut name = format!("vCPU {}, {}", vcpu.id, vcpu.state.label().to_lowercase());
        if !used.is_empty() {
            name += &format!(", {used}");
        }
        if self.used.label() != used {
            self.used.set_label(&used);
        }
        if *self.name.borrow() != name {
            self.button
                .update_property(&[gtk::accessible::Property::Label(&name)]);
            *self.name.borrow_mut() = name;
        }
        let points = if vcpu.is_present() {
            usage.points(vcpu.id)
        } else {
            Vec::new()
        };
        self.line.set(points);
    }
}
