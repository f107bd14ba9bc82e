//! The autoscaler: a client of vcpud that sets the number of vCPUs of machines by their load. It has no rights of its
//! own, and decides with `vcpud::autoscale`.

mod admission;
mod authority;
mod counters;
mod describe;
mod error;
mod fleet;
mod holds;
mod interface;
mod link;
mod service;
mod settings;
mod simulate;
mod store;

use std::io::{Write, stderr};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{error, info};
use vcpud::names::{AUTOSCALE_NAME, AUTOSCALE_PATH};
use zbus::Connection;
use zbus::fdo::RequestNameFlags;

use interface::Autoscale;
use service::Service;
use store::Store;

/// Set the number of vCPUs of machines by their load.
#[derive(Parser)]
#[command(name = "vcpud-autoscale", version)]
struct Arguments {
    /// Without a command, the program is the service.
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    Simulate(simulate::Arguments),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    if let Some(Command::Simulate(arguments)) = Arguments::parse().command {
        return match simulate::run(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let _ = writeln!(stderr(), "vcpud-autoscale: {error}");
                error.exit_code()
            }
        };
    }
    vcpud::log::start();
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until the program is not needed, or until a signal ends it.
async fn serve() -> zbus::Result<()> {
    let mut ends = [
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    ];
    let [terminated, interrupted] = &mut ends;
    let mut hangups = signal(SignalKind::hangup())?;
    let (reloader, reloads) = mpsc::channel(1);
    let reload = async {
        while hangups.recv().await.is_some() {
            let _ = reloader.send(()).await;
        }
    };
    tokio::select! {
        ended = run(reloads) => ended,
        () = reload => Ok(()),
        _ = terminated.recv() => Ok(()),
        _ = interrupted.recv() => Ok(()),
    }
}

async fn connect() -> zbus::Result<Connection> {
    let bus = Connection::system().await;
    bus.map_err(|error| zbus::Error::Failure(format!("cannot connect to the system bus: {error}")))
}

/// Starts the service, and runs it until it is not needed.
async fn run(reloads: mpsc::Receiver<()>) -> zbus::Result<()> {
    let (bus, client) = (connect().await?, connect().await?);
    let mut service = Service::new(bus.clone(), client, Store::from_environment()).await;
    let (sender, commands) = mpsc::channel(64);
    bus.object_server()
        .at(AUTOSCALE_PATH, Autoscale::new(sender))
        .await?;
    // A second instance ends: two would undo each other's changes.
    let flags = RequestNameFlags::DO_NOT_QUEUE;
    let named = bus.request_name_with_flags(AUTOSCALE_NAME, flags).await;
    named.map_err(|error| match error {
        zbus::Error::NameTaken => zbus::Error::Failure(format!(
            "another vcpud-autoscale runs: the name {AUTOSCALE_NAME} has an owner; end that process first"
        )),
        error => error,
    })?;
    vcpud::systemd::ready();
    info!("ready");
    service.run(commands, reloads).await
}
