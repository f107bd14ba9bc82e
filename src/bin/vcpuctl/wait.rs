//! The command "wait".

use std::io::{Write, stdout};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use vcpud::names::error_name;
use vcpud::placement::VcpuList;

use crate::client::Client;
use crate::failure::{Failure, Unfinished};
use crate::progress::{Progress, interrupted};
use crate::render::{self, name_vcpus};
use crate::watch::Watch;

/// Waits until the machines have no pending removals.
pub(crate) async fn wait(
    client: &Client,
    names: &[String],
    limit: Option<Duration>,
) -> Result<(), Failure> {
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    let mut results = Vec::new();
    for name in names {
        let removed = wait_for(client, name, deadline).await?;
        results.push(json!({"name": name, "removed": removed}));
        if !client.json && !client.quiet {
            let text = if removed.is_empty() {
                "no removal is pending".to_owned()
            } else {
                format!("removed {}", removed.into_iter().collect::<VcpuList>())
            };
            writeln!(stdout(), "{name}: {text}")?;
        }
    }
    if client.json {
        render::one_or_all(results)?;
    }
    Ok(())
}

/// Returns the vCPUs that were removed in the meantime.
async fn wait_for(
    client: &Client,
    name: &str,
    deadline: Option<Instant>,
) -> Result<Vec<u32>, Failure> {
    let mut watch = Watch::new(client, name).await?;
    let mut progress = Progress::new(name, client.shows_progress());
    let settled = watch.settled(|watch| progress.show(&watch.pending));
    let (error_name, what) = tokio::select! {
        settled = settled => {
            settled?;
            (Some(error_name::GUEST_REFUSED), "")
        }
        () = end_of(deadline) => (Some(error_name::REMOVAL_PENDING), "the time limit ended"),
        signal = interrupted() => {
            signal.map_err(Failure::NoSignals)?;
            (None, "interrupted")
        }
    };
    drop(progress);
    let Watch {
        pending,
        mut removed,
        refused,
        ..
    } = watch;
    removed.sort_unstable();
    if pending.is_empty() && refused.is_empty() {
        return Ok(removed);
    }
    let text = if pending.is_empty() {
        let refused = refused.iter();
        let reasons: Vec<String> = refused
            .map(|refused| format!("vCPU {}: {}", refused.vcpu, refused.reason))
            .collect();
        format!("{name}: the guest refused: {}", reasons.join("; "))
    } else {
        let vcpus = name_vcpus(&pending.iter().copied().collect());
        format!("{name}: {what}; the removal of {vcpus} stays pending")
    };
    Err(Unfinished {
        error_name,
        text,
        pending,
        removed,
        refused,
    }
    .into())
}

async fn end_of(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
