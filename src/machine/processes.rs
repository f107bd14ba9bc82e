//! The QEMU processes that are machines. A process is one machine: a second name would have systemd
//! move it to another unit, and two actors place the same threads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::names::MachineName;
use crate::process::ProcessId;

/// The processes of all machines of a service.
#[derive(Clone, Debug, Default)]
pub struct Processes(Arc<Mutex<BTreeMap<ProcessId, BTreeSet<MachineName>>>>);

impl Processes {
    /// Notes that `process` is the machine `name`, unless another machine has it.
    pub(super) fn claim(&self, process: ProcessId, name: &MachineName) -> Result<(), MachineName> {
        let mut machines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let names = machines.entry(process).or_default();
        match names.iter().find(|other| *other != name) {
            Some(other) => Err(other.clone()),
            None => {
                names.insert(name.clone());
                Ok(())
            }
        }
    }

    /// Notes that `process` is the machine `name`, whatever else it is.
    pub(super) fn share(&self, process: ProcessId, name: &MachineName) {
        let mut machines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        machines.entry(process).or_default().insert(name.clone());
    }

    /// Notes that `process` is not the machine `name` any more.
    pub(super) fn release(&self, process: ProcessId, name: &MachineName) {
        let mut machines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        processes.release(process, &web);
        assert_eq!(processes.claim(process, &web), Err(db.clone()));
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
