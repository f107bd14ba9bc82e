//! Owns the connection to the bus: it is made, followed, and made again after its loss. It takes replies to reads and
//! signals from one stream, in the order of the bus. It must not know what the commands and events mean.

use std::future::pending;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, sleep, sleep_until};
use zbus::{Connection, Message};

use super::owners::Owners;
use super::reads::{self, Reads};
use super::signals::{self, Signal};
use super::{calls, errors};
use crate::model::message::{Command, Event};

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
                send(&events, [Event::Lost(errors::loss(&error))]);
            }
            wait(&mut commands, &events).await;
        }
    });
}

/// Waits for the next attempt to connect. Commands for the lost connection fail.
async fn wait(commands: &mut UnboundedReceiver<Command>, events: &UnboundedSender<Event>) {
    let asked = async {
        while let Some(command) = commands.recv().await {
            if matches!(command, Command::Connect) {
                return;
            }
            if !command.is_read() {
                let error = "There is no connection to the system bus.".to_owned();
                let events_of = calls::failed(command, &zbus::Error::Failure(error));
                send(events, events_of);
            }
        }
    };
    tokio::select! {
        () = sleep(PAUSE) => {}
        () = asked => {}
    }
}

/// Sends events. It has no effect if the window is closed, because the application ends.
fn send(events: &UnboundedSender<Event>, new: impl IntoIterator<Item = Event>) {
    for event in new {
        let _ = events.send(event);
    }
}

/// Follows one connection until its end.
async fn follow(
    commands: &mut UnboundedReceiver<Command>,
    events: &UnboundedSender<Event>,
) -> zbus::Result<()> {
    let bus = Connection::system().await?;
    let (mut messages, mut owners) = signals::follow(&bus).await?;
    let mut reads = Reads::default();
    perform(&bus, &mut reads, events, Command::Connect).await?;
    loop {
        let limit = reads.limit();
        tokio::select! {
            message = messages.next() => {
                let Some(Ok(message)) = message else {
                    let text = "The connection to the system bus has ended.".to_owned();
                    return Err(zbus::Error::Failure(text));
                };
                if take(&mut reads, &mut owners, events, &message) {
                    perform(&bus, &mut reads, events, Command::Connect).await?;
                }
            }
            command = commands.recv() => match command {
                None => return Ok(()),
                Some(command) => perform(&bus, &mut reads, events, command).await?,
            },
            () = until(limit) => send(events, reads.expire(Instant::now())),
        }
    }
}

async fn until(limit: Option<Instant>) {
    match limit {
        Some(limit) => sleep_until(limit).await,
        None => pending().await,
    }
}

/// Takes a message of the bus, and returns whether the machines are to be read again.
fn take(
    reads: &mut Reads,
    owners: &mut Owners,
    events: &UnboundedSender<Event>,
    message: &Message,
) -> bool {
    send(events, reads.answer(message, Instant::now()));
    match signals::read(message, owners) {
        Some(Signal::ServiceStarted) => return true,
        Some(Signal::Event(event)) => send(events, [event]),
        None => {}
    }
    false
}

/// Sends a read. Performs another command beside others, because polkit can wait for the user for minutes.
async fn perform(
    bus: &Connection,
    reads: &mut Reads,
    events: &UnboundedSender<Event>,
    command: Command,
) -> zbus::Result<()> {
    if let Some(message) = reads::message(&command)? {
        reads.add(
            message.primary_header().serial_num(),
            command,
            Instant::now(),
        );
        return bus.send(&message).await;
    }
    let (bus, events) = (bus.clone(), events.clone());
    tokio::spawn(async move { send(&events, calls::perform(&bus, command).await) });
    Ok(())
}
