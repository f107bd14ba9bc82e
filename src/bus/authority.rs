//! Who may: polkit is asked before anything else happens, and every doubt is a no.

use std::collections::HashMap;
use std::time::Duration;

use tracing::{info, warn};
use zbus::message::{Flags, Header};
use zbus::names::{BusName, UniqueName};
use zbus::proxy::CacheProperties;
use zbus::{Connection, fdo};
use zbus_polkit::policykit1::{
    AuthorityProxy, AuthorizationResult, CheckAuthorizationFlags, Subject,
};

use super::error::Error;
use crate::names::action_id;

/// How long polkit may think; root is not locked out by a polkit that hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a person may take to type a password.
const INTERACTIVE_TIMEOUT: Duration = Duration::from_secs(300);

/// What polkit is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// To change the number of vCPUs.
    SetVcpus,
    /// To change where and how vCPUs run on the host.
    TuneVcpus,
    /// To change which machines there are, and how all are treated.
    ManageMachines,
}

impl Action {
    /// All actions; `polkit/org.vcpud1.policy` describes just these.
    pub const ALL: [Self; 3] = [Self::SetVcpus, Self::TuneVcpus, Self::ManageMachines];

    /// The id of the action in polkit.
    pub fn id(self) -> &'static str {
        match self {
            Self::SetVcpus => action_id::SET_VCPUS,
            Self::TuneVcpus => action_id::TUNE_VCPUS,
            Self::ManageMachines => action_id::MANAGE_MACHINES,
        }
    }
}

/// Asks polkit on behalf of the service.
#[derive(Clone, Debug)]
pub struct Authority {
    connection: Connection,
}

impl Authority {
    /// An authority that reaches polkit over `connection`.
    pub fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// Lets the sender of the call `header` pass, with his user id, or says why not.
    ///
    /// `details` are for polkit's rules and dialogs, which get the caller's `uid` too. Without an answer of polkit root passes and
    /// nobody else does.
    pub async fn check(
        &self,
        header: &Header<'_>,
        action: Action,
        details: &HashMap<&str, &str>,
    ) -> Result<u32, Error> {
        let denied = |why: &str| Error::AccessDenied(format!("{}: {why}", action.id()));
        let Some(sender) = header.sender() else {
            return Err(denied("the call has no sender"));
        };
        let uid = self
            .user_of(sender)
            .await
            .map_err(|error| denied(&format!("the caller's user is not known: {error}")))?;
        let user = uid.to_string();
        let mut details = details.clone();
        details.insert("uid", &user);
        let interactive = header
            .primary()
            .flags()
            .contains(Flags::AllowInteractiveAuth);
        match self.ask(header, action, &details, interactive).await {
            Ok(answer) if answer.is_authorized => Ok(uid),
            Ok(answer) if answer.is_challenge && !interactive => {
                Err(Error::InteractiveAuthorizationRequired(format!(
                    "{} needs authentication, and the call does not allow to ask for it",
                    action.id()
                )))
            }
            Ok(_) => {
                info!(uid, action = action.id(), "denied by polkit");
                Err(denied("not authorized by polkit"))
            }
            Err(_) if uid == 0 => Ok(uid),
            Err(error) => {
                warn!(
                    uid,
                    action = action.id(),
                    error,
                    "polkit did not answer, so denied"
                );
                Err(denied(&format!(
                    "polkit did not answer ({error}), so only root may"
                )))
            }
        }
    }

    async fn user_of(&self, sender: &UniqueName<'_>) -> zbus::Result<u32> {
        let bus = fdo::DBusProxy::builder(&self.connection)
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        let name = BusName::from(sender.clone());
        Ok(bus.get_connection_unix_user(name).await?)
    }

    async fn ask(
        &self,
        header: &Header<'_>,
        action: Action,
        details: &HashMap<&str, &str>,
        interactive: bool,
    ) -> Result<AuthorizationResult, String> {
        let check = async {
            let polkit = AuthorityProxy::builder(&self.connection)
                .cache_properties(CacheProperties::No)
                .build()
                .await
                .map_err(|e| e.to_string())?;
            let subject = Subject::new_for_message_header(header).map_err(|e| e.to_string())?;
            let (flags, limit) = if interactive {
                (
                    CheckAuthorizationFlags::AllowUserInteraction.into(),
                    INTERACTIVE_TIMEOUT,
                )
            } else {
                (Default::default(), ANSWER_TIMEOUT)
            };
            let answer = polkit.check_authorization(&subject, action.id(), details, flags, "");
            match tokio::time::timeout(limit, answer).await {
                Ok(answer) => answer.map_err(|e| e.to_string()),
                Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
            }
        };
        check.await
    }
}
