//! The QEMU processes that are machines. A process is one machine: a second name would have systemd
//! move it to another unit, and two actors place the same threads.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::ids::Tid;
use crate::names::MachineName;
use crate::process::ProcessId;

/// How many processes are remembered that are no machine any more.
const FORMER: usize = 1024;

/// The processes of all machines of a service.
#[derive(Clone, Debug, Default)]
pub struct Processes {
    state: Arc<Mutex<State>>,
    /// Notified when the second names change.
    changed: Arc<Notify>,
}

/// The machines of the administrator whose QEMU process is another machine, and that other machine.
pub type SecondNames = BTreeMap<MachineName, MachineName>;

#[derive(Debug, Default)]
struct State {
    names: Names,
    second: SecondNames,
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
                if state.second.remove(name).is_some() {
                    self.changed.notify_one();
                }
                Ok(())
            }
        }
    }

    /// Notes that `name` is a second name of the machine `first`.
    pub(super) fn note_second(&self, name: &MachineName, first: MachineName) {
        let previous = self.lock().second.insert(name.clone(), first.clone());
        if previous != Some(first) {
            self.changed.notify_one();
        }
    }

    /// Notes that `process` does not answer the machine `name`. QEMU answers one client of a QMP socket at a
    /// time, so this is a second name if another machine has an answer.
    pub(super) fn note_silence(&self, process: ProcessId, name: &MachineName) {
        let first = self.lock().names.get(&process).and_then(|names| {
            let mut others = names.iter().filter(|(other, _)| *other != name);
            let answered = others.find(|(_, thread)| thread.is_some());
            answered.map(|(other, _)| other.clone())
        });
        if let Some(first) = first {
            self.note_second(name, first);
        }
    }

    /// Returns the second names.
    pub fn second_names(&self) -> SecondNames {
        self.lock().second.clone()
    }

    /// Waits until the second names change. No change is lost if the call is cancelled.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        let count = state.second.len();
        let is_other =
            |second: &MachineName, first: &mut MachineName| second != name && first != name;
        state.second.retain(is_other);
        if state.second.len() < count {
            self.changed.notify_one();
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
    fn a_silent_process_that_answers_another_machine_has_a_second_name() {
        let processes = Processes::default();
        let process = ProcessId {
            pid: crate::ids::Pid(7),
            start: 9,
        };
        let [web, db]: [MachineName; 2] = ["web", "db"].map(|name| name.parse().unwrap());
        processes.share(process, &web);
        processes.share(process, &db);
        processes.note_silence(process, &db);
        assert_eq!(processes.second_names(), SecondNames::new());
        processes.confirm(process, &web, Tid(8)).unwrap();
        processes.note_silence(process, &db);
        let second = SecondNames::from([(db.clone(), web.clone())]);
        assert_eq!(processes.second_names(), second);
        processes.confirm(process, &db, Tid(9)).unwrap();
        assert_eq!(processes.second_names(), SecondNames::new());
        processes.note_second(&db, web.clone());
        processes.release(process, &web, 0);
        assert_eq!(processes.second_names(), SecondNames::new());
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
