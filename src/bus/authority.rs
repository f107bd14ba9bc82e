//! Authorization: root is authorized, and other callers if polkit authorizes them. polkit is asked
//! before anything else happens. A caller is denied in every case of doubt.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::sleep;
use tracing::{debug, warn};
use zbus::message::{Flags, Header};
use zbus::names::{BusName, UniqueName};
use zbus::proxy::CacheProperties;
use zbus::{Connection, fdo};
use zbus_polkit::policykit1::{
    AuthorityProxy, AuthorizationResult, CheckAuthorizationFlags, Subject,
};

use super::error::Error;
use super::link::Session;
use super::queue::Queue;
use crate::audit::Audit;
use crate::ids::Uid;
use crate::names::action_id;

/// How long polkit may think.
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

/// Whether polkit can ask a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialog {
    /// If the call allows it.
    IfAllowed,
    /// Never.
    Never,
}

impl Dialog {
    fn is_for(self, header: &Header<'_>) -> bool {
        let flags = header.primary().flags();
        self == Self::IfAllowed && flags.contains(Flags::ALLOW_INTERACTIVE_AUTH)
    }
}

/// The service watches whether the caller is still there after this time without an answer of polkit. Most
/// answers come before. A caller that leaves earlier is authorized if polkit authorizes it within this time.
const UNWATCHED: Duration = Duration::from_millis(100);

/// Asks polkit on behalf of the service.
#[derive(Clone, Debug)]
pub struct Authority {
    session: Session,
    queue: Queue,
    audit: Arc<Audit>,
}

/// An authorized caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    uid: Uid,
}

impl Caller {
    /// Its user.
    pub fn uid(self) -> Uid {
        self.uid
    }
}

/// A question to polkit, and the caller that it is about.
struct Question<'a> {
    connection: &'a Connection,
    header: &'a Header<'a>,
    sender: &'a UniqueName<'a>,
    uid: Uid,
    action: &'a str,
    interactive: bool,
}

/// The result of a question to polkit.
enum Answer {
    Polkit(AuthorizationResult),
    /// The caller left the bus, and polkit did not answer within [`UNWATCHED`]. The call has no effect.
    CallerLeft,
    /// polkit is not there, or does not work.
    None(String),
}

impl Answer {
    /// Returns `caller` if the answer authorizes it for `action`.
    fn decide(self, caller: Caller, action: &str, interactive: bool) -> Result<Caller, Error> {
        let uid = caller.uid.get();
        match self {
            Self::Polkit(answer) if answer.is_authorized => Ok(caller),
            Self::Polkit(answer) if answer.is_challenge && !interactive => {
                Err(Error::InteractiveAuthorizationRequired(format!(
                    "{action} needs authentication, and the call does not allow to ask for it"
                )))
            }
            Self::Polkit(answer) if is_dismissed(&answer) => {
                Err(denied(action, "the authentication was dismissed"))
            }
            Self::Polkit(_) => Err(denied(
                action,
                "not authorized by polkit; an administrator can authorize it with a rule, as vcpud(8) describes",
            )),
            Self::CallerLeft => Err(denied(action, "the caller has left")),
            Self::None(error) => {
                warn!(uid, action, error, "polkit did not answer, so denied");
                let why = format!("polkit did not answer ({error}), so only root is authorized");
                Err(denied(action, &why))
            }
        }
    }
}

/// Returns whether the user closed the dialog for the password.
fn is_dismissed(answer: &AuthorizationResult) -> bool {
    let dismissed = answer.details.get("polkit.dismissed");
    dismissed.is_some_and(|value| !value.is_empty())
}

/// Returns the error for a caller that is not authorized for `action`.
fn denied(action: &str, why: &str) -> Error {
    Error::AccessDenied(format!("{action}: {why}"))
}

impl Authority {
    /// An authority for callers of `session`, which takes turns with those in `queue` to ask polkit.
    /// `audit` gets the records of authorized calls.
    pub(super) fn new(session: Session, queue: Queue, audit: Arc<Audit>) -> Self {
        Self {
            session,
            queue,
            audit,
        }
    }

    /// Returns the audit log, for the records of authorized calls.
    pub(super) fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Returns the user that sent the method call `header`, while the call is under way.
    pub(super) fn user_of(&self, header: &Header<'_>) -> Option<Uid> {
        self.session.user_of(header.sender()?)
    }

    /// Authorizes the sender of the method call `header`.
    ///
    /// polkit's rules and dialogs get the `details` and the caller's `uid`. root is authorized without
    /// polkit; other users are not.
    ///
    /// # Errors
    ///
    /// Fails with `AccessDenied` if polkit denies `action`, cannot be asked or does not answer in time, or if
    /// the user of the caller is not known. Fails in the same way if the caller leaves the bus before polkit
    /// answers, unless polkit answers within 100 ms. Fails with `InteractiveAuthorizationRequired` if
    /// polkit needs a dialog that the call does not allow.
    pub async fn check(
        &self,
        header: &Header<'_>,
        action: Action,
        details: &HashMap<&str, &str>,
        dialog: Dialog,
    ) -> Result<Caller, Error> {
        let denied = |why: &str| denied(action.id(), why);
        let Some(sender) = header.sender() else {
            return Err(denied("the call has no sender"));
        };
        let Some(uid) = self.session.user_of(sender) else {
            return Err(denied("the caller's user is not known"));
        };
        let Some(connection) = self.session.connection() else {
            return Err(denied("the connection to the bus is lost"));
        };
        let caller = Caller { uid };
        if uid.is_root() {
            // polkit authorizes root whatever its rules say, if it answers.
            return Ok(caller);
        }
        let user = uid.to_string();
        let mut details = details.clone();
        details.insert("uid", &user);
        let interactive = dialog.is_for(header);
        let action = action.id();
        debug!(uid = uid.get(), action, "polkit is asked");
        let question = Question {
            connection: &connection,
            header,
            sender,
            uid,
            action,
            interactive,
        };
        let answer = self.ask(question, &details).await;
        answer.decide(caller, action, interactive)
    }

    async fn ask(&self, question: Question<'_>, details: &HashMap<&str, &str>) -> Answer {
        static CHECKS: AtomicU64 = AtomicU64::new(0);
        let Question {
            connection,
            header,
            sender,
            uid,
            action,
            interactive,
        } = question;
        let polkit = polkit(connection).await;
        let subject = Subject::new_for_message_header(header);
        let (polkit, subject) = match (polkit, subject) {
            (Ok(polkit), Ok(subject)) => (polkit, subject),
            (Err(error), _) => return Answer::None(error.to_string()),
            (_, Err(error)) => return Answer::None(error.to_string()),
        };
        let (flags, limit) = if interactive {
            let flags = CheckAuthorizationFlags::ALLOW_USER_INTERACTION;
            (flags, INTERACTIVE_TIMEOUT)
        } else {
            (CheckAuthorizationFlags::default(), ANSWER_TIMEOUT)
        };
        let id = format!("vcpud-{}", CHECKS.fetch_add(1, Ordering::Relaxed));
        let asked = async {
            let turn = self.queue.turn(uid).await;
            let _turn = turn.map_err(|error| error.to_string())?;
            let answer = polkit.check_authorization(&subject, action, details, flags, &id);
            answer.await.map_err(|error| error.to_string())
        };
        let answer = tokio::select! {
            answer = asked => return answer.map_or_else(Answer::None, Answer::Polkit),
            () = departure(connection, sender) => Answer::CallerLeft,
            () = sleep(limit) => Answer::None(format!("no answer within {} s", limit.as_secs())),
        };
        // The answer of polkit, or of a person, has no effect any more. The service does not wait for the
        // reply to this either: a polkit that hangs does not send it.
        let cancel = "CancelCheckAuthorization";
        if let Err(error) = polkit.inner().call_noreply(cancel, &(&id,)).await {
            debug!(id, %error, "the question to polkit cannot be cancelled");
        }
        answer
    }
}

/// Returns polkit as it is on the bus.
async fn polkit<'a>(connection: &'a Connection) -> zbus::Result<AuthorityProxy<'a>> {
    let polkit = AuthorityProxy::builder(connection);
    polkit.cache_properties(CacheProperties::No).build().await
}

/// Waits until `name` has left the bus, at least for [`UNWATCHED`].
async fn departure(connection: &Connection, name: &UniqueName<'_>) {
    sleep(UNWATCHED).await;
    let left = async {
        let bus = fdo::DBusProxy::builder(connection)
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        let mut changes = bus
            .receive_name_owner_changed_with_args(&[(0, name.as_str())])
            .await?;
        // Watched first, asked second, so that it cannot leave in between.
        if !bus.name_has_owner(BusName::from(name.clone())).await? {
            return Ok::<(), zbus::Error>(());
        }
        while let Some(change) = changes.next().await {
            if change.args()?.new_owner().is_none() {
                return Ok(());
            }
        }
        Ok(())
    };
    if left.await.is_err() {
        // The bus is lost, and with it the caller.
        std::future::pending::<()>().await;
    }
}
