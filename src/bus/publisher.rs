//! The publisher: turns what machines tell into objects and signals, in order, one at a time.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};
use zbus::connection::Builder;
use zbus::fdo::Properties;
use zbus::names::InterfaceName;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, ObjectPath, OwnedObjectPath, Variant};

use super::authority::Authority;
use super::directory::Directory;
use super::link::{Link, NameError, Session, request_name};
use super::machine::MachineObject;
use super::manager::{Manager, path};
use super::objects::{self, Objects};
use super::published::Published;
use super::queue::Queue;
use crate::audit::Audit;
use crate::idle::Calls;
use crate::machine::{BusMessage, Handle, MachineEvent, VcpuChange};
use crate::names::{MANAGER_INTERFACE, MachineName, ROOT_PATH};
use crate::registry::Registrar;

/// The pauses between attempts to connect grow from the first to the last.
const BACKOFF: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(5);
/// How often an attempt may fail because another process owns the name. For a while that is the
/// lost connection itself, until the bus daemon notices that it is.
const TRIES_FOR_NAME: u32 = 10;
/// A write that fails comes before the end of the connection is noticed, within this time.
const END_GRACE: Duration = Duration::from_secs(1);

/// Puts machines on the bus, and keeps the connection to it.
#[derive(Debug)]
pub struct Publisher {
    link: Link,
    calls: Calls,
    session: Session,
    queue: Queue,
    audit: Arc<Audit>,
    registrar: Registrar,
    directory: Directory,
    published: HashMap<MachineName, Published>,
    /// Machines that are new and that no client heard of, because the service did not own its name.
    unannounced: Vec<MachineName>,
}

impl Publisher {
    /// Connects to the system bus, with the root object in place: a call that comes before there
    /// is any object is never answered.
    ///
    /// The publisher keeps `directory` true to what is on the bus. Calls are noted in `calls`.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub async fn connect(
        link: Link,
        calls: Calls,
        directory: Directory,
        registrar: Registrar,
        audit: Arc<Audit>,
    ) -> zbus::Result<Self> {
        let queue = Queue::new();
        let serve = |builder: Builder<'static>, session: &Session| {
            let authority = Authority::new(session.clone(), queue.clone(), audit.clone());
            serve_root(builder, &directory, &registrar, authority)
        };
        let session = Session::open(&calls, serve).await?;
        link.set(session.connection());
        Ok(Self {
            link,
            calls,
            session,
            queue,
            audit,
            registrar,
            directory,
            published: HashMap::new(),
            unannounced: Vec::new(),
        })
    }

    /// Publishes until there is nothing more to publish. A connection that is lost is made again.
    ///
    /// # Errors
    ///
    /// [`NameError::Taken`] if another process owns the name after a reconnection.
    pub async fn run(mut self, mut notices: mpsc::Receiver<BusMessage>) -> Result<(), NameError> {
        loop {
            let connection = self.session.connection();
            let lost = async {
                if let Some(connection) = connection {
                    connection.closed().await;
                }
            };
            tokio::select! {
                () = lost => self.reconnect().await?,
                notice = notices.recv() => match notice {
                    Some(notice) => self.deliver(notice).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    /// Publishes one notice, over another connection if this one is lost.
    async fn deliver(&mut self, notice: BusMessage) -> Result<(), NameError> {
        let notice = match notice {
            BusMessage::Completion(completion) => {
                completion.run();
                return Ok(());
            }
            notice => notice,
        };
        loop {
            let Some(connection) = self.session.connection() else {
                self.reconnect().await?;
                continue;
            };
            let Err(error) = self.publish(&connection, &notice).await else {
                return Ok(());
            };
            if !self.is_lost().await {
                error!(%error, ?notice, "cannot publish on the bus");
                return Ok(());
            }
            self.reconnect().await?;
        }
    }

    /// Whether the connection ended, or ends now.
    async fn is_lost(&self) -> bool {
        match self.session.connection() {
            Some(connection) => timeout(END_GRACE, connection.closed()).await.is_ok(),
            None => true,
        }
    }

    /// Connects again, as often as that takes.
    async fn reconnect(&mut self) -> Result<(), NameError> {
        self.link.set(None);
        self.session.close();
        warn!("the connection to the system bus is lost; connecting again");
        let mut pause = *BACKOFF.start();
        let mut tries = 0;
        loop {
            sleep(pause).await;
            pause = (pause * 2).min(*BACKOFF.end());
            match self.connect_again().await {
                Ok(()) => return Ok(()),
                Err(NameError::Taken) if tries == TRIES_FOR_NAME => return Err(NameError::Taken),
                Err(NameError::Taken) => tries += 1,
                Err(NameError::Bus(error)) => debug!(%error, "cannot connect to the system bus"),
            }
        }
    }

    /// Connects once, with all objects in place, and says what changed since it was last said.
    async fn connect_again(&mut self) -> Result<(), NameError> {
        let mut objects = Vec::new();
        let serve = |mut builder: Builder<'static>, session: &Session| {
            let authority = self.authority(session);
            for machine in self.directory.all() {
                let object = MachineObject::new(machine.clone(), authority.clone());
                builder = builder.serve_at(path(&machine), object.clone());
                objects.push((machine, object));
            }
            serve_root(builder, &self.directory, &self.registrar, authority)
        };
        let session = Session::open(&self.calls, serve).await?;
        let taken_over = self.take_over(&session, objects).await;
        match taken_over {
            Ok(()) => self.session = session,
            Err(_) => session.abandon().await,
        }
        taken_over
    }

    /// Publishes over `session`, where `objects` are served, from now on.
    async fn take_over(
        &mut self,
        session: &Session,
        objects: Vec<(Handle, MachineObject)>,
    ) -> Result<(), NameError> {
        let connection = session.connection().ok_or(zbus::Error::InvalidReply)?;
        for (machine, object) in objects {
            if let Some(published) = self.published.get_mut(machine.name()) {
                let emitter = SignalEmitter::new(&connection, path(&machine))?.into_owned();
                published.move_to(object, emitter);
            }
        }
        if self.link.owns_name() {
            request_name(&connection).await?;
        }
        for published in self.published.values_mut() {
            published.tell_changes().await?;
        }
        self.link.set(Some(connection));
        info!("connected to the system bus again");
        Ok(())
    }

    async fn publish(&mut self, connection: &Connection, notice: &BusMessage) -> zbus::Result<()> {
        match notice {
            BusMessage::Completion(_) => Ok(()),
            BusMessage::Problems(problems) => self.publish_problems(connection, problems).await,
            BusMessage::NameOwned => self.announce_all(connection).await,
            BusMessage::Appeared { machine, is_known } => {
                self.add(connection, machine.clone(), *is_known).await
            }
            BusMessage::Event { machine, event } => {
                self.publish_event(connection, machine, event).await
            }
        }
    }

    async fn publish_problems(
        &self,
        connection: &Connection,
        problems: &[String],
    ) -> zbus::Result<()> {
        self.directory.set_problems(problems.to_vec());
        let interface = InterfaceName::from_static_str_unchecked(MANAGER_INTERFACE);
        let changed = HashMap::from([("ConfigurationErrors", Variant::from(problems.to_vec()))]);
        Properties::properties_changed(&root(connection)?, interface, changed, Cow::Borrowed(&[]))
            .await
    }

    async fn publish_event(
        &mut self,
        connection: &Connection,
        machine: &MachineName,
        event: &MachineEvent,
    ) -> zbus::Result<()> {
        if let MachineEvent::Vanished = event {
            return self.remove(connection, machine).await;
        }
        let Some(published) = self.published.get_mut(machine) else {
            return Ok(());
        };
        let emitter = published.emitter();
        match event {
            MachineEvent::Changed => published.tell_changes().await,
            MachineEvent::VcpuAdded(vcpu) => {
                let details = details(vcpu);
                MachineObject::vcpu_added(emitter, vcpu.id.get(), &vcpu.alias, details).await
            }
            MachineEvent::VcpuStarted(vcpu) => {
                let details = details(vcpu);
                MachineObject::vcpu_started(emitter, vcpu.id.get(), &vcpu.alias, details).await
            }
            MachineEvent::VcpuRemoved(vcpu) => {
                let details = details(vcpu);
                MachineObject::vcpu_removed(emitter, vcpu.id.get(), &vcpu.alias, details).await
            }
            MachineEvent::VcpuRemovalFailed { vcpu, reason } => {
                let mut details = details(vcpu);
                details.insert("reason-code", reason.code.as_str().into());
                let (id, alias) = (vcpu.id.get(), &vcpu.alias);
                MachineObject::vcpu_removal_failed(emitter, id, alias, &reason.text, details).await
            }
            MachineEvent::Appeared { .. } | MachineEvent::Vanished => Ok(()),
        }
    }

    /// Emits what clients could not receive before the service owned its name.
    async fn announce_all(&mut self, connection: &Connection) -> zbus::Result<()> {
        let root = root(connection)?;
        for name in std::mem::take(&mut self.unannounced) {
            if let Some(published) = self.published.get(&name) {
                let path = published.emitter().path();
                let known = published.known().get();
                objects::announce(&root, path.as_ref(), known.decode()?).await?;
                Manager::machine_added(&root, name.as_str(), path).await?;
            }
        }
        Ok(())
    }

    /// Serves a machine. With `is_known`, a previous instance emitted that it was added.
    async fn add(
        &mut self,
        connection: &Connection,
        machine: Handle,
        is_known: bool,
    ) -> zbus::Result<()> {
        let path = path(&machine);
        let name = machine.name().clone();
        let object = MachineObject::new(machine.clone(), self.authority(&self.session));
        let emitter = SignalEmitter::new(connection, path.clone())?.into_owned();
        // Read before clients can read the object, so that later changes are emitted.
        let mut published = Published::read(object.clone(), emitter).await?;
        let server = connection.object_server();
        server.at(&path, object).await?;
        self.directory.insert(machine, published.known().clone());
        published.tell_changes().await?;
        self.published.insert(name.clone(), published);
        if self.link.owns_name() {
            return Manager::machine_added(&root(connection)?, name.as_str(), &path).await;
        }
        if !is_known {
            self.unannounced.push(name);
        }
        Ok(())
    }

    async fn remove(&mut self, connection: &Connection, name: &MachineName) -> zbus::Result<()> {
        self.directory.remove(name);
        if !self.published.contains_key(name) {
            return Ok(());
        }
        let path = OwnedObjectPath::from(ObjectPath::from_string_unchecked(name.object_path()));
        let server = connection.object_server();
        match server.remove::<MachineObject, _>(&path).await {
            // A new connection may have been made without it.
            Ok(_) | Err(zbus::Error::InterfaceNotFound) => {}
            Err(error) => return Err(error),
        }
        Manager::machine_removed(&root(connection)?, name.as_str(), &path).await?;
        self.published.remove(name);
        Ok(())
    }

    fn authority(&self, session: &Session) -> Authority {
        Authority::new(session.clone(), self.queue.clone(), self.audit.clone())
    }
}

/// The root object, with all that is served there.
fn serve_root(
    builder: Builder<'static>,
    directory: &Directory,
    registrar: &Registrar,
    authority: Authority,
) -> Builder<'static> {
    let objects = Objects::new(directory.clone());
    let manager = Manager::new(directory.clone(), registrar.clone(), authority);
    builder
        .serve_at(ROOT_PATH, manager)
        .serve_at(ROOT_PATH, objects)
}

fn root(connection: &Connection) -> zbus::Result<SignalEmitter<'static>> {
    SignalEmitter::new(connection, ROOT_PATH)
}

fn details(vcpu: &VcpuChange) -> HashMap<&'static str, Variant<'static>> {
    let mut details = HashMap::from([("cause", vcpu.cause.as_str().into())]);
    if let Some(uid) = vcpu.uid {
        details.insert("uid", uid.get().into());
    }
    details
}
