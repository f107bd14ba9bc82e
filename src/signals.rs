//! Owns the signals of vcpud as its clients read them. It must not decide what a signal means.
//!
//! On the system bus, every user can send a signal to every connection. A match rule with a well-known name as the
//! sender selects broadcasts only: the bus delivers a signal to its destination without regard to rules (CVE-2024-34397
//! describes the same for GLib). So the sender of each signal is compared with the owner of the name, which the bus
//! daemon reports in order with the signals.

use std::num::NonZero;
use std::pin::Pin;

use ordered_stream::{Join, OrderedStreamExt, join};
use zbus::message::Type;
use zbus::names::{BusName, OwnedUniqueName};
use zbus::proxy::CacheProperties;
use zbus::{Connection, MatchRule, Message, MessageStream, fdo};

use crate::names::{BUS_NAME, ROOT_PATH};

/// The name of the bus daemon, which no other connection can have.
const BUS_DAEMON: &str = "org.freedesktop.DBus";

/// The signals of vcpud, and `NameOwnerChanged` of its name.
pub struct Signals {
    messages: Pin<Box<Join<MessageStream, MessageStream>>>,
    /// The connection that has the name of vcpud, at the time of the last message.
    owner: Option<OwnedUniqueName>,
}

impl Signals {
    /// Subscribes to all signals from now on. `queue` is the number of signals that can wait; while as many wait, zbus
    /// reads no replies. Without it, that is zbus's own number, 64.
    ///
    /// # Errors
    ///
    /// The connection to the bus is lost, or the bus daemon refuses the subscription.
    pub async fn subscribe(bus: &Connection, queue: Option<NonZero<usize>>) -> zbus::Result<Self> {
        let rule = || MatchRule::builder().msg_type(Type::Signal);
        let owners = rule().sender(BUS_DAEMON).member("NameOwnerChanged");
        let owners = owners.arg(0, BUS_NAME).build()?;
        // Subscribed first and asked second, so that no change is missed.
        let owners = MessageStream::for_match_rule(owners, bus, queue).await?;
        let owner = owner(bus).await?;
        let own = rule().sender(BUS_NAME).path_namespace(ROOT_PATH).build()?;
        let own = MessageStream::for_match_rule(own, bus, queue).await?;
        Ok(Self {
            messages: Box::pin(join(owners, own)),
            owner,
        })
    }

    /// Waits for the next signal. Returns `None` when the connection to the bus has ended.
    ///
    /// # Errors
    ///
    /// The connection to the bus is lost.
    pub async fn next(&mut self) -> Option<zbus::Result<Message>> {
        loop {
            let message = self.messages.next().await?;
            if !message.as_ref().is_ok_and(|message| !self.admit(message)) {
                return Some(message);
            }
        }
    }

    /// Returns whether a message is of the bus daemon or of vcpud.
    fn admit(&mut self, message: &Message) -> bool {
        let header = message.header();
        let sender = header.sender();
        if sender.is_some_and(|sender| sender.as_str() == BUS_DAEMON) {
            if let Ok((_, _, new)) = message.body().deserialize::<(&str, &str, &str)>() {
                self.owner = OwnedUniqueName::try_from(new).ok();
            }
            return true;
        }
        sender.is_some() && sender == self.owner.as_deref()
    }
}

/// Returns the owner of the name of vcpud.
async fn owner(bus: &Connection) -> zbus::Result<Option<OwnedUniqueName>> {
    let daemon = fdo::DBusProxy::builder(bus).cache_properties(CacheProperties::No);
    let name = BusName::from_static_str(BUS_NAME)?;
    match daemon.build().await?.get_name_owner(name).await {
        Ok(owner) => Ok(Some(owner)),
        Err(fdo::Error::NameHasNoOwner(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
