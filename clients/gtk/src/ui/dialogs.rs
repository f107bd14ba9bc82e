//! Owns the dialogs: pins, the limit of CPU time, automatic scaling, and failures. They check what the user types, as far
//! as the application can know it.

use std::rc::Rc;

use adw::prelude::*;
use gtk::Align;

use super::Send;
use super::rows;
use crate::model::failure::Failure;
use crate::model::machine::Machine;
use crate::model::message::{Command, Path};
use crate::model::numbers;
use crate::model::scaling::Settings;
use crate::model::vcpu::Vcpu;

const APPLY: &str = "apply";
const HOST_CPUS: &str = "Host CPUs, such as 0-3,8";

/// The window and the machine of a dialog.
pub(super) struct Context<'a> {
    pub(super) parent: &'a gtk::Window,
    pub(super) send: &'a Send,
    pub(super) path: Path,
    pub(super) machine: &'a Machine,
}

/// Returns a dialog with a list of rows, and buttons to cancel and to apply. The heading names the machine.
fn form(context: &Context<'_>, heading: &str, body: &str) -> (adw::MessageDialog, gtk::ListBox) {
    let heading = format!("{heading} of {}", context.machine.name());
    let dialog = adw::MessageDialog::new(Some(context.parent), Some(&heading), Some(body));
    dialog.add_response("cancel", "_Cancel");
    dialog.add_response(APPLY, "_Apply");
    dialog.set_response_appearance(APPLY, adw::ResponseAppearance::Suggested);
    dialog.set_default_response(Some(APPLY));
    dialog.set_close_response("cancel");
    let list = gtk::ListBox::builder()
        .selection_mode(gtk::SelectionMode::None)
        .build();
    list.add_css_class("boxed-list");
    list.set_width_request(280);
    dialog.set_extra_child(Some(&list));
    (dialog, list)
}

fn entry(title: &str, text: &str) -> adw::EntryRow {
    let entry = adw::EntryRow::builder()
        .title(title)
        .text(text)
        .activates_default(true)
        .build();
    entry.set_use_markup(false);
    entry
}

fn spin(
    list: &gtk::ListBox,
    title: &str,
    range: (u32, u32),
    step: u32,
    value: u32,
) -> gtk::SpinButton {
    let (min, max) = (f64::from(range.0), f64::from(range.1));
    let spin = gtk::SpinButton::with_range(min, max, f64::from(step));
    spin.set_value(f64::from(value));
    spin.set_numeric(true);
    spin.set_valign(Align::Center);
    spin.update_property(&[gtk::accessible::Property::Label(title)]);
    let row = rows::row(title);
    row.add_suffix(&spin);
    list.append(&row);
    spin
}

/// Returns the number in a spin button, also if the user has not left it after typing.
fn number(spin: &gtk::SpinButton) -> u32 {
    spin.update();
    u32::try_from(spin.value_as_int()).unwrap_or(1)
}

/// Returns whether the text of a spin button is a number in its range. One that cannot be used counts as right.
fn is_number(spin: &gtk::SpinButton) -> bool {
    let (min, max) = spin.range();
    let typed = spin.text().parse::<u32>();
    !spin.is_sensitive() || typed.is_ok_and(|number| (min..=max).contains(&f64::from(number)))
}

/// Lets the user apply only numbers that the spin buttons show.
fn check(dialog: &adw::MessageDialog, spins: &[&gtk::SpinButton]) {
    let all: Vec<gtk::SpinButton> = spins.iter().map(|spin| (*spin).clone()).collect();
    let dialog = dialog.clone();
    let check: Rc<dyn Fn()> = Rc::new(move || {
        for spin in &all {
            if is_number(spin) {
                spin.remove_css_class("error");
            } else {
                spin.add_css_class("error");
            }
        }
        dialog.set_response_enabled(APPLY, all.iter().all(is_number));
    });
    for spin in spins {
        let (changed, usable) = (check.clone(), check.clone());
        spin.connect_changed(move |_| changed());
        spin.connect_sensitive_notify(move |_| usable());
    }
}

fn switch(list: &gtk::ListBox, title: &str, subtitle: &str, is_on: bool) -> gtk::Switch {
    let switch = gtk::Switch::builder()
        .active(is_on)
        .valign(Align::Center)
        .build();
    let row = rows::row(title);
    row.set_subtitle(subtitle);
    row.add_suffix(&switch);
    // This also names the switch for assistive technologies.
    row.set_activatable_widget(Some(&switch));
    list.append(&row);
    switch
}

/// Opens the dialog for the host CPUs of vCPUs without a pin of their own.
pub(super) fn open_default(context: &Context<'_>) {
    let body = "vCPUs without a pin of their own run on these host CPUs. If the list is empty, they run on all of them.";
    let (dialog, list) = form(context, "Host CPUs", body);
    let cpus = entry(HOST_CPUS, &context.machine.default_pin);
    list.append(&cpus);
    pin_on_apply(context, &dialog, &cpus, false, Vec::new);
    dialog.present();
}

/// Opens the dialog that pins some vCPUs.
pub(super) fn open_pins(context: &Context<'_>) {
    let max = context.machine.max();
    let body = format!(
        "The pin stays if a vCPU is removed and added again. An empty list of host CPUs removes it. vCPUs have the numbers 0 to {}.",
        max - 1
    );
    let (dialog, list) = form(context, "Pin vCPUs", &body);
    let (vcpus, cpus) = (entry("vCPUs, such as 0-3", ""), entry(HOST_CPUS, ""));
    list.append(&vcpus);
    list.append(&cpus);
    dialog.set_response_enabled(APPLY, false);
    let checked = dialog.clone();
    vcpus.connect_changed(move |vcpus| {
        let is_list = numbers::parse(&vcpus.text(), max).is_some();
        checked.set_response_enabled(APPLY, is_list);
        if is_list || vcpus.text().is_empty() {
            vcpus.remove_css_class("error")
        } else {
            vcpus.add_css_class("error")
        }
    });
    pin_on_apply(context, &dialog, &cpus, true, move || {
        numbers::parse(&vcpus.text(), max).unwrap_or_default()
    });
    dialog.present();
}

/// Opens the details of one vCPU, with its pin.
pub(super) fn open_vcpu(context: &Context<'_>, vcpu: &Vcpu) -> adw::MessageDialog {
    let (dialog, list) = form(context, &format!("vCPU {}", vcpu.id), &vcpu.details());
    let cpus = entry("Pin to host CPUs, such as 0-3,8", &vcpu.pin);
    list.append(&cpus);
    let id = vcpu.id;
    pin_on_apply(context, &dialog, &cpus, false, move || vec![id]);
    dialog.present();
    dialog
}

/// Pins when the user applies the dialog. A text that the user has not changed sets nothing, unless the vCPUs are typed
/// too.
fn pin_on_apply(
    context: &Context<'_>,
    dialog: &adw::MessageDialog,
    cpus: &adw::EntryRow,
    is_typed: bool,
    vcpus: impl Fn() -> Vec<u32> + 'static,
) {
    let (send, path, cpus) = (context.send.clone(), context.path.clone(), cpus.clone());
    let (shown, name) = (cpus.text(), context.machine.name());
    dialog.connect_response(Some(APPLY), move |_, _| {
        if cpus.text() == shown && !is_typed {
            return;
        }
        let vcpus = vcpus();
        let cpus = cpus.text().trim().to_owned();
        send(Command::Pin {
            path: path.clone(),
            name: name.clone(),
            vcpus,
            cpus,
        });
    });
}

/// Opens the dialog for the limit of CPU time.
pub(super) fn open_limit(context: &Context<'_>) {
    let bandwidth = context.machine.bandwidth();
    let mut body = "The limit is for each vCPU, including those that are added later.".to_owned();
    if bandwidth.percent().is_some() {
        // The field has whole numbers only.
        body += &format!("\nNow: {}", bandwidth.text());
    }
    let (dialog, list) = form(context, "Limit of CPU Time", &body);
    let limited = switch(
        &list,
        "Limit the CPU time",
        "",
        bandwidth.percent().is_some(),
    );
    let percent = bandwidth.whole_percent();
    let percent = spin(&list, "Percent of a host CPU", (1, 100), 5, percent);
    check(&dialog, &[&percent]);
    limited
        .bind_property("active", &percent, "sensitive")
        .sync_create()
        .build();
    let (send, path) = (context.send.clone(), context.path.clone());
    let name = context.machine.name();
    dialog.connect_response(Some(APPLY), move |_, _| {
        let percent = limited.is_active().then(|| number(&percent));
        if let Some(bandwidth) = bandwidth.changed(percent) {
            send(Command::Limit {
                path: path.clone(),
                name: name.clone(),
                bandwidth,
            });
        }
    });
    dialog.present();
}

/// Opens the settings of automatic scaling.
pub(super) fn open_scaling(context: &Context<'_>) {
    let machine = context.machine;
    let is_on = machine.scaling.decision().is_some();
    let body = "vcpud-autoscale sets the number of vCPUs by the load, and only if the host has CPU time for them.";
    let (dialog, list) = form(context, "Automatic Scaling", body);
    let range = (machine.min(), machine.max());
    let shown = machine.scaling.settings(range.0, range.1);
    let step = machine.per_slot();
    let min = spin(&list, "Minimum number of vCPUs", range, step, shown.min);
    let max = spin(&list, "Maximum number of vCPUs", range, step, shown.max);
    check(&dialog, &[&min, &max]);
    let observed = switch(
        &list,
        "Observe only",
        "Decide, and change nothing",
        shown.is_observed,
    );
    // The minimum is never above the maximum.
    let upper = max.clone();
    min.connect_value_changed(move |min| upper.set_value(upper.value().max(min.value())));
    let lower = min.clone();
    max.connect_value_changed(move |max| lower.set_value(lower.value().min(max.value())));
    let (send, path, name) = (context.send.clone(), context.path.clone(), machine.name());
    dialog.connect_response(Some(APPLY), move |_, _| {
        let settings = Settings {
            min: number(&min),
            max: number(&max),
            is_observed: observed.is_active(),
        };
        if !is_on || settings != shown {
            send(Command::Scale {
                path: path.clone(),
                name: name.clone(),
                settings,
            });
        }
    });
    dialog.present();
}

/// Opens the complete text of a failure.
pub(super) fn open_failure(parent: &gtk::Window, failure: &Failure) {
    let dialog = adw::MessageDialog::new(Some(parent), Some(&failure.title), Some(&failure.detail));
    dialog.add_response("close", "_Close");
    dialog.set_close_response("close");
    dialog.present();
}
