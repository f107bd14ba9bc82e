//! The publisher: turns what machines tell into objects and signals, in order, one at a time.

use std::borrow::Cow;
use std::collections::HashMap;

use tokio::sync::mpsc;
use tracing::error;
use zbus::Connection;
use zbus::fdo::Properties;
use zbus::names::InterfaceName;
use zbus::object_server::{Interface, SignalEmitter};
use zbus::{ObjectPath, OwnedObjectPath, OwnedVariant, Variant};

use super::authority::Authority;
use super::directory::Directory;
use super::machine::MachineObject;
use super::manager::{Manager, path};
use super::operation::Records;
use crate::machine::{Handle, News, Notice, Vcpu};
use crate::names::{MACHINE_INTERFACE, MANAGER_INTERFACE, MachineName, ROOT_PATH};

/// Puts machines on the bus.
#[derive(Debug)]
pub struct Publisher {
    connection: Connection,
    authority: Authority,
    records: Records,
    directory: Directory,
    published: HashMap<MachineName, Published>,
}

/// A machine that is on the bus, and what was last said of it there.
#[derive(Debug)]
struct Published {
    object: MachineObject,
    emitter: SignalEmitter<'static>,
    properties: HashMap<String, OwnedVariant>,
}

impl Publisher {
    /// A publisher that keeps `directory` true to what is on the bus of `connection`.
    pub fn new(
        connection: Connection,
        authority: Authority,
        records: Records,
        directory: Directory,
    ) -> Self {
        Self {
            connection,
            authority,
            records,
            directory,
            published: HashMap::new(),
        }
    }

    /// Publishes until nobody tells anything any more.
    pub async fn run(mut self, mut notices: mpsc::Receiver<Notice>) {
        while let Some(notice) = notices.recv().await {
            match notice {
                Notice::Barrier(passed) => {
                    let _ = passed.send(());
                }
                Notice::Problems(problems) => {
                    if let Err(error) = self.publish_problems(problems).await {
                        error!(%error, "cannot publish on the bus");
                    }
                }
                Notice::News { machine, news } => {
                    if let Err(error) = self.publish(&machine, news).await {
                        // The connection is lost, which ends the service.
                        error!(%machine, %error, "cannot publish on the bus");
                    }
                }
            }
        }
    }

    async fn publish_problems(&self, problems: Vec<String>) -> zbus::Result<()> {
        self.directory.set_problems(problems.clone());
        let interface = InterfaceName::from_static_str_unchecked(MANAGER_INTERFACE);
        let changed = HashMap::from([("ConfigurationErrors", Variant::from(problems))]);
        Properties::properties_changed(&self.root()?, interface, changed, Cow::Borrowed(&[])).await
    }

    async fn publish(&mut self, machine: &MachineName, news: News) -> zbus::Result<()> {
        match news {
            News::Appeared(handle) => return self.add(handle).await,
            News::Vanished => return self.remove(machine).await,
            _ => {}
        }
        let Some(published) = self.published.get_mut(machine) else {
            return Ok(());
        };
        let emitter = published.emitter.clone();
        match news {
            News::Changed => published.tell_changes(&self.connection).await,
            News::VcpuAdded(vcpu) => {
                let details = details(&vcpu);
                MachineObject::vcpu_added(&emitter, vcpu.id, &vcpu.alias, details).await
            }
            News::VcpuRemoved(vcpu) => {
                let details = details(&vcpu);
                MachineObject::vcpu_removed(&emitter, vcpu.id, &vcpu.alias, details).await
            }
            News::VcpuRemovalFailed { vcpu, reason } => {
                let details = details(&vcpu);
                let (id, alias) = (vcpu.id, &vcpu.alias);
                MachineObject::vcpu_removal_failed(&emitter, id, alias, &reason, details).await
            }
            News::Appeared(_) | News::Vanished => Ok(()),
        }
    }

    async fn add(&mut self, machine: Handle) -> zbus::Result<()> {
        let path = path(&machine);
        let name = machine.name().clone();
        let (authority, records) = (self.authority.clone(), self.records.clone());
        let object = MachineObject::new(machine.clone(), authority, records);
        let emitter = SignalEmitter::new(&self.connection, path.clone())?.into_owned();
        let mut published = Published {
            properties: HashMap::new(),
            object: object.clone(),
            emitter,
        };
        // Taken before the object can be read, so what changes from here on is told.
        published.properties = published.read(&self.connection).await?;
        let server = self.connection.object_server();
        server.at(&path, object).await?;
        self.directory.insert(machine);
        published.tell_changes(&self.connection).await?;
        self.published.insert(name.clone(), published);
        Manager::machine_added(&self.root()?, name.as_str(), &path).await
    }

    async fn remove(&mut self, name: &MachineName) -> zbus::Result<()> {
        self.directory.remove(name);
        if self.published.remove(name).is_none() {
            return Ok(());
        }
        let path = OwnedObjectPath::from(ObjectPath::from_string_unchecked(name.object_path()));
        let server = self.connection.object_server();
        server.remove::<MachineObject, _>(&path).await?;
        Manager::machine_removed(&self.root()?, name.as_str(), &path).await
    }

    fn root(&self) -> zbus::Result<SignalEmitter<'static>> {
        SignalEmitter::new(&self.connection, ROOT_PATH)
    }
}

impl Published {
    async fn read(&self, connection: &Connection) -> zbus::Result<HashMap<String, OwnedVariant>> {
        let server = connection.object_server();
        let properties = self.object.get_all(server, connection, None, &self.emitter);
        Ok(properties.await?)
    }

    /// One `PropertiesChanged` with all that is not as it was last told.
    async fn tell_changes(&mut self, connection: &Connection) -> zbus::Result<()> {
        let now = self.read(connection).await?;
        let is_new =
            |(name, value): &(&String, &OwnedVariant)| self.properties.get(*name) != Some(value);
        let changed: HashMap<&str, Variant<'_>> = now
            .iter()
            .filter(is_new)
            .map(|(name, value)| (name.as_str(), Variant::clone(value)))
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        let interface = InterfaceName::from_static_str_unchecked(MACHINE_INTERFACE);
        Properties::properties_changed(&self.emitter, interface, changed, Cow::Borrowed(&[]))
            .await?;
        self.properties = now;
        Ok(())
    }
}

fn details(vcpu: &Vcpu) -> HashMap<&'static str, Variant<'static>> {
    let mut details = HashMap::from([("cause", vcpu.cause.as_str().into())]);
    if let Some(uid) = vcpu.uid {
        details.insert("uid", uid.into());
    }
    details
}
