//! Owns the unique names of the services, so that signals of other processes have no effect: on the system bus, every
//! user can send a signal to every connection. It must not know what signals mean.

use zbus::Message;
use zbus::fdo::{DBusProxy, Error};
use zbus::message::Type;
use zbus::names::BusName;

use super::{AUTOSCALE, SERVICE};

/// The bus itself, which is its own unique name.
pub(super) const DAEMON: &str = "org.freedesktop.DBus";

/// The unique names of the services that run.
#[derive(Debug, Default)]
pub(super) struct Owners {
    service: Option<String>,
    autoscale: Option<String>,
}

impl Owners {
    /// Asks the bus for the owners. The caller has the match rules for later changes already.
    ///
    /// # Errors
    ///
    /// The bus does not answer.
    pub(super) async fn read(daemon: &DBusProxy<'_>) -> zbus::Result<Self> {
        Ok(Self {
            service: owner(daemon, SERVICE).await?,
            autoscale: owner(daemon, AUTOSCALE).await?,
        })
    }

    /// Takes the owner of a name; an empty owner is the end of a service.
    pub(super) fn change(&mut self, name: &str, owner: &str) {
        let owner = (!owner.is_empty()).then(|| owner.to_owned());
        match name {
            SERVICE => self.service = owner,
            AUTOSCALE => self.autoscale = owner,
            _ => {}
        }
    }

    /// Returns whether the owner of `name` has sent a signal.
    pub(super) fn has_sent(&self, name: &str, signal: &Message) -> bool {
        let owner = match name {
            SERVICE => self.service.as_deref(),
            AUTOSCALE => self.autoscale.as_deref(),
            DAEMON => Some(DAEMON),
            _ => None,
        };
        let header = signal.header();
        let sender = header.sender().map(|sender| sender.as_str());
        signal.message_type() == Type::Signal && owner.is_some() && owner == sender
    }
}

/// Returns the unique name of the owner of a name, or `None` if the service does not run.
async fn owner(daemon: &DBusProxy<'_>, name: &str) -> zbus::Result<Option<String>> {
    match daemon.get_name_owner(BusName::try_from(name)?).await {
        Ok(owner) => Ok(Some(owner.to_string())),
        Err(Error::NameHasNoOwner(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
