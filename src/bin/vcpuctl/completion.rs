//! Completion of command lines: the script for a shell, and the values that only the service knows. The script calls
//! vcpuctl with the words of the command line.

use std::collections::{BTreeMap, HashMap};
use std::env::args;
use std::ffi::OsStr;
use std::io::{self, Write, stdout};
use std::time::Duration;

use clap::Command;
use clap_complete::Shell;
use clap_complete::engine::{ArgValueCandidates, ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};
use tokio::runtime;
use tokio::time::timeout;
use vcpud::proxy::{MachineProxy, ManagerProxy};
use zbus::{Connection, OwnedObjectPath, OwnedVariant};

/// The variable in which the script names the shell.
const VARIABLE: &str = "_VCPUCTL_COMPLETE";
/// The longest time that a completion waits for the service.
const PATIENCE: Duration = Duration::from_secs(2);

/// Prints the candidates and exits, if a completion script has called the program.
pub(crate) fn complete(command: fn() -> Command) {
    CompleteEnv::with_factory(command).var(VARIABLE).complete();
}

/// Prints the script for a shell.
///
/// # Errors
/// The output cannot be written.
pub(crate) fn print_script(shell: Shell) -> io::Result<()> {
    let mut script = Vec::new();
    if let Some(shell) = Shells::builtins().completer(&shell.to_string()) {
        shell.write_registration(VARIABLE, "vcpuctl", "vcpuctl", "vcpuctl", &mut script)?;
    }
    stdout().write_all(&script)
}

/// The names of machines.
pub(crate) fn machines() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let names = ask(async |bus| Ok(list(bus).await?.into_keys().collect()));
        let names: Vec<String> = names.unwrap_or_default();
        names.into_iter().map(CompletionCandidate::new).collect()
    })
}

/// The present vCPUs of the machine in the command line.
pub(crate) fn present_vcpus() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| vcpus(current, |is_present| is_present))
}

/// The free vCPUs of the machine in the command line.
pub(crate) fn free_vcpus() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| vcpus(current, |is_present| !is_present))
}

/// All vCPUs of the machine in the command line, and the word for all.
pub(crate) fn all_vcpus() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let all = current.to_str().filter(|text| "all".starts_with(text));
        let all = all.map(|_| CompletionCandidate::new("all"));
        let mut candidates = vcpus(current, |_| true);
        candidates.extend(all);
        candidates
    })
}

/// Returns lists that `current` can become: the vCPUs in it, and one more.
fn vcpus(current: &OsStr, is_wanted: impl Fn(bool) -> bool) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else {
        return Vec::new();
    };
    let before = current.rfind(',').map_or("", |comma| &current[..=comma]);
    let vcpus = ask(async |bus| {
        let machines = list(bus).await?;
        let Some(path) = args().find_map(|word| machines.get(&word).cloned()) else {
            return Ok(Vec::new());
        };
        let machine = MachineProxy::builder(bus).path(path).build().await?;
        machine.list_vcpus().await
    });
    let candidate = |vcpu: HashMap<String, OwnedVariant>| {
        let is_present = bool::try_from(vcpu.get("present")?).ok()?;
        let id = u32::try_from(vcpu.get("id")?).ok()?.to_string();
        let is_listed = before.split(',').any(|other| other == id);
        let list = format!("{before}{id}");
        let is_candidate = is_wanted(is_present) && !is_listed && list.starts_with(current);
        is_candidate.then(|| CompletionCandidate::new(list))
    };
    let vcpus = vcpus.unwrap_or_default();
    vcpus.into_iter().filter_map(candidate).collect()
}

/// Returns the machines and their paths.
async fn list(bus: &Connection) -> zbus::Result<BTreeMap<String, OwnedObjectPath>> {
    let machines = ManagerProxy::new(bus).await?.list_machines().await?;
    let machines = machines.into_iter();
    Ok(machines.map(|(name, path, _)| (name, path)).collect())
}

/// Calls the service. Returns `None` if that fails: a completion has no place for errors.
fn ask<T>(calls: impl AsyncFnOnce(&Connection) -> zbus::Result<T>) -> Option<T> {
    // The completion of a command for another host does not connect to it.
    const REMOTE: [&str; 4] = ["-H", "-M", "--host", "--machine"];
    if args().any(|word| REMOTE.iter().any(|option| word.starts_with(option))) {
        return None;
    }
    let calls = async { calls(&Connection::system().await?).await };
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime
        .ok()?
        .block_on(async { timeout(PATIENCE, calls).await });
    result.ok()?.ok()
}
