//! The threads of a process, each held by its directory in `/proc` while it is used.

use std::io;

use super::Dir;
use crate::ids::{Pid, Tid};

/// The threads of one process, which is held so that no other can take its PID.
pub trait Tasks {
    /// Returns the PID of the process.
    fn pid(&self) -> Pid;

    /// Returns whether `thread` is a task of the process, now.
    fn has_task(&self, thread: Tid) -> bool;

    /// Holds `thread`, if it is a task of the process.
    fn hold(&self, thread: Tid) -> Option<Task> {
        // Opened before the check, so that it is the directory of the thread that was checked.
        let dir = Dir::open(format!("/proc/{}/task/{thread}", self.pid())).ok()?;
        self.has_task(thread).then_some(Task(dir))
    }

    /// Returns all tasks of the process, now.
    ///
    /// # Errors
    /// Fails where the process has ended.
    fn tasks(&self) -> io::Result<Vec<Tid>> {
        let tasks = Dir::open(format!("/proc/{}/task", self.pid()))?.children()?;
        // Read before the check, so that they were not a successor's.
        match self.has_task(self.pid().main_thread()) {
            true => Ok(tasks.iter().filter_map(|task| task.parse().ok()).collect()),
            false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }
}

/// A thread, held by its directory in `/proc`. The kernel calls that place a thread take a number,
/// so the thread must be alive before and after each of them: only then was it the thread that
/// they changed.
#[derive(Debug)]
pub struct Task(Dir);

impl Task {
    /// Returns whether the thread has not ended. Another thread with its number does not count.
    pub fn is_alive(&self) -> bool {
        self.0.read("stat").is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    struct Own;

    impl Tasks for Own {
        fn pid(&self) -> Pid {
            Pid(std::process::id())
        }

        fn has_task(&self, thread: Tid) -> bool {
            self.tasks_now().contains(&thread)
        }
    }

    impl Own {
        fn tasks_now(&self) -> Vec<Tid> {
            let tasks = Dir::open("/proc/self/task").unwrap().children().unwrap();
            tasks.iter().map(|task| task.parse().unwrap()).collect()
        }
    }

    #[test]
    fn a_held_thread_is_known_to_have_ended() {
        let (sender, id) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            sender.send(rustix::thread::gettid()).unwrap();
            let _ = ended.recv();
        });
        let id = Tid(id.recv().unwrap().as_raw_nonzero().get().unsigned_abs());
        let task = Own.hold(id).unwrap();
        assert!(task.is_alive());
        drop(end);
        thread.join().unwrap();
        // The kernel takes the thread out of the list a moment after `join` returns.
        while Own.has_task(id) {
            thread::yield_now();
        }
        assert!(!task.is_alive());
        assert!(Own.hold(id).is_none());
    }
}
