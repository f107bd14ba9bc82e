//! When the service has nothing to do, and may end until somebody needs it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use zbus::message::Type;
use zbus::{Connection, Message, MessageStream};

/// After the name is given up, calls that were on their way are answered. It takes
/// milliseconds; one that comes starts this time anew.
const LAST_CALLS: Duration = Duration::from_millis(500);

/// The calls that others make over a connection.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    last: Arc<watch::Sender<Instant>>,
}

impl Calls {
    /// Watches the calls that come over `connection`.
    pub(crate) fn watch(connection: &Connection) -> Self {
        let last = Arc::new(watch::Sender::new(Instant::now()));
        let calls = Self { last: last.clone() };
        let mut messages = MessageStream::from(connection);
        let own = connection.unique_name().cloned();
        let is_call = move |message: &Message| {
            let is_own = message.header().sender() == own.as_deref();
            message.message_type() == Type::MethodCall && !is_own
        };
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                if message.is_ok_and(|message| is_call(&message)) {
                    last.send_replace(Instant::now());
                }
            }
        });
        calls
    }

    /// Waits until no call came for `limit`.
    pub(crate) async fn silence(&self, limit: Duration) {
        loop {
            let end = *self.last.borrow() + limit;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }

    /// Waits until the calls that came before are answered, where that takes no time.
    pub(crate) async fn last_calls(&self) {
        sleep(LAST_CALLS).await;
        self.silence(LAST_CALLS).await;
    }
}
