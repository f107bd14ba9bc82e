//! Owns the number of vCPUs: the spin button, the plan of the service, and the button that applies it. It must not plan.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use adw::prelude::*;
use gtk::glib;
use gtk::{Align, Orientation};

use super::Send;
use super::rows;
use crate::model::choice::Choice;
use crate::model::machine::Machine;
use crate::model::message::Command;
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
    choice: RefCell<Choice>,
    /// The program, and not the user, sets the spin button.
    is_setting: Cell<bool>,
    /// A number has been applied, and its request has not ended.
    is_applied: Cell<bool>,
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
            choice: RefCell::default(),
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
            move |_| if !this.is_setting.get() {
                this.choose();
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

    /// Shows a machine. The choice of the user stays, unless it is another machine.
    pub(super) fn show(&self, path: &str, machine: &Machine) {
        let is_other = self.choice.borrow_mut().follow(path, machine);
        // A machine that vcpud has not asked yet has no numbers.
        if is_other || machine.is_connected() {
            self.set_range(machine);
            if !self.choice.borrow().is_made() {
                self.set(machine.present());
            }
        }
        rows::set_subtitle(&self.row, &machine.range());
        self.show_plan(machine);
        self.spin
            .set_sensitive(machine.can_change() && !machine.is_busy);
        self.spinner.set_visible(machine.is_busy);
        self.spinner.set_spinning(machine.is_busy);
        if !machine.is_busy {
            self.ask();
            if self.is_applied.take() && self.has_lost_focus() {
                self.spin.grab_focus();
            }
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
    }

    fn show_plan(&self, machine: &Machine) {
        let choice = self.choice.borrow();
        let plan = choice.plan(machine);
        let is_possible = plan.is_some_and(|plan| plan.is_possible(&machine.pending()));
        self.enable(is_possible && !machine.is_busy);
        self.plan
            .set_visible(machine.is_busy || choice.number().is_some());
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
            Some(Plan::Impossible { .. } | Plan::Failed(_)) => "dialog-error-symbolic",
            _ => "emblem-system-symbolic",
        };
        self.icon.set_icon_name(Some(icon));
        let warnings = plan.map(Plan::warnings).unwrap_or_default();
        self.warning.set_visible(!warnings.is_empty());
        rows::set_subtitle(&self.warning, &warnings.join("\n"));
    }

    /// Takes the choice of the user, and shows that its plan is not known yet.
    fn choose(&self) {
        self.choice.borrow_mut().choose(self.number());
        let has_asked = self.ask();
        let is_chosen = self.choice.borrow().number().is_some();
        // Another text for the same number changes nothing.
        if is_chosen && !has_asked {
            return;
        }
        self.enable(false);
        self.warning.set_visible(false);
        self.plan.set_visible(is_chosen);
        rows::set_title(&self.plan, "Planning");
        rows::set_subtitle(&self.plan, "");
    }

    /// Asks for the plan, unless the last question was the same. Returns whether it has asked.
    fn ask(&self) -> bool {
        let question = self.choice.borrow_mut().ask();
        let Some(question) = question else {
            return false;
        };
        let path = self.choice.borrow().path().to_owned();
        (self.send)(Command::Plan(path, question));
        true
    }

    /// Lets the user apply the number, or not. The focus stays in the group.
    fn enable(&self, is_enabled: bool) {
        if !is_enabled && self.apply.has_focus() {
            self.spin.grab_focus();
        }
        self.apply.set_sensitive(is_enabled);
    }

    /// Applies the chosen number, if its plan is possible.
    pub(super) fn apply(&self) {
        let choice = self.choice.borrow();
        let Some(count) = choice.number().filter(|_| self.apply.is_sensitive()) else {
            return;
        };
        let (path, name) = (choice.path().to_owned(), choice.name().to_owned());
        let current = choice.present();
        drop(choice);
        self.is_applied.set(true);
        (self.send)(Command::SetVcpus {
            path,
            name,
            count,
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
        if self.spin.is_sensitive() {
            let present = self.choice.borrow().present();
            self.set(present);
            self.choose();
        }
    }

    /// Forgets the machine and the choice. Without a connection, the number cannot be set.
    pub(super) fn forget(&self) {
        self.choice.borrow_mut().forget();
    }

    fn set(&self, count: u32) {
        // It rewrites the text, and moves the cursor, also if the value is the same.
        if self.number() != Some(count) {
            self.is_setting.set(true);
            self.spin.set_value(f64::from(count));
            self.is_setting.set(false);
        }
    }

    /// Returns the number that the user sees, also before the spin button has taken its text. It is `None` if the text is
    /// not a number in the range.
    fn number(&self) -> Option<u32> {
        let (min, max) = self.spin.range();
        let typed = self.spin.text().parse::<u32>().ok();
        typed.filter(|number| (min..=max).contains(&f64::from(*number)))
    }
}
