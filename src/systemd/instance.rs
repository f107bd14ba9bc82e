//! The instance of systemd on the bus: its unique name, and the ends of its jobs.
//!
//! One task follows it for all machines. It does nothing else, because zbus reads nothing more from the
//! connection while a stream is full.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use zbus::fdo::{self, DBusProxy};
use zbus::message::Type;
use zbus::names::{BusName, OwnedUniqueName};
use zbus::proxy::CacheProperties;
use zbus::{Connection, MatchRule, Message, MessageStream, ObjectPath, OwnedObjectPath};

use crate::placement::UnitError;

const SERVICE: &str = "org.freedesktop.systemd1";
pub(super) const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// The pause after the bus daemon refused to say where systemd is.
const PAUSE: Duration = Duration::from_secs(1);

/// Whether systemd is on the bus.
#[derive(Clone, Debug, Default)]
pub(super) enum Presence {
    /// The bus daemon was not asked yet.
    #[default]
    Unknown,
    /// It is not, for this reason.
    Absent(String),
    /// It is.
    Present(Arc<Instance>),
}

/// One systemd. After it was executed again, it is another one.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) connection: Connection,
    pub(super) name: OwnedUniqueName,
    /// The starts that wait for the end of a job, by the names of their units; `None` after systemd left.
    waiting: Mutex<Option<HashMap<String, mpsc::UnboundedSender<JobEnd>>>>,
}

/// The end of a job.
#[derive(Debug)]
pub(super) struct JobEnd {
    pub(super) job: OwnedObjectPath,
    pub(super) result: String,
}

/// Number, job, unit and result of the signal `JobRemoved`.
type JobRemoved<'a> = (u32, ObjectPath<'a>, &'a str, &'a str);

impl Instance {
    fn new(connection: Connection, name: OwnedUniqueName) -> Self {
        Self {
            connection,
            name,
            waiting: Mutex::new(Some(HashMap::new())),
        }
    }

    /// Returns the ends of jobs of the unit `name` from now on. There are no more when systemd leaves.
    ///
    /// # Errors
    ///
    /// Fails if it has left.
    pub(super) fn job_ends(
        &self,
        name: &str,
    ) -> Result<mpsc::UnboundedReceiver<JobEnd>, UnitError> {
        let mut waiting = self.waiting();
        let waiting = waiting.as_mut().ok_or_else(left)?;
        waiting.retain(|_, sender| !sender.is_closed());
        // Only systemd sends to it, about one unit, and for as long as one start waits.
        let (sender, ends) = mpsc::unbounded_channel();
        waiting.insert(name.to_owned(), sender);
        Ok(ends)
    }

    /// Subscribes to the ends of all jobs.
    ///
    /// The sender is matched by its unique name, which the bus daemon writes: any user can send signals.
    async fn jobs(&self) -> zbus::Result<MessageStream> {
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(self.name.as_str())
            .path(PATH)
            .interface(MANAGER)
            .member("JobRemoved")
            .build()?;
        MessageStream::for_match_rule(rule, &self.connection, None).await
    }

    /// Passes on the ends of `jobs` until the connection ends.
    async fn pass_on(&self, mut jobs: MessageStream) -> zbus::Error {
        while let Some(signal) = jobs.next().await {
            match signal {
                Ok(signal) => self.note(&signal),
                Err(error) => return error,
            }
        }
        ended()
    }

    fn note(&self, signal: &Message) {
        let body = signal.body();
        let Ok((_, job, unit, result)) = body.deserialize::<JobRemoved<'_>>() else {
            return;
        };
        let waiting = self.waiting();
        if let Some(sender) = waiting.as_ref().and_then(|waiting| waiting.get(unit)) {
            let (job, result) = (job.to_owned().into(), result.to_owned());
            // The start may wait no longer.
            let _ = sender.send(JobEnd { job, result });
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<HashMap<String, mpsc::UnboundedSender<JobEnd>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows systemd over the current connection.
pub(super) async fn follow(
    mut connections: watch::Receiver<Option<Connection>>,
    presence: watch::Sender<Presence>,
) {
    loop {
        let connection = connections.borrow_and_update().clone();
        let pause = match connection {
            None => {
                let lost = "the connection to the bus is lost".to_owned();
                presence.send_replace(Presence::Absent(lost));
                None
            }
            Some(connection) => tokio::select! {
                Err(error) = follow_on(&connection, &presence) => {
                    presence.send_replace(Presence::Absent(error.to_string()));
                    Some(PAUSE)
                }
                () = changed(&mut connections) => continue,
            },
        };
        tokio::select! {
            () = changed(&mut connections) => {}
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}

async fn changed(connections: &mut watch::Receiver<Option<Connection>>) {
    if connections.changed().await.is_err() {
        // There will be no other one.
        pending().await
    }
}

/// Follows systemd over `connection`, until this ends.
async fn follow_on(
    connection: &Connection,
    presence: &watch::Sender<Presence>,
) -> zbus::Result<Infallible> {
    let bus = DBusProxy::builder(connection).cache_properties(CacheProperties::No);
    let bus = bus.build().await?;
    let filter = [(0, SERVICE)];
    let mut changes = bus.receive_name_owner_changed_with_args(&filter).await?;
    let owner = bus.get_name_owner(BusName::from_static_str(SERVICE)?).await;
    let mut owner = match owner {
        Ok(owner) => Some(owner),
        Err(fdo::Error::NameHasNoOwner(_)) => None,
        Err(error) => return Err(error.into()),
    };
    loop {
        let change = match owner {
            None => {
                let text = format!("{SERVICE} has no owner");
                presence.send_replace(Presence::Absent(text));
                changes.next().await
            }
            Some(name) => {
                let (present, jobs) = Present::announce(connection, name, presence).await?;
                tokio::select! {
                    change = changes.next() => change,
                    error = present.instance.pass_on(jobs) => return Err(error),
                }
            }
        };
        let change = change.ok_or_else(ended)?;
        owner = change
            .args()?
            .new_owner
            .as_ref()
            .map(|name| name.to_owned().into());
    }
}

/// An instance that is announced as present while this exists.
struct Present<'a> {
    instance: Arc<Instance>,
    presence: &'a watch::Sender<Presence>,
}

impl<'a> Present<'a> {
    /// Announces the systemd of the unique name `name`. Returns the ends of its jobs too.
    async fn announce(
        connection: &Connection,
        name: OwnedUniqueName,
        presence: &'a watch::Sender<Presence>,
    ) -> zbus::Result<(Self, MessageStream)> {
        let instance = Arc::new(Instance::new(connection.clone(), name));
        let jobs = instance.jobs().await?;
        presence.send_replace(Presence::Present(instance.clone()));
        Ok((Self { instance, presence }, jobs))
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        let text = "it has left the bus".to_owned();
        self.presence.send_replace(Presence::Absent(text));
        *self.instance.waiting() = None;
    }
}

/// Returns the error of a request that systemd did not answer before it left.
pub(super) fn left() -> UnitError {
    UnitError::Absent("it has left the bus".to_owned())
}

fn ended() -> zbus::Error {
    zbus::Error::Failure("the connection to the bus has ended".to_owned())
}
