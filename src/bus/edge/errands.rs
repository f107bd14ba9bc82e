//! The errands of the gate, which need the connection: errors for refused calls, and questions to the
//! bus daemon about the users of callers and about unread replies.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::unfold;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::debug;
use zbus::fdo::{DBusProxy, StatsProxy};
use zbus::names::{BusName, UniqueName};
use zbus::proxy::CacheProperties;
use zbus::{Connection, Message};

use super::gate::{Errands, Gate};
use crate::ids::Uid;

/// How long the bus daemon may take for an answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Users that are asked for at a time.
const QUESTIONS: usize = 8;
/// Serial of all refusals. They answer no call that was handed over, though one may have the same
/// serial as the refused call.
pub(super) const SERIAL: NonZeroU32 = NonZeroU32::MAX;
/// Pause before it is asked about unread replies again.
const PAUSE: Duration = Duration::from_millis(50);
/// Pause after which all is believed to be read, where the bus daemon does not say: so some 4 MiB
/// are sent in a second.
const BELIEF: Duration = Duration::from_millis(500);

/// Does the errands of `gate` over `connection`, until the connection ends.
pub(in crate::bus) async fn run_errands(connection: Connection, gate: Arc<Gate>, errands: Errands) {
    let refuse = async {
        let mut refusals = errands.refusals;
        while let Some(refused) = refusals.recv().await {
            let serial = NonZeroU32::new(refused.serial);
            let error =
                serial.map(|serial| refusal(&refused.sender, serial, refused.name, &refused.text));
            if let Some(Ok(error)) = error
                && let Err(error) = connection.send(&error).await
            {
                debug!(%error, "an error was not sent");
            }
        }
    };
    tokio::select! {
        ((), (), ()) = async { tokio::join!(
            refuse,
            identify(&connection, &gate, errands.strangers),
            watch_unread(&connection, &gate),
        ) } => {}
        () = connection.closed() => {}
    }
}

/// The error that tells `caller` why its call `serial` is refused.
pub(super) fn refusal(
    caller: &str,
    serial: NonZeroU32,
    name: &'static str,
    text: &str,
) -> zbus::Result<Message> {
    // Stands for the call: an error needs its sender and its serial.
    let call = Message::method_call("/", "Refused")
        .sender(UniqueName::try_from(caller)?)
        .serial(serial)
        .build(&())?;
    Message::error(&call.header(), name)
        .serial(SERIAL)
        .build(&(text,))
}

/// Asks the bus daemon for the users of `strangers`.
async fn identify(connection: &Connection, gate: &Gate, strangers: mpsc::Receiver<String>) {
    let strangers = unfold(strangers, async |mut strangers| {
        Some((strangers.recv().await?, strangers))
    });
    let identify = async |sender: String| {
        let uid = user_of(connection, &sender).await;
        if let Err(error) = &uid {
            debug!(sender, %error, "the user of a caller is not known");
        }
        gate.identify(&sender, uid.ok());
    };
    strangers.for_each_concurrent(QUESTIONS, identify).await;
}

async fn user_of(connection: &Connection, sender: &str) -> zbus::Result<Uid> {
    let bus = DBusProxy::builder(connection).cache_properties(CacheProperties::No);
    let bus = bus.build().await?;
    let ask = bus.get_connection_unix_user(BusName::try_from(sender)?);
    in_time(ask).await.map(Uid)
}

/// Asks the bus daemon how much it still holds for callers that may leave replies unread.
async fn watch_unread(connection: &Connection, gate: &Gate) {
    loop {
        let Some(sender) = gate.ask_about() else {
            gate.unread.notified().await;
            continue;
        };
        match unread(connection, &sender).await {
            Ok(unread) => {
                gate.told(&sender, unread);
                if unread > 0 {
                    sleep(PAUSE).await;
                }
            }
            Err(error) if is_gone(&error) => gate.gone(&sender),
            Err(error) => {
                debug!(sender, %error, "the bus daemon does not say what is unread");
                sleep(BELIEF).await;
                gate.told(&sender, 0);
            }
        }
    }
}

/// The bytes that the bus daemon holds for `sender`.
async fn unread(connection: &Connection, sender: &str) -> zbus::Result<u64> {
    let stats = StatsProxy::builder(connection).cache_properties(CacheProperties::No);
    let stats = stats.build().await?;
    let ask = stats.get_connection_stats(BusName::try_from(sender)?);
    let stats = in_time(ask).await?;
    Ok(stats.outgoing_bytes().unwrap_or_default().into())
}

/// The answer of the bus daemon, if it comes in time.
async fn in_time<T>(ask: impl Future<Output = zbus::fdo::Result<T>>) -> zbus::Result<T> {
    let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    Ok(timeout(LIMIT, ask).await.map_err(late)??)
}

/// Whether the sender that was asked about has left.
fn is_gone(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::FDO(error) if matches!(**error, zbus::fdo::Error::NameHasNoOwner(_)))
}
