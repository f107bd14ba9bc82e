//! The connection to the system bus, which can be lost and made again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use zbus::connection::Builder;
use zbus::fdo::{DBusProxy, RequestNameFlags, RequestNameReply};
use zbus::proxy::CacheProperties;
use zbus::{Connection, names};

use super::edge::{self, Gate, run_errands};
use crate::idle::Calls;
use crate::ids::Uid;
use crate::names::BUS_NAME;

/// How long the bus daemon may take to accept a connection.
const LIMIT: Duration = Duration::from_secs(10);

/// Why the service does not own its name.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// Another process owns it.
    #[error("{BUS_NAME} is owned by another process; is vcpud running already?")]
    Taken,
    /// The bus daemon did not answer.
    #[error("cannot own {BUS_NAME} on the system bus: {0}")]
    Bus(#[from] zbus::Error),
}

/// One connection to the bus, with the users of its callers.
///
/// Names of callers mean nothing in another session: a bus daemon that was restarted gives them to
/// others.
#[derive(Clone, Debug)]
pub(super) struct Session(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `None` before the connection is made, and after it is lost.
    connection: Mutex<Option<Connection>>,
    gate: Arc<Gate>,
}

impl Session {
    /// Connects. `serve` adds the objects of the session, which are there from the first call on.
    ///
    /// # Errors
    ///
    /// Those of the socket, the authentication and the first call.
    pub(super) async fn open(
        calls: &Calls,
        serve: impl FnOnce(Builder<'static>, &Session) -> Builder<'static>,
    ) -> zbus::Result<Self> {
        let (gate, errands) = Gate::new(calls.clone());
        let gate = Arc::new(gate);
        let session = Self(Arc::new(Inner {
            connection: Mutex::new(None),
            gate: gate.clone(),
        }));
        let builder = Builder::socket(edge::connect(gate.clone())?);
        let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
        let opening = serve(builder, &session).build();
        let connection = timeout(LIMIT, opening).await.map_err(late)??;
        if let Some(name) = connection.unique_name() {
            gate.set_own_name(name);
        }
        session.set(Some(connection.clone()));
        // Ends with the connection.
        tokio::spawn(run_errands(connection, gate, errands));
        Ok(session)
    }

    /// The connection, while there is one.
    pub(super) fn connection(&self) -> Option<Connection> {
        let connection = self.0.connection.lock();
        connection.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets go of a connection that is lost. Objects that hold the session hold it no longer.
    pub(super) fn close(&self) {
        self.set(None);
    }

    /// Ends a connection that is not used. Else its objects and its own tasks would keep it.
    pub(super) async fn abandon(&self) {
        if let Some(connection) = self.connection() {
            let _ = connection.close().await;
        }
        self.close();
    }

    /// The user who sent a call that is under way.
    pub(super) fn user_of(&self, sender: &names::UniqueName<'_>) -> Option<Uid> {
        self.0.gate.user_of(sender)
    }

    fn set(&self, connection: Option<Connection>) {
        let current = self.0.connection.lock();
        *current.unwrap_or_else(PoisonError::into_inner) = connection;
    }
}

/// The current connection, for all parts of the service that send messages.
#[derive(Clone, Debug)]
pub struct Link {
    connections: watch::Sender<Option<Connection>>,
    owns_name: Arc<AtomicBool>,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            connections: watch::Sender::new(None),
            owns_name: Arc::default(),
        }
    }
}

impl Link {
    /// The connection, while there is one.
    pub fn connection(&self) -> Option<Connection> {
        self.connections.borrow().clone()
    }

    /// The connections from now on.
    pub fn connections(&self) -> watch::Receiver<Option<Connection>> {
        self.connections.subscribe()
    }

    pub(super) fn set(&self, connection: Option<Connection>) {
        self.connections.send_replace(connection);
    }

    /// Checks that no other process owns the service's name.
    ///
    /// # Errors
    ///
    /// [`NameError::Taken`] if another process owns it, or the error of the bus daemon.
    pub async fn check_name(&self) -> Result<(), NameError> {
        let Some(connection) = self.connection() else {
            return Ok(());
        };
        let bus = DBusProxy::builder(&connection).cache_properties(CacheProperties::No);
        let name = names::BusName::from_static_str(BUS_NAME)?;
        let is_owned = bus.build().await?.name_has_owner(name).await;
        if is_owned.map_err(zbus::Error::from)? {
            return Err(NameError::Taken);
        }
        Ok(())
    }

    /// Owns the service's name, now and after each reconnection.
    ///
    /// # Errors
    ///
    /// [`NameError`], and nothing is owned.
    pub async fn own_name(&self) -> Result<(), NameError> {
        if let Some(connection) = self.connection() {
            request_name(&connection).await?;
        }
        self.owns_name.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the name is to be owned.
    pub(super) fn owns_name(&self) -> bool {
        self.owns_name.load(Ordering::Relaxed)
    }

    /// Lets go of the service's name. A bus that is gone has done so.
    pub async fn release_name(&self) {
        self.owns_name.store(false, Ordering::Relaxed);
        if let Some(connection) = self.connection() {
            let _ = timeout(LIMIT, connection.release_name(BUS_NAME)).await;
        }
    }
}

/// Opens another connection, for calls of the service only. It has no name, so the bus daemon passes on no
/// calls of users. It has the limits of the edge, because users can send it signals.
///
/// # Errors
///
/// Those of the socket and the authentication.
pub async fn connect() -> zbus::Result<Connection> {
    let (gate, _) = Gate::new(Calls::default());
    let opening = Builder::socket(edge::connect(Arc::new(gate))?).build();
    let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    timeout(LIMIT, opening).await.map_err(late)?
}

/// Owns the service's name over `connection`.
pub(super) async fn request_name(connection: &Connection) -> Result<(), NameError> {
    let flags = RequestNameFlags::DO_NOT_QUEUE;
    match connection.request_name_with_flags(BUS_NAME, flags).await {
        Ok(RequestNameReply::PrimaryOwner) => Ok(()),
        Ok(_) | Err(zbus::Error::NameTaken) => Err(NameError::Taken),
        Err(error) => Err(error.into()),
    }
}
