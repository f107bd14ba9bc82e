//! Owns the state of the application, and joins the model, the widgets and the edge to D-Bus: events go to the model,
//! its effects to the widgets, and commands to the service. It must not know how widgets look.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use adw::prelude::*;
use gtk::glib;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::Send;
use super::actions::{self, Action};
use super::opener::{Dialog, Opener};
use super::page::Openers;
use super::placement::Dialogs;
use super::pulse::{self, Beat};
use super::window::Window;
use crate::model::fleet::{Effect, Fleet, View};
use crate::model::message::{Command, Event, Path};

/// The number of seconds between two reads of what changes slowly.
const SLOW: u32 = 5;
/// Signals about vCPUs within this time lead to one call of `ListVcpus`.
const GATHER: Duration = Duration::from_millis(50);

/// Where an action works.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On the page of a machine: no key changes a machine that a narrow window does not show.
    Page,
    Window,
}

/// The name of an action, where it works, and what it does.
type PlacedAction = (&'static str, Place, fn(&App));

const ACTIONS: [PlacedAction; 12] = [
    ("more", Place::Page, |app| app.window.page.count.step(1)),
    ("fewer", Place::Page, |app| app.window.page.count.step(-1)),
    ("reset", Place::Page, |app| app.window.page.count.reset()),
    ("apply", Place::Page, |app| app.window.page.count.apply()),
    ("limit", Place::Page, |app| app.open(Dialog::Limit)),
    ("pin", Place::Page, |app| app.open(Dialog::Pins)),
    ("scale", Place::Page, |app| app.open(Dialog::Scaling)),
    ("next", Place::Window, |app| app.move_selection(1)),
    ("previous", Place::Window, |app| app.move_selection(-1)),
    ("back", Place::Window, |app| app.window.open_list()),
    ("search", Place::Window, |app| app.window.open_search()),
    ("refresh", Place::Window, |app| app.send(Command::Connect)),
];

/// One window, with all that it shows.
struct App {
    fleet: RefCell<Fleet>,
    selected: RefCell<Option<Path>>,
    window: Window,
    opener: Opener,
    commands: UnboundedSender<Command>,
    /// A sample has been requested and not received.
    is_sample_due: Cell<bool>,
    is_reading: Cell<bool>,
}

/// Opens the window.
pub(crate) fn open(
    application: &adw::Application,
    commands: UnboundedSender<Command>,
    mut events: UnboundedReceiver<Event>,
) {
    let app = Rc::new_cyclic(|this: &Weak<App>| {
        let window = Window::new(application, &sender(this), openers(this));
        let parent = window.window.clone().upcast();
        App {
            fleet: RefCell::default(),
            selected: RefCell::default(),
            window,
            opener: Opener::new(parent, sender(this)),
            commands,
            is_sample_due: Cell::new(false),
            is_reading: Cell::new(false),
        }
    });
    app.connect();
    app.window.show_view(&View::Connecting);
    app.window.window.present();
    // The loop owns the application, and ends with the sender of the events.
    glib::spawn_future_local(async move {
        while let Some(event) = events.recv().await {
            app.take(event);
        }
    });
}

/// Returns the function that the widgets call with commands.
fn sender(this: &Weak<App>) -> Send {
    let this = this.clone();
    Rc::new(move |command| {
        if let Some(app) = this.upgrade() {
            app.send(command);
        }
    })
}

fn openers(this: &Weak<App>) -> Openers {
    let on_app = |perform: fn(&App)| -> Rc<dyn Fn()> {
        let this = this.clone();
        Rc::new(move || {
            if let Some(app) = this.upgrade() {
                perform(&app);
            }
        })
    };
    let vcpu = this.clone();
    Openers {
        vcpu: Rc::new(move |id| {
            if let Some(app) = vcpu.upgrade() {
                app.open(Dialog::Vcpu(id));
            }
        }),
        placement: Dialogs {
            default: on_app(|app| app.open(Dialog::Default)),
            pins: on_app(|app| app.open(Dialog::Pins)),
            limit: on_app(|app| app.open(Dialog::Limit)),
        },
        scaling: on_app(|app| app.open(Dialog::Scaling)),
        stop_scaling: on_app(App::stop_scaling),
    }
}

impl App {
    fn connect(self: &Rc<Self>) {
        let (selecting, opening) = (Rc::downgrade(self), Rc::downgrade(self));
        let select = move |path| {
            if let Some(app) = selecting.upgrade() {
                app.select(Some(path));
            }
        };
        let open = move || {
            if let Some(app) = opening.upgrade() {
                app.window.open_page();
            }
        };
        self.window.sidebar.connect(select, open);
        let actions = ACTIONS.map(|(name, place, perform)| -> Action {
            let this = Rc::downgrade(self);
            let perform = move || {
                if let Some(app) = this.upgrade()
                    && (place == Place::Window || app.window.is_page_shown())
                {
                    perform(&app);
                }
            };
            (name, Box::new(perform))
        });
        actions::add_to_window(&self.window.window, actions);
        let beating = Rc::downgrade(self);
        pulse::connect(&self.window.window, move |beat| {
            if let Some(app) = beating.upgrade() {
                app.beat(beat);
            }
        });
    }

    /// Reads the use of the selected machine each second, and sometimes what changes without a signal.
    fn beat(&self, beat: Beat) {
        let selected = self.selected.borrow().clone();
        if matches!(beat, Beat::End) {
            self.pause(selected.as_deref());
        }
        let Some(path) = selected.filter(|_| self.fleet.borrow().view() == View::Machines) else {
            return;
        };
        match beat {
            Beat::End => return,
            Beat::Start => return self.read_selected(),
            Beat::Second(second) if second.is_multiple_of(SLOW) => self.read_slowly(&path),
            Beat::Second(_) => {}
        }
        if !self.is_sample_due.replace(true) {
            self.send(Command::Sample(path));
        }
    }

    /// Reads what changes without a signal, and does not change each second.
    fn read_slowly(&self, path: &str) {
        let (is_scaled, is_starting) = match self.fleet.borrow().get(path) {
            Some(machine) => (machine.scaling.is_changing(), machine.is_starting()),
            None => return,
        };
        if is_scaled {
            self.read_scaling();
        }
        if is_starting {
            self.send(Command::List(path.to_owned()));
        }
        if self.fleet.borrow_mut().forget_failed_plan(path) {
            self.show_machine(path);
        }
    }

    /// Notes that the use of a machine is not sampled for some time.
    fn pause(&self, path: Option<&str>) {
        let mut fleet = self.fleet.borrow_mut();
        if let Some(machine) = path.and_then(|path| fleet.get_mut(path)) {
            machine.usage.pause();
        }
    }

    /// Takes an event, and shows its effects.
    fn take(self: &Rc<Self>, event: Event) {
        if matches!(
            event,
            Event::Lost(_) | Event::Machines(_) | Event::Sampled(..)
        ) {
            self.is_sample_due.set(false);
        }
        let is_list = matches!(event, Event::Machines(_));
        let effects = self.fleet.borrow_mut().apply(event);
        for effect in effects {
            self.show(effect);
        }
        if is_list {
            self.read_selected();
        }
    }

    fn show(self: &Rc<Self>, effect: Effect) {
        let is_selected = |path: &str| self.selected.borrow().as_deref() == Some(path);
        match effect {
            Effect::Machines => self.show_machines(),
            Effect::Machine(path) => self.show_machine(&path),
            Effect::Ended(path) if is_selected(&path) => self.end_selected(),
            Effect::Usage(path) if is_selected(&path) => {
                if let Some(machine) = self.fleet.borrow().get(&path) {
                    self.window.page.show_use(machine);
                }
            }
            Effect::ReadVcpus(path) if is_selected(&path) => self.read_vcpus_soon(),
            Effect::ReadScaling(path) if is_selected(&path) => self.read_scaling(),
            Effect::OpenScaling(path) if is_selected(&path) => self.open(Dialog::Scaling),
            Effect::Ended(_)
            | Effect::Usage(_)
            | Effect::ReadVcpus(_)
            | Effect::ReadScaling(_)
            | Effect::OpenScaling(_) => {}
            Effect::Refusal(path, failure) => self.window.toasts.show_refusal(path, &failure),
            Effect::Failure(path, failure) => self.window.toasts.show_failure(path, &failure),
            Effect::Note(path, text) => self.window.toasts.show_note(path, &text),
        }
    }

    fn show_machines(&self) {
        let (view, paths) = (self.fleet.borrow().view(), self.fleet.borrow().paths());
        self.window.show_view(&view);
        let selected = self.selected.borrow().clone();
        let selected = selected.filter(|path| paths.contains(path));
        if selected.is_none() {
            self.select(paths.first().cloned());
        }
        let selected = self.selected.borrow().clone();
        self.window
            .sidebar
            .show(&self.fleet.borrow(), selected.as_deref());
        if let Some(path) = selected {
            self.show_machine(&path);
        }
    }

    /// Ends what the user does with the selected machine: its dialog and its number would be about another one.
    fn end_selected(&self) {
        self.window.close_dialogs();
        self.window.page.count.forget();
    }

    fn show_machine(&self, path: &str) {
        let fleet = self.fleet.borrow();
        let Some(machine) = fleet.get(path) else {
            return;
        };
        self.window.sidebar.show_machine(path, machine);
        if self.selected.borrow().as_deref() == Some(path) {
            self.window.page.show(path, machine);
            self.opener.show(path, machine);
        }
    }

    /// Selects a machine.
    fn select(&self, path: Option<Path>) {
        let old = self.selected.replace(path.clone());
        if old == path {
            return;
        }
        self.pause(old.as_deref());
        self.is_sample_due.set(false);
        self.window.sidebar.select(path.as_deref());
        if let Some(path) = path {
            self.show_machine(&path);
            self.read_selected();
        }
    }

    /// Selects a neighbour in the list.
    fn move_selection(&self, step: isize) {
        let is_shown = self.fleet.borrow().view() == View::Machines;
        let selected = self.selected.borrow().clone().filter(|_| is_shown);
        let neighbour = |path: Path| self.window.sidebar.neighbour(&path, step);
        if let Some(path) = selected.and_then(neighbour) {
            self.select(Some(path));
        }
    }

    /// Reads what signals do not have.
    fn read_selected(&self) {
        if let Some(path) = self.selected.borrow().clone() {
            self.read_vcpus(path);
            self.read_scaling();
        }
    }

    fn read_vcpus(&self, path: Path) {
        self.send(Command::List(path.clone()));
        self.send(Command::Tuning(path));
    }

    fn read_scaling(&self) {
        if let Some((path, name)) = self.named() {
            self.send(Command::Explain { path, name });
        }
    }

    /// Returns the path and the name of the selected machine.
    fn named(&self) -> Option<(Path, String)> {
        let path = self.selected.borrow().clone()?;
        let name = self.fleet.borrow().get(&path)?.name();
        Some((path, name))
    }

    fn read_vcpus_soon(self: &Rc<Self>) {
        if self.is_reading.replace(true) {
            return;
        }
        let this = Rc::downgrade(self);
        glib::timeout_add_local_once(GATHER, move || {
            let Some(app) = this.upgrade() else { return };
            app.is_reading.set(false);
            if let Some(path) = app.selected.borrow().clone() {
                app.read_vcpus(path);
            }
        });
    }

    fn send(&self, command: Command) {
        if let Command::SetVcpus { path, .. } = &command {
            if let Some(machine) = self.fleet.borrow_mut().get_mut(path) {
                machine.is_busy = true;
                machine.refusals.clear();
            }
            self.show_machine(path);
        }
        if let Some((path, _)) = command.target() {
            self.window.toasts.dismiss(&path);
        }
        // The edge ends only with the application.
        let _ = self.commands.send(command);
    }

    /// Opens a dialog of the selected machine.
    fn open(&self, dialog: Dialog) {
        let (fleet, selected) = (self.fleet.borrow(), self.selected.borrow());
        if let Some(path) = &*selected
            && let Some(machine) = fleet.get(path)
            && fleet.view() == View::Machines
        {
            self.opener.open(dialog, path, machine);
        }
    }

    fn stop_scaling(&self) {
        if let Some((path, name)) = self.named() {
            self.send(Command::StopScaling { path, name });
        }
    }
}
