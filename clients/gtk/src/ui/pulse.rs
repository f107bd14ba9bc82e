//! Owns the pulse of the window: a call each second while the user can see the window, and none otherwise. It must not
//! know what is read.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use adw::prelude::*;
use gtk::{gdk, glib};

const SECOND: Duration = Duration::from_secs(1);

/// A call of the pulse.
pub(super) enum Beat {
    /// The user sees the window again.
    Start,
    /// One more second; its number.
    Second(u32),
    /// The user no longer sees the window.
    End,
}

struct Pulse {
    window: glib::WeakRef<adw::ApplicationWindow>,
    perform: Box<dyn Fn(Beat)>,
    is_beating: Cell<bool>,
    seconds: Cell<u32>,
}

/// Calls `perform` each second in which `window` is visible.
pub(super) fn connect(window: &adw::ApplicationWindow, perform: impl Fn(Beat) + 'static) {
    let pulse = Rc::new(Pulse {
        window: window.downgrade(),
        perform: Box::new(perform),
        is_beating: Cell::new(false),
        seconds: Cell::new(0),
    });
    window.connect_map(move |window| {
        pulse.start();
        if let Some(toplevel) = window.surface().and_downcast::<gdk::Toplevel>() {
            let pulse = pulse.clone();
            toplevel.connect_state_notify(move |_| pulse.start());
        }
    });
}

impl Pulse {
    fn start(self: &Rc<Self>) {
        if self.is_visible() && !self.is_beating.replace(true) {
            (self.perform)(Beat::Start);
            let this = self.clone();
            glib::timeout_add_local(SECOND, move || this.beat());
        }
    }

    fn beat(&self) -> glib::ControlFlow {
        if !self.is_visible() {
            self.is_beating.set(false);
            (self.perform)(Beat::End);
            return glib::ControlFlow::Break;
        }
        let second = self.seconds.get().wrapping_add(1);
        self.seconds.set(second);
        (self.perform)(Beat::Second(second));
        glib::ControlFlow::Continue
    }

    fn is_visible(&self) -> bool {
        let Some(window) = self.window.upgrade() else {
            return false;
        };
        let surface = window.surface().and_downcast::<gdk::Toplevel>();
        window.is_mapped() && !surface.is_some_and(|toplevel| is_hidden(&toplevel))
    }
}

/// Returns whether the window is minimized, or not visible at all, which Wayland reports for both.
fn is_hidden(toplevel: &gdk::Toplevel) -> bool {
    let state = toplevel.property_value("state");
    // GTK 4.12 has this state, and the bindings of GTK 4.8 have no name for it.
    let is_suspended = glib::FlagsClass::with_type(state.type_())
        .is_some_and(|states| states.is_set_by_nick(&state, "suspended"));
    is_suspended || toplevel.state().contains(gdk::ToplevelState::MINIMIZED)
}
