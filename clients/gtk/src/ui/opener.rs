//! Owns which dialog opens for a machine, and the text of an open dialog of a vCPU. It must not know what dialogs look
//! like.

use std::cell::RefCell;

use adw::prelude::*;
use gtk::glib::WeakRef;

use super::Send;
use super::dialogs::{self, Context};
use crate::model::machine::Machine;
use crate::model::message::{Command, Path};

/// A dialog of a machine.
#[derive(Clone, Copy, Debug)]
pub(super) enum Dialog {
    /// The host CPUs of vCPUs without a pin of their own.
    Default,
    Pins,
    Limit,
    Scaling,
    /// One vCPU.
    Vcpu(u32),
}

/// Opens dialogs.
pub(super) struct Opener {
    parent: gtk::Window,
    send: Send,
    /// The machine, the vCPU and the dialog of the last vCPU.
    vcpu: RefCell<Option<(Path, u32, WeakRef<adw::MessageDialog>)>>,
}

impl Opener {
    pub(super) fn new(parent: gtk::Window, send: Send) -> Self {
        let vcpu = RefCell::default();
        Self { parent, send, vcpu }
    }

    /// Opens a dialog of a machine, if the machine has what the dialog changes, and no other dialog is open.
    pub(super) fn open(&self, dialog: Dialog, path: &str, machine: &Machine) {
        if is_open() {
            return;
        }
        let context = Context {
            parent: &self.parent,
            send: &self.send,
            path: path.to_owned(),
            machine,
        };
        match dialog {
            Dialog::Default => dialogs::open_default(&context),
            Dialog::Pins => dialogs::open_pins(&context),
            Dialog::Limit if machine.has_control_groups() => dialogs::open_limit(&context),
            // The dialog opens when they are read.
            Dialog::Scaling if machine.scaling.is_stopped() => (self.send)(Command::Settings {
                path: path.to_owned(),
                name: machine.name(),
            }),
            Dialog::Scaling if machine.scaling.is_known() => dialogs::open_scaling(&context),
            Dialog::Limit | Dialog::Scaling => {}
            Dialog::Vcpu(id) => self.open_vcpu(id, &context),
        }
    }

    fn open_vcpu(&self, id: u32, context: &Context<'_>) {
        let mut vcpus = context.machine.vcpus.iter();
        if let Some(vcpu) = vcpus.find(|vcpu| vcpu.id == id) {
            let dialog = dialogs::open_vcpu(context, vcpu);
            let path = context.path.clone();
            *self.vcpu.borrow_mut() = Some((path.clone(), id, dialog.downgrade()));
            // Some of its values change without a signal.
            (self.send)(Command::List(path));
        }
    }

    /// Shows what has changed in the dialog of a vCPU.
    pub(super) fn show(&self, path: &str, machine: &Machine) {
        let open = self.vcpu.borrow();
        let Some((of, id, dialog)) = open.as_ref() else {
            return;
        };
        let mut vcpus = machine.vcpus.iter();
        if let Some(dialog) = dialog.upgrade().filter(|_| of == path)
            && let Some(vcpu) = vcpus.find(|vcpu| vcpu.id == *id)
            && dialog.body() != vcpu.details()
        {
            dialog.set_body(&vcpu.details());
        }
    }
}

fn is_open() -> bool {
    let mut windows = gtk::Window::list_toplevels().into_iter();
    windows.any(|window| window.is::<adw::MessageDialog>() && window.is_visible())
}
