//! The numbers of threads in PID namespaces (`pid_namespaces(7)`). A QEMU in a container reports the numbers
//! of its own namespace, and the kernel takes those of the namespace of vcpud.

use std::collections::{BTreeMap, BTreeSet};

use super::dir::Dir;
use super::task::Tasks;
use crate::ids::{MAX_VCPUS, Tid};

/// The maximum number of tasks whose status is read. A QEMU has a thread for each vCPU, and some others.
const TASKS: usize = MAX_VCPUS as usize + 4096;

/// Returns which tasks of `process` have the numbers `own` in the PID namespace of the process, by these
/// numbers. A number that no task has, or that several have, is missing. Blocks.
pub(super) fn tasks_by_own_number(process: &impl Tasks, own: &BTreeSet<Tid>) -> BTreeMap<Tid, Tid> {
    let main = process.pid().main_thread();
    if is_in_our_namespace(process, main) {
        let tasks = own.iter().filter(|task| process.has_task(**task));
        return tasks.map(|task| (*task, *task)).collect();
    }
    let tasks = process.tasks().unwrap_or_default();
    let numbers = tasks.into_iter().take(TASKS);
    let numbers = numbers.filter_map(|task| Some((own_number(process, task)?, task)));
    select(numbers, own)
}

/// Returns those of the pairs of numbers, in the namespace of a process and in ours, whose first is in `own`
/// and in no other pair.
fn select(numbers: impl Iterator<Item = (Tid, Tid)>, own: &BTreeSet<Tid>) -> BTreeMap<Tid, Tid> {
    let mut tasks = BTreeMap::new();
    let mut ambiguous = BTreeSet::new();
    for (number, task) in numbers.filter(|(number, _)| own.contains(number)) {
        if tasks.insert(number, task).is_some() {
            ambiguous.insert(number);
        }
    }
    tasks.retain(|number, _| !ambiguous.contains(number));
    tasks
}

/// Returns whether the process has the same numbers in its own namespace. All its threads are in that.
fn is_in_our_namespace(process: &impl Tasks, main: Tid) -> bool {
    let numbers = numbers(process, main);
    // A kernel without PID namespaces shows no numbers.
    numbers.is_none_or(|numbers| numbers.len() < 2)
}

/// Returns the number of `task` in the namespace of the process, if it is still a task of the process.
fn own_number(process: &impl Tasks, task: Tid) -> Option<Tid> {
    let numbers = numbers(process, task)?;
    (numbers.first() == Some(&task) && process.has_task(task))
        .then(|| numbers.last().copied())
        .flatten()
}

/// Returns the numbers of `task` from our namespace to that of the process.
fn numbers(process: &impl Tasks, task: Tid) -> Option<Vec<Tid>> {
    let dir = Dir::open(format!("/proc/{}/task/{task}", process.pid())).ok()?;
    parse(&dir.read("status").ok()?)
}

/// Reads the line `NSpid` of the text of `/proc/PID/status` (`proc_pid_status(5)`).
fn parse(status: &str) -> Option<Vec<Tid>> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    let numbers = line.split_whitespace().map(|number| number.parse().ok());
    numbers.map(|number| number.map(Tid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_numbers_of_a_thread() {
        let status = |line: &str| format!("Name:\tCPU 0/KVM\nTgid:\t4242\n{line}Threads:\t9\n");
        let of = |line: &str| parse(&status(line));
        assert_eq!(of("NSpid:\t4250\n"), Some(vec![Tid(4250)]));
        let nested = Some(vec![Tid(4250), Tid(77), Tid(9)]);
        assert_eq!(of("NSpid:\t4250\t77\t9\n"), nested);
        assert_eq!(of(""), None);
        assert_eq!(of("NSpid:\t4250\t-1\n"), None);
    }

    #[test]
    fn a_number_of_several_tasks_is_not_used() {
        let pairs = [(9, 4250), (10, 4251), (9, 4252), (11, 4253)];
        let pairs = pairs.map(|(own, task)| (Tid(own), Tid(task)));
        let own = BTreeSet::from([Tid(9), Tid(10), Tid(12)]);
        let selected = select(pairs.into_iter(), &own);
        assert_eq!(selected, [(Tid(10), Tid(4251))].into());
    }
}
