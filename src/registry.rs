//! The registry: which machines there are, and the actor of each.
//!
//! Machines come from QMP sockets in a directory: `NAME.sock` appears and there is a machine
//! NAME, it goes away and there is none. The directory is watched (`inotify(7)`), not polled.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use futures_util::future::join_all;
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use tokio::task::JoinHandle;
use tracing::{error, warn};

use crate::config::{Configuration, Directories, Limits};
use crate::machine::{self, Outbox, Placement, Running, Site, Source};
use crate::names::MachineName;

/// The machines of a service, at work as long as the process is.
#[derive(Debug)]
pub struct Registry {
    task: JoinHandle<io::Error>,
}

/// The directory of QMP sockets cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch {} for QMP sockets: {source}", directory.display())]
pub struct WatchError {
    directory: PathBuf,
    source: io::Error,
}

impl Registry {
    /// Starts to watch, and returns when every machine at hand has answered or was given its
    /// time to. Their news go to `outbox`.
    pub async fn start(
        directories: &Directories,
        configuration: &Configuration,
        site: Site,
        outbox: Outbox,
    ) -> Result<Self, WatchError> {
        let directory = directories.qmp();
        let failed = |source| WatchError {
            directory: directory.clone(),
            source,
        };
        let events = watch(&directory).map_err(failed)?;
        let mut sockets = Sockets {
            directory: directory.clone(),
            agents: directories.guest_agents(),
            records: directories.records(),
            limits: configuration.defaults.limits(),
            placement: Placement {
                wish: configuration.defaults.placement.unwrap_or_default(),
                slice: configuration.defaults.slice().to_owned(),
                tuning: configuration.defaults.tuning(),
            },
            site,
            outbox,
            machines: BTreeMap::new(),
        };
        // Watched first, listed second: what comes in between is seen twice, not never.
        sockets.scan().await.map_err(failed)?;
        sockets.forget_departed();
        join_all(sockets.machines.values_mut().map(Running::settled)).await;

        let task = tokio::spawn(async move { sockets.follow(events).await });
        Ok(Self { task })
    }

    /// Waits until the directory cannot be watched any more, which should never be.
    pub async fn failed(&mut self) -> io::Error {
        (&mut self.task).await.unwrap_or_else(io::Error::other)
    }
}

/// The buffer of inotify's events; what does not fit waits in the kernel.
type Buffer = [u8; 4096];

fn watch(directory: &Path) -> io::Result<EventStream<Buffer>> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)?;
    let inotify = Inotify::init()?;
    let mask = WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR;
    inotify.watches().add(directory, mask)?;
    inotify.into_event_stream([0; 4096])
}

/// The sockets in the directory and their machines.
struct Sockets {
    directory: PathBuf,
    agents: PathBuf,
    records: PathBuf,
    limits: Limits,
    placement: Placement,
    site: Site,
    outbox: Outbox,
    machines: BTreeMap<MachineName, Running>,
}

impl Sockets {
    async fn follow(&mut self, mut events: EventStream<Buffer>) -> io::Error {
        while let Some(event) = events.next().await {
            match event {
                Ok(event)
                    if event
                        .mask
                        .intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF) =>
                {
                    return io::ErrorKind::NotFound.into();
                }
                Ok(event) => self.take(event.mask, event.name.as_deref()).await,
                Err(error) => return error,
            }
        }
        io::ErrorKind::UnexpectedEof.into()
    }

    async fn take(&mut self, mask: EventMask, file: Option<&OsStr>) {
        if mask.contains(EventMask::Q_OVERFLOW) {
            warn!("directory events were lost, listing anew");
            if let Err(error) = self.scan().await {
                error!(directory = %self.directory.display(), %error, "cannot list QMP sockets");
            }
        }
        let Some(file) = file else { return };
        if mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
            self.remove(file).await;
        } else if mask.intersects(EventMask::CREATE | EventMask::MOVED_TO) {
            // A rename may replace a socket without a word about the former.
            self.remove(file).await;
            self.add(file);
        }
    }

    /// Brings the machines in line with what is in the directory.
    async fn scan(&mut self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            files.push(entry?.file_name());
        }
        let there: BTreeSet<_> = files.iter().filter_map(|f| machine_name(f)).collect();
        let known: Vec<_> = self.machines.keys().cloned().collect();
        for name in known.into_iter().filter(|name| !there.contains(name)) {
            self.stop(&name).await;
        }
        for file in files {
            self.add(&file);
        }
        Ok(())
    }

    /// Removes what is remembered of machines that went while the service was down.
    fn forget_departed(&self) {
        let Ok(records) = fs::read_dir(&self.records) else {
            return;
        };
        for record in records.flatten().map(|entry| entry.path()) {
            let name = record.file_stem().and_then(OsStr::to_str);
            if name.is_none_or(|name| !self.machines.contains_key(name))
                && let Err(error) = fs::remove_file(&record)
            {
                warn!(file = %record.display(), %error, "cannot be removed");
            }
        }
    }

    fn add(&mut self, file: &OsStr) {
        let socket = self.directory.join(file);
        let metadata = fs::symlink_metadata(&socket);
        if !metadata.is_ok_and(|m| m.file_type().is_socket()) {
            return;
        }
        let Some(name) = machine_name(file) else {
            warn!(socket = %socket.display(), "not named NAME.sock, NAME a machine's name, so not a machine");
            return;
        };
        self.machines.entry(name).or_insert_with_key(|name| {
            let source = Source {
                name: name.clone(),
                socket,
                agent: self.agents.join(format!("{name}.sock")),
                record: self.records.join(format!("{name}.json")),
                limits: self.limits,
                placement: self.placement.clone(),
            };
            machine::start(source, self.site.clone(), self.outbox.clone())
        });
    }

    async fn remove(&mut self, file: &OsStr) {
        if let Some(name) = machine_name(file) {
            self.stop(&name).await;
        }
    }

    async fn stop(&mut self, name: &MachineName) {
        if let Some(machine) = self.machines.remove(name) {
            machine.stop().await;
        }
    }
}

/// NAME of `NAME.sock`, if it is a machine's name.
fn machine_name(file: &OsStr) -> Option<MachineName> {
    file.to_str()?.strip_suffix(".sock")?.parse().ok()
}
