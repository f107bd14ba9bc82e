//! The QEMU processes that are machines. A process is one machine: a second name would have systemd
//! move it to another unit, and two actors place the same threads.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ids::Tid;
use crate::names::MachineName;
use crate::process::ProcessId;

/// How many processes are remembered that are no machine any more.
const FORMER: usize = 1024;

/// The processes of all machines of a service.
#[derive(Clone, Debug, Default)]
pub struct Processes(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    names: Names,
    /// Processes that are no machine any more, and how many vCPUs each created. They may be one again: their
    /// machine is registered again, or their socket has another name.
    former: VecDeque<(ProcessId, u32)>,
}

/// The names of each process, each with the thread of the first vCPU when QEMU has answered.
type Names = BTreeMap<ProcessId, BTreeMap<MachineName, Option<Tid>>>;

impl Processes {
    /// Notes that `process` is the machine `name`, unless it has another name.
    pub(super) fn claim(&self, process: ProcessId, name: &MachineName) -> Result<(), MachineName> {
        let mut state = self.lock();
        let names = state.names.entry(process).or_default();
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
        let mut state = self.lock();
        let names = state.names.entry(process).or_default();
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
        let mut state = self.lock();
        let names = state.names.entry(process).or_default();
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that `process` is not the machine `name` any more, and that it created this many vCPUs in its life.
    pub(super) fn release(&self, process: ProcessId, name: &MachineName, created: u32) {
        let mut state = self.lock();
        if let Some(names) = state.names.get_mut(&process) {
            names.remove(name);
            if names.is_empty() {
                state.names.remove(&process);
            }
        }
        state.former.retain(|(former, _)| *former != process);
        if state.former.len() == FORMER {
            state.former.pop_front();
        }
        state.former.push_back((process, created));
    }

    /// Returns how many vCPUs `process` had created when it was a machine before; 0 if it was none.
    pub(super) fn created(&self, process: ProcessId) -> u32 {
        let state = self.lock();
        let mut former = state.former.iter();
        let found = former.find(|(former, _)| *former == process);
        found.map_or(0, |(_, created)| *created)
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
        processes.release(process, &web, 0);
        assert_eq!(processes.claim(process, &web), Err(db.clone()));
        assert_eq!(processes.confirm(process, &db, Tid(8)), Ok(()));
        processes.release(process, &db, 0);
        assert_eq!(processes.claim(process, &web), Ok(()));
        // A later process with the same PID is another.
        let later = ProcessId {
            start: 10,
            ..process
        };
        assert_eq!(processes.claim(later, &db), Ok(()));
    }

    #[test]
    fn remembers_what_the_last_former_processes_created() {
        let processes = Processes::default();
        let web: MachineName = "web".parse().unwrap();
        let process = |start| ProcessId {
            pid: crate::ids::Pid(7),
            start,
        };
        for start in 0..=FORMER as u64 {
            processes.release(process(start), &web, 1);
            processes.release(process(start), &web, 3);
        }
        assert_eq!(processes.created(process(0)), 0);
        assert_eq!(processes.created(process(1)), 3);
        assert_eq!(processes.lock().former.len(), FORMER);
    }
}
