//! The QEMU processes that are machines. A process is one machine: a second name would have systemd
//! move it to another unit, and two actors place the same threads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ids::Tid;
use crate::names::MachineName;
use crate::process::ProcessId;

/// The processes of all machines of a service.
#[derive(Clone, Debug, Default)]
pub struct Processes(Arc<Mutex<Names>>);

/// The names of each process, each with the thread of the first vCPU when QEMU has answered.
type Names = BTreeMap<ProcessId, BTreeMap<MachineName, Option<Tid>>>;

impl Processes {
    /// Notes that `process` is the machine `name`, unless it has another name.
    pub(super) fn claim(&self, process: ProcessId, name: &MachineName) -> Result<(), MachineName> {
        let mut processes = self.lock();
        let names = processes.entry(process).or_default();
        match names.keys().find(|other| *other != name) {
            Some(other) => Err(other.clone()),
            None => {
                names.insert(name.clone(), None);
                Ok(())
            }
        }
    }

    /// Notes that `process` has the name `name`, among others.
    pub(super) fn share(&self, process: ProcessId, name: &MachineName) {
        let mut processes = self.lock();
        let names = processes.entry(process).or_default();
        names.entry(name.clone()).or_default();
    }

    /// Notes that the first vCPU of the machine `name` has this `thread` of `process`, unless it is that
    /// of another machine.
    pub(super) fn confirm(
        &self,
        process: ProcessId,
        name: &MachineName,
        thread: Tid,
    ) -> Result<(), MachineName> {
        let mut processes = self.lock();
        let names = processes.entry(process).or_default();
        let is_twin =
            |(other, of): &(&MachineName, &Option<Tid>)| *other != name && **of == Some(thread);
        match names.iter().find(is_twin) {
            Some((other, _)) => Err(other.clone()),
            None => {
                names.insert(name.clone(), Some(thread));
                Ok(())
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that `process` is not the machine `name` any more.
    pub(super) fn release(&self, process: ProcessId, name: &MachineName) {
        let mut machines = self.lock();
        if let Some(names) = machines.get_mut(&process) {
            names.remove(name);
            if names.is_empty() {
                machines.remove(&process);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_process_has_no_other_name() {
        let processes = Processes::default();
        let process = ProcessId {
            pid: crate::ids::Pid(7),
            start: 9,
        };
        let [web, db]: [MachineName; 2] = ["web", "db"].map(|name| name.parse().unwrap());
        assert_eq!(processes.claim(process, &web), Ok(()));
        assert_eq!(processes.claim(process, &web), Ok(()));
        assert_eq!(processes.claim(process, &db), Err(web.clone()));
        processes.share(process, &db);
        assert_eq!(processes.confirm(process, &web, Tid(8)), Ok(()));
        assert_eq!(processes.confirm(process, &db, Tid(8)), Err(web.clone()));
        processes.release(process, &web);
        assert_eq!(processes.claim(process, &web), Err(db.clone()));
        assert_eq!(processes.confirm(process, &db, Tid(8)), Ok(()));
        processes.release(process, &db);
        assert_eq!(processes.claim(process, &web), Ok(()));
        // A later process with the same PID is another.
        let later = ProcessId {
            start: 10,
            ..process
        };
        assert_eq!(processes.claim(later, &db), Ok(()));
    }
}
