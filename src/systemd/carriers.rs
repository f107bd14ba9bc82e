//! The connections for calls with descriptors.
//!
//! The bus daemon reads nothing more from a connection while 64 of its descriptors are under way, and counts
//! a descriptor until the last monitor of the bus has read it (`busctl monitor`). So such calls are not made
//! over the service's own connection, and a connection for them is replaced before it is stopped.

use std::fmt;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use zbus::Connection;

/// How many descriptors a connection carries.
const DESCRIPTORS: u32 = 32;

type Connect = Box<dyn Fn() -> BoxFuture<'static, zbus::Result<Connection>> + Send + Sync>;

/// The connections of one service.
pub(super) struct Carriers {
    connect: Connect,
    /// The present connection, and how many descriptors it may still carry.
    current: Mutex<Option<(Connection, u32)>>,
}

impl Carriers {
    /// Returns connections that `connect` makes.
    pub(super) fn new<F>(connect: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = zbus::Result<Connection>> + Send + 'static,
    {
        Self {
            connect: Box::new(move || connect().boxed()),
            current: Mutex::default(),
        }
    }

    /// Returns a connection for one descriptor.
    ///
    /// # Errors
    ///
    /// Fails if the bus daemon does not accept another connection.
    pub(super) async fn next(&self) -> zbus::Result<Connection> {
        let mut current = self.current.lock().await;
        if let Some((connection, left)) = &mut *current
            && *left > 0
            && connection.closed().now_or_never().is_none()
        {
            *left -= 1;
            return Ok(connection.clone());
        }
        let connection = (self.connect)().await?;
        *current = Some((connection.clone(), DESCRIPTORS - 1));
        Ok(connection)
    }
}

impl fmt::Debug for Carriers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carriers").finish_non_exhaustive()
    }
}
