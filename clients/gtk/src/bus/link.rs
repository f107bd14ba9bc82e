//! Owns the connection to the bus: it is made, followed, and made again after its loss. It must not know what the
//! commands and events mean.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::sleep;
use zbus::Connection;

use super::calls;
use super::signals::{self, Signal};
use crate::model::message::{Command, Event, Loss};

/// The pause before a new attempt to connect.
const PAUSE: Duration = Duration::from_secs(5);

/// Starts a task that performs `commands` and sends `events`, until one of them ends.
pub(crate) fn start(
    runtime: &Runtime,
    mut commands: UnboundedReceiver<Command>,
    events: UnboundedSender<Event>,
) {
    runtime.spawn(async move {
        while !events.is_closed() {
            if let Err(error) = follow(&mut commands, &events).await {
                let _ = events.send(Event::Lost(Loss::Bus(error.to_string())));
            }
            wait(&mut commands).await;
        }
    });
}

/// Waits for the next attempt to connect. Commands for the lost connection have no effect.
async fn wait(commands: &mut UnboundedReceiver<Command>) {
    let asked = async {
        while let Some(command) = commands.recv().await {
            if matches!(command, Command::Connect) {
                return;
            }
        }
    };
    tokio::select! {
        () = sleep(PAUSE) => {}
        () = asked => {}
    }
}

/// Follows one connection until its end.
async fn follow(
    commands: &mut UnboundedReceiver<Command>,
    events: &UnboundedSender<Event>,
) -> zbus::Result<()> {
    let bus = Connection::system().await?;
    let mut signals = signals::follow(&bus).await?;
    spawn(&bus, events, Command::Connect);
    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                None => {
                    let text = "The connection to the system bus has ended.".to_owned();
                    return Err(zbus::Error::Failure(text));
                }
                Some(signal) => match signals::read(&signal?) {
                    Some(Signal::ServiceStarted) => spawn(&bus, events, Command::Connect),
                    Some(Signal::Event(event)) => {
                        let _ = events.send(event);
                    }
                    None => {}
                },
            },
            command = commands.recv() => match command {
                None => return Ok(()),
                Some(command) => spawn(&bus, events, command),
            },
        }
    }
}

/// Performs a command beside others: polkit can wait for the user for minutes.
fn spawn(bus: &Connection, events: &UnboundedSender<Event>, command: Command) {
    let (bus, events) = (bus.clone(), events.clone());
    tokio::spawn(async move {
        for event in calls::perform(&bus, command).await {
            // The window is closed, and the application ends.
            let _ = events.send(event);
        }
    });
}
