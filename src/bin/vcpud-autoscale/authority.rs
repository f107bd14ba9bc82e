//! Authorization of the callers: root is authorized, and other users if polkit authorizes them.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::timeout;
use vcpud::names::action_id;
use zbus::Connection;
use zbus::message::{Flags, Header};
use zbus_polkit::policykit1::{
    AuthorityProxy, AuthorizationResult, CheckAuthorizationFlags, Subject,
};

use crate::error::Error;

/// How long polkit may think.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long a person may take to type a password.
const DIALOG_LIMIT: Duration = Duration::from_secs(300);
/// Authorizes the sender of a call, who is the user `uid`, to change the scaling of `machine`.
///
/// # Errors
/// polkit denies it, requires a password that the call does not allow to ask for, or does not answer.
pub(crate) async fn check(
    bus: &Connection,
    header: &Header<'_>,
    uid: u32,
    machine: &str,
    operation: &str,
) -> Result<(), Error> {
    let denied =
        |why: &str| Error::access_denied(format!("{}: {why}", action_id::MANAGE_AUTOSCALE));
    if uid == 0 {
        return Ok(());
    }
    let is_interactive = header
        .primary()
        .flags()
        .contains(Flags::ALLOW_INTERACTIVE_AUTH);
    let answer = answer(bus, header, uid, machine, operation, is_interactive).await;
    let answer = answer.map_err(|error| denied(&format!("polkit did not answer ({error})")))?;
    if answer.is_authorized {
        Ok(())
    } else if answer.is_challenge && !is_interactive {
        Err(Error::password_required(format!(
            "{} needs authentication, and the call does not allow to ask for it",
            action_id::MANAGE_AUTOSCALE
        )))
    } else if answer.details.contains_key("polkit.dismissed") {
        Err(denied("the authentication was dismissed"))
    } else {
        Err(denied("not authorized by polkit"))
    }
}

/// Returns whether the sender of a call, who is the user `uid`, is authorized: "yes", "no", or "challenge" if polkit
/// would ask for a password. polkit asks no question.
pub(crate) async fn permission(
    bus: &Connection,
    header: &Header<'_>,
    uid: u32,
    machine: &str,
    operation: &str,
) -> &'static str {
    if uid == 0 {
        return "yes";
    }
    match answer(bus, header, uid, machine, operation, false).await {
        Ok(answer) if answer.is_authorized => "yes",
        Ok(answer) if answer.is_challenge => "challenge",
        // The call itself is denied too if polkit does not answer.
        _ => "no",
    }
}

/// Asks polkit about one operation, with its details.
async fn answer(
    bus: &Connection,
    header: &Header<'_>,
    uid: u32,
    machine: &str,
    operation: &str,
    is_interactive: bool,
) -> Result<AuthorizationResult, String> {
    let uid = uid.to_string();
    let details = HashMap::from([
        ("machine", machine),
        ("operation", operation),
        ("uid", &uid),
    ]);
    ask(bus, header, &details, is_interactive).await
}

/// Asks polkit about the sender of a call.
async fn ask(
    bus: &Connection,
    header: &Header<'_>,
    details: &HashMap<&str, &str>,
    is_interactive: bool,
) -> Result<AuthorizationResult, String> {
    let (flags, limit) = if is_interactive {
        (
            CheckAuthorizationFlags::ALLOW_USER_INTERACTION,
            DIALOG_LIMIT,
        )
    } else {
        (CheckAuthorizationFlags::default(), ANSWER_LIMIT)
    };
    let question = async {
        let subject = Subject::new_for_message_header(header).map_err(|error| error.to_string())?;
        let polkit = AuthorityProxy::new(bus)
            .await
            .map_err(|error| error.to_string())?;
        let answer =
            polkit.check_authorization(&subject, action_id::MANAGE_AUTOSCALE, details, flags, "");
        answer.await.map_err(|error| error.to_string())
    };
    let late = |_| Err("no answer in time".to_owned());
    timeout(limit, question).await.unwrap_or_else(late)
}
