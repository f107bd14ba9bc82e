//! Owns the number of vCPUs: the spin button, the plan of the service, and the button that applies it. It must not plan.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use adw::prelude::*;
use gtk::glib;
use gtk::{Align, Orientation};

use super::Send;
use super::rows;
use crate::model::machine::Machine;
use crate::model::message::{Command, Path};
use crate::model::plan::Plan;

/// The group with the number of vCPUs of a machine.
pub(super) struct Count {
    group: adw::PreferencesGroup,
    row: adw::ActionRow,
    spin: gtk::SpinButton,
    apply: gtk::Button,
    spinner: gtk::Spinner,
    plan: adw::ActionRow,
    icon: gtk::Image,
    warning: adw::ActionRow,
    send: Send,
    state: RefCell<State>,
    /// The program, and not the user, sets the spin button.
    is_setting: Cell<bool>,
    /// A number has been applied, and its request has not ended.
    is_applied: Cell<bool>,
}

/// The facts about the machine that the group needs.
#[derive(Default)]
struct State {
    path: Path,
    present: u32,
    /// The number and the present number of the last plan.
    planned: Option<(u32, u32)>,
}

impl Count {
    pub(super) fn new(send: Send) -> Rc<Self> {
        let spin = gtk::SpinButton::with_range(1.0, 1.0, 1.0);
        spin.set_valign(Align::Center);
        spin.set_snap_to_ticks(true);
        spin.set_numeric(true);
        spin.update_property(&[gtk::accessible::Property::Label("Number of vCPUs")]);
        let apply = rows::button("_Apply");
        apply.add_css_class("suggested-action");
        let spinner = gtk::Spinner::new();
        let row = rows::row("Number of vCPUs");
        let end = gtk::Box::new(Orientation::Horizontal, 12);
        end.append(&spinner);
        end.append(&spin);
        end.append(&apply);
        row.add_suffix(&end);
        let (plan, warning) = (rows::row(""), rows::warning("The guest may not notice"));
        let icon = gtk::Image::new();
        plan.add_prefix(&icon);
        let group = adw::PreferencesGroup::new();
        group.add(&row);
        group.add(&plan);
        group.add(&warning);
        let this = Rc::new(Self {
            group,
            row,
            spin,
            apply,
            spinner,
            plan,
            icon,
            warning,
            send,
            state: RefCell::default(),
            is_setting: Cell::new(false),
            is_applied: Cell::new(false),
        });
        this.connect();
        this
    }

    fn connect(self: &Rc<Self>) {
        // Also while the user types.
        self.spin.connect_changed(glib::clone!(
            #[weak(rename_to = this)]
            self,
            move |_| if !this.is_setting.get() && this.ask() {
                this.show_change();
            }
        ));
        self.apply.connect_clicked(glib::clone!(
            #[weak(rename_to = this)]
            self,
            move |_| this.apply()
        ));
    }

    pub(super) fn widget(&self) -> &adw::PreferencesGroup {
        &self.group
    }

    /// Shows a machine. A number that the user has chosen stays, unless it is another machine.
    pub(super) fn show(&self, path: &str, machine: &Machine) {
        let present = machine.present();
        let is_edited = (self.is_edited() || self.is_typed()) && self.state.borrow().path == path;
        let mut state = self.state.borrow_mut();
        if state.path != path {
            state.planned = None;
        }
        path.clone_into(&mut state.path);
        state.present = present;
        drop(state);
        self.set_range(machine);
        if !is_edited {
            self.set(present);
        }
        self.show_plan(machine);
        let is_possible = machine.is_connected() && machine.is_hotpluggable();
        self.spin.set_sensitive(is_possible && !machine.is_busy);
        self.spinner.set_visible(machine.is_busy);
        self.spinner.set_spinning(machine.is_busy);
        if self.is_edited() && is_possible && !machine.is_busy {
            self.ask();
        }
        if !machine.is_busy && self.is_applied.take() && self.has_lost_focus() {
            self.spin.grab_focus();
        }
    }

    /// Returns whether no widget of the window can take keys, because the button has become insensitive.
    fn has_lost_focus(&self) -> bool {
        let focus = self.group.root().and_then(|root| root.focus());
        focus.is_none_or(|widget| !widget.is_sensitive())
    }

    fn set_range(&self, machine: &Machine) {
        let (min, max, step) = (machine.min(), machine.max(), machine.per_slot());
        self.is_setting.set(true);
        self.spin.set_range(f64::from(min), f64::from(max));
        self.spin.set_increments(f64::from(step), f64::from(step));
        self.is_setting.set(false);
        let text = match (machine.is_hotpluggable(), machine.is_connected(), step) {
            (false, ..) => "QEMU cannot change the number of vCPUs of this machine".to_owned(),
            (_, false, _) => {
                "vcpud has no connection to QEMU, and connects again by itself".to_owned()
            }
            (_, _, 1) => format!("{min} to {max}"),
            _ => format!("{min} to {max}, in steps of {step}"),
        };
        rows::set_subtitle(&self.row, &text);
    }

    /// Returns the plan if it is for the chosen number.
    fn plan_of<'a>(&self, machine: &'a Machine) -> Option<&'a Plan> {
        let (count, plan) = machine.plan.as_ref()?;
        (*count == self.chosen() && self.is_edited()).then_some(plan)
    }

    fn show_plan(&self, machine: &Machine) {
        let plan = self.plan_of(machine);
        let is_possible = plan.is_some_and(|plan| plan.is_possible(&machine.pending()));
        self.apply
            .set_sensitive(is_possible && !machine.is_busy && machine.is_connected());
        self.plan.set_visible(self.is_edited());
        let (title, subtitle) = match (machine.is_busy, plan) {
            (true, _) => (
                "Applying the change".to_owned(),
                "vcpud waits for the authorization, QEMU, or the guest".to_owned(),
            ),
            (_, Some(plan)) => plan.text(&machine.pending(), &machine.refusals),
            (_, None) => ("Planning".to_owned(), String::new()),
        };
        rows::set_title(&self.plan, &title);
        rows::set_subtitle(&self.plan, &subtitle);
        let icon = match plan {
            Some(Plan::Impossible { .. }) => "dialog-error-symbolic",
            _ => "emblem-system-symbolic",
        };
        self.icon.set_icon_name(Some(icon));
        let warnings = plan.map(Plan::warnings).unwrap_or_default();
        self.warning.set_visible(!warnings.is_empty());
        rows::set_subtitle(&self.warning, &warnings.join("\n"));
    }

    /// Shows that the number has changed, before the plan arrives.
    fn show_change(&self) {
        self.apply.set_sensitive(false);
        self.warning.set_visible(false);
        self.plan.set_visible(self.is_edited());
        rows::set_title(&self.plan, "Planning");
        rows::set_subtitle(&self.plan, "");
    }

    /// Asks for the plan, unless the last question was the same. Returns whether it has asked.
    fn ask(&self) -> bool {
        let chosen = self.chosen();
        let mut state = self.state.borrow_mut();
        let question = Some((chosen, state.present));
        if state.planned == question {
            return false;
        }
        state.planned = question;
        let path = state.path.clone();
        drop(state);
        (self.send)(Command::Plan(path, chosen));
        true
    }

    /// Applies the chosen number, if its plan is possible.
    pub(super) fn apply(&self) {
        if !self.apply.is_sensitive() {
            return;
        }
        self.is_applied.set(true);
        let state = self.state.borrow();
        let (path, current) = (state.path.clone(), state.present);
        drop(state);
        (self.send)(Command::SetVcpus {
            path,
            count: self.chosen(),
            current,
        });
    }

    /// Chooses more or fewer vCPUs by a number of slots.
    pub(super) fn step(&self, slots: i32) {
        if self.spin.is_sensitive() {
            let (step, _) = self.spin.increments();
            self.spin
                .set_value(self.spin.value() + step * f64::from(slots));
        }
    }

    /// Chooses the present number.
    pub(super) fn reset(&self) {
        let present = self.state.borrow().present;
        self.set(present);
        self.show_change();
    }

    fn set(&self, count: u32) {
        // It rewrites the text, and moves the cursor, also if the value is the same.
        if self.is_typed() || self.spin.value_as_int() != i32::try_from(count).unwrap_or(0) {
            self.is_setting.set(true);
            self.spin.set_value(f64::from(count));
            self.is_setting.set(false);
        }
        self.state.borrow_mut().planned = None;
    }

    /// Returns the number in the spin button, also before its text is complete.
    fn chosen(&self) -> u32 {
        let (min, max) = self.spin.range();
        let typed = self.spin.text().parse::<u32>().ok();
        let typed = typed.filter(|number| (min..=max).contains(&f64::from(*number)));
        typed.unwrap_or_else(|| u32::try_from(self.spin.value_as_int()).unwrap_or(1))
    }

    /// Returns whether the user has typed a text that the spin button has not taken.
    fn is_typed(&self) -> bool {
        self.spin.text() != self.spin.value_as_int().to_string()
    }

    fn is_edited(&self) -> bool {
        self.chosen() != self.state.borrow().present
    }
}
