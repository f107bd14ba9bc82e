//! Notices that other programs write to the control groups of machines, with one `inotify(7)` for all.
//!
//! The kernel queues the event within the write (`fs/kernfs/file.c`). So all events of a pass's own writes are
//! in the queue when the pass ends, and are discarded then. A write of another program to the same machine
//! during the pass is found by the next review.

use std::collections::{BTreeSet, HashMap};
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tracing::warn;

use super::placer::Placer;
use crate::ids::VcpuId;
use crate::process::Dir;

/// The size of the buffer for events, in bytes.
const BUFFER: usize = 4096;

/// The watched control groups of all machines. All clones are the same.
#[derive(Clone, Debug)]
pub struct Watches(Arc<Mutex<State>>);

/// The group of a vCPU, or those that all of its vCPUs share.
type Group = Option<VcpuId>;

#[derive(Debug)]
struct State {
    inotify: Inotify,
    machines: HashMap<u64, Watched>,
    /// The machines of the watches.
    groups: HashMap<WatchDescriptor, u64>,
    next: u64,
    /// Whether the kernel refused a watch, which is logged once.
    is_short: bool,
}

/// One machine.
#[derive(Debug)]
struct Watched {
    changed: Arc<Notify>,
    /// Whether the placer works on it.
    is_placing: bool,
    /// The watches of each group: one in each hierarchy.
    groups: HashMap<Group, Vec<WatchDescriptor>>,
}

/// The watched groups of one machine. They are not watched any more when it is dropped.
#[derive(Debug)]
pub struct MachineWatch {
    watches: Watches,
    id: u64,
}

impl Watches {
    /// Returns no watches yet.
    ///
    /// # Errors
    /// Fails if the user has no `inotify` instance left (`fs.inotify.max_user_instances`).
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(State {
            inotify: Inotify::init()?,
            machines: HashMap::new(),
            groups: HashMap::new(),
            next: 0,
            is_short: false,
        }))))
    }

    /// Notifies machines of changes as long as the service runs.
    pub async fn run(self) {
        if let Err(error) = self.read_all().await {
            warn!(%error, "control groups are not watched any more, only compared from time to time: {error}");
        }
        pending().await
    }

    async fn read_all(&self) -> io::Result<()> {
        let queue = self.lock().inotify.as_fd().try_clone_to_owned()?;
        #[expect(deprecated, reason = "sound here: an OwnedFd owns its one descriptor")]
        let queue = AsyncFd::new(queue)?;
        loop {
            let mut ready = queue.readable().await?;
            ready.clear_ready();
            self.lock().read()?;
        }
    }

    /// Returns the watch of a machine, which notifies `changed`.
    pub fn machine(&self, changed: Arc<Notify>) -> MachineWatch {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        let machine = Watched {
            changed,
            is_placing: false,
            groups: HashMap::new(),
        };
        state.machines.insert(id, machine);
        MachineWatch {
            watches: self.clone(),
            id,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MachineWatch {
    /// Lets `work` use `placer`, whose writes are not changes of another program. Then watches the groups of
    /// the placer. Blocks.
    pub fn during<T>(&self, placer: &mut Placer, work: impl FnOnce(&mut Placer) -> T) -> T {
        self.watches.lock().set_placing(self.id, true);
        let result = work(placer);
        let mut state = self.watches.lock();
        if let Err(error) = state.read() {
            warn!(%error, "changes of control groups cannot be read: {error}");
        }
        state.watch(self.id, placer);
        state.set_placing(self.id, false);
        result
    }

    /// Ends the watches, because the machine has another placer.
    pub fn forget(&self) {
        self.watches.lock().forget(self.id);
    }
}

impl Drop for MachineWatch {
    fn drop(&mut self) {
        let mut state = self.watches.lock();
        state.forget(self.id);
        state.machines.remove(&self.id);
    }
}

impl State {
    fn set_placing(&mut self, id: u64, is_placing: bool) {
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.is_placing = is_placing;
        }
    }

    /// Watches the groups of `placer` that are not watched.
    fn watch(&mut self, id: u64, placer: &Placer) {
        let Some(machine) = self.machines.get(&id) else {
            return;
        };
        let groups = placer.all_groups().into_iter();
        let new: Vec<Group> = groups.filter(|g| !machine.groups.contains_key(g)).collect();
        for group in new {
            let watches: io::Result<Vec<WatchDescriptor>> = placer
                .directories(group)
                .iter()
                .map(|directory| self.add(directory))
                .collect();
            match watches {
                // It does not exist yet.
                Ok(watches) if watches.is_empty() => {}
                Ok(watches) => {
                    for watch in &watches {
                        self.groups.insert(watch.clone(), id);
                    }
                    if let Some(machine) = self.machines.get_mut(&id) {
                        machine.groups.insert(group, watches);
                    }
                }
                Err(error) if !self.is_short => {
                    self.is_short = true;
                    warn!(%error, "some control groups are not watched, only compared from time to time; \
                        if there is no space, raise fs.inotify.max_user_watches: {error}");
                }
                Err(_) => {}
            }
        }
    }

    fn add(&self, directory: &Dir) -> io::Result<WatchDescriptor> {
        // Not by its path, which another program may give to another directory.
        let path = format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd());
        let changes = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::DELETE;
        self.inotify
            .watches()
            .add(path, changes | WatchMask::ONLYDIR)
    }

    /// Ends the watches of a machine.
    fn forget(&mut self, id: u64) {
        let machine = self.machines.get_mut(&id);
        let groups = machine.map(|machine| std::mem::take(&mut machine.groups));
        for watch in groups
            .into_iter()
            .flatten()
            .flat_map(|(_, watches)| watches)
        {
            self.groups.remove(&watch);
            // The kernel may have ended it.
            let _ = self.inotify.watches().remove(watch);
        }
    }

    /// Reads the queue, and notifies the machines that another program changed. Lost events are found by the
    /// next reviews.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; BUFFER];
        loop {
            let events = match self.inotify.read_events(&mut buffer) {
                Ok(events) => events,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let mut removed = BTreeSet::new();
            for event in events {
                let Some(id) = self.groups.get(&event.wd) else {
                    continue;
                };
                // The kernel does not report the end of the watch of a group that is removed, so all groups
                // are watched again by the next pass.
                if event.mask.contains(EventMask::DELETE) {
                    removed.insert(*id);
                }
                let machine = self.machines.get(id);
                if let Some(machine) = machine.filter(|machine| !machine.is_placing) {
                    machine.changed.notify_one();
                }
            }
            removed.into_iter().for_each(|id| self.forget(id));
        }
    }
}
