//! The GNOME application for vcpud. This file owns the start and the end of the program, and nothing else.

mod bus;
mod model;
mod ui;

use std::ops::ControlFlow;
use std::process::ExitCode;

use adw::prelude::*;
use gtk::glib;
use tokio::runtime::Builder;
use tokio::sync::mpsc::unbounded_channel;

/// The id of the application, its desktop file and its icon.
const ID: &str = "org.vcpud1.VirtualCpus";

#[expect(clippy::print_stderr, reason = "there is no window for this error")]
fn main() -> ExitCode {
    // D-Bus needs one thread beside that of GTK.
    let runtime = match Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("vcpud-gtk: cannot start a thread: {error}");
            return ExitCode::FAILURE;
        }
    };
    glib::set_application_name("Virtual CPUs");
    let application = adw::Application::builder().application_id(ID).build();
    add_version(&application);
    application.connect_startup(ui::start);
    application.connect_activate(move |application| {
        if let Some(window) = application.active_window() {
            return window.present();
        }
        let (commands, received) = unbounded_channel();
        let (sent, events) = unbounded_channel();
        bus::start(&runtime, received, sent);
        ui::open(application, commands, events);
    });
    match application.run() {
        glib::ExitCode::SUCCESS => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Adds the option that prints the version. The GLib of Debian 12 has none.
#[expect(clippy::print_stdout, reason = "the option is for a terminal")]
fn add_version(application: &adw::Application) {
    application.add_main_option(
        "version",
        glib::Char::from(0),
        glib::OptionFlags::NONE,
        glib::OptionArg::None,
        "Print the version",
        None,
    );
    application.connect_handle_local_options(|_, options| {
        if !options.contains("version") {
            return ControlFlow::Continue(());
        }
        println!("vcpud-gtk {}", env!("CARGO_PKG_VERSION"));
        ControlFlow::Break(glib::ExitCode::SUCCESS)
    });
}
