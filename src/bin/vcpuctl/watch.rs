//! Follows the removals of a machine by its signals.

use std::collections::HashMap;
use std::num::NonZero;

use futures_util::FutureExt;
use vcpud::names::{MACHINE_INTERFACE, MANAGER_INTERFACE};
use vcpud::proxy::MachineProxy;
use vcpud::signals::Signals;
use zbus::{Message, OwnedVariant};

use crate::client::Client;
use crate::failure::{Failure, Refused};
use crate::render;

type Dict = HashMap<String, OwnedVariant>;

/// The number of signals that can wait. zbus reads no replies while this number waits.
const QUEUE: NonZero<usize> = NonZero::<usize>::MIN.saturating_add(1023);

/// The removals of a machine since the start of the watch.
pub(crate) struct Watch {
    machine: MachineProxy<'static>,
    name: String,
    signals: Signals,
    pub(crate) pending: Vec<u32>,
    pub(crate) removed: Vec<u32>,
    pub(crate) refused: Vec<Refused>,
}

impl Watch {
    /// Starts to follow the machine `name`.
    pub(crate) async fn new(client: &Client, name: &str) -> Result<Self, Failure> {
        let machine = client.machine(name).await?;
        let signals = Signals::subscribe(&client.bus, Some(QUEUE)).await?;
        Ok(Self {
            pending: machine.pending_removals().await?,
            machine,
            name: name.to_owned(),
            signals,
            removed: Vec::new(),
            refused: Vec::new(),
        })
    }

    /// Waits for a signal that changes one of the lists.
    ///
    /// # Errors
    /// The machine has ended, or the connection to the bus.
    pub(crate) async fn change(&mut self) -> Result<(), Failure> {
        loop {
            let signal = self
                .signals
                .next()
                .await
                .ok_or(zbus::Error::InvalidReply)??;
            if self.note(&signal).await? {
                return Ok(());
            }
        }
    }

    /// Waits until no removal is pending, and all its signals are noted.
    ///
    /// # Errors
    /// The machine has ended, or the connection to the bus.
    pub(crate) async fn settled(&mut self, mut each: impl FnMut(&Self)) -> Result<(), Failure> {
        loop {
            while !self.pending.is_empty() {
                each(self);
                self.change().await?;
            }
            // The reply of ListVcpus follows the signals about what it shows. A property can precede them.
            self.machine.list_vcpus().await?;
            self.pending = self.machine.pending_removals().await?;
            while let Some(Some(signal)) = self.signals.next().now_or_never() {
                self.note(&signal?).await?;
            }
            if self.pending.is_empty() {
                return Ok(());
            }
        }
    }

    /// Notes a signal. Returns whether it changed one of the lists.
    async fn note(&mut self, signal: &Message) -> Result<bool, Failure> {
        let header = signal.header();
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let interface = text(header.interface().map(|name| name.as_str()));
        let member = text(header.member().map(|name| name.as_str()));
        let is_own =
            header.path().map(|path| path.as_str()) == Some(self.machine.inner().path().as_str());
        let body = signal.body();
        match (interface.as_str(), member.as_str()) {
            (MANAGER_INTERFACE, "MachineRemoved") => {
                let (name, _): (String, zbus::OwnedObjectPath) = body.deserialize()?;
                if name == self.name {
                    return Err(Failure::Ended(name));
                }
            }
            ("org.freedesktop.DBus", _) => {
                let (_, _, owner): (String, String, String) = body.deserialize()?;
                if !owner.is_empty() {
                    self.pending = self.machine.pending_removals().await?;
                    return Ok(true);
                }
            }
            (MACHINE_INTERFACE, "VcpuRemoved") if is_own => {
                let (vcpu, _, _): (u32, String, Dict) = body.deserialize()?;
                self.removed.push(vcpu);
                return Ok(true);
            }
            (MACHINE_INTERFACE, "VcpuRemovalFailed") if is_own => {
                let (vcpu, _, reason, details): (u32, String, String, Dict) = body.deserialize()?;
                let code = render::text(details.get("reason-code"));
                self.refused.push(Refused { vcpu, code, reason });
                return Ok(true);
            }
            (_, "PropertiesChanged") if is_own => {
                let (_, mut changed, _): (String, Dict, Vec<String>) = body.deserialize()?;
                let pending = changed.remove("PendingRemovals");
                if let Some(pending) = pending.and_then(|list| list.try_into().ok()) {
                    self.pending = pending;
                    return Ok(true);
                }
            }
            _ => {}
        }
        Ok(false)
    }
}
