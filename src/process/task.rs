//! The threads of a process. vcpud keeps the directory of a thread in `/proc` open while it uses the thread.

use std::io;

use super::dir::Dir;
use crate::ids::{Pid, Tid};

/// The threads of one process, whose pidfd keeps other processes from getting its PID.
pub trait Tasks {
    /// Returns the PID of the process.
    fn pid(&self) -> Pid;

    /// Returns whether `thread` is a task of the process now.
    fn has_task(&self, thread: Tid) -> bool;

    /// Opens `thread`, if it is a task of the process.
    fn hold(&self, thread: Tid) -> Option<Task> {
        // Opened before the check, so that it is the directory of the thread that was checked.
        let dir = Dir::open(format!("/proc/{}/task/{thread}", self.pid())).ok()?;
        self.has_task(thread).then_some(Task(dir))
    }

    /// Opens the directory of the tasks of the process, to open many of them.
    ///
    /// # Errors
    ///
    /// Fails if the process has exited.
    fn open_tasks(&self) -> io::Result<TaskDir> {
        let dir = Dir::open(format!("/proc/{}/task", self.pid()))?;
        // Checked after that, so that it is not the directory of a later process with its PID.
        if !self.has_task(self.pid().main_thread()) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(TaskDir(dir))
    }

    /// Returns all current tasks of the process.
    ///
    /// # Errors
    ///
    /// Fails if the process has exited.
    fn tasks(&self) -> io::Result<Vec<Tid>> {
        let tasks = self.open_tasks()?.0.children()?;
        Ok(tasks.iter().filter_map(|task| task.parse().ok()).collect())
    }
}

/// The open directory of the tasks of a process. The kernel finds no task of another process in it.
#[derive(Debug)]
pub struct TaskDir(Dir);

impl TaskDir {
    /// Opens `thread`, if it is a task of the process.
    pub fn hold(&self, thread: Tid) -> Option<Task> {
        self.0.child(&thread.to_string()).ok().map(Task)
    }
}

/// A thread whose directory in `/proc` is open. The system calls that place a thread take a number, so the
/// thread must be alive before and after each call. Only then the call changed this thread.
#[derive(Debug)]
pub struct Task(Dir);

impl Task {
    /// Returns the text of one of its files in `/proc`.
    ///
    /// # Errors
    ///
    /// Fails if the thread has ended. Another thread with its number does not count.
    pub fn read(&self, file: &str) -> io::Result<String> {
        self.0.read(file)
    }

    /// Returns whether the thread is alive. Another thread with its number does not count.
    pub fn is_alive(&self) -> bool {
        self.read("stat").is_ok()
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
    fn detects_that_a_thread_has_ended() {
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
        // The kernel removes the thread from the list a moment after `join` returns.
        while Own.has_task(id) {
            thread::yield_now();
        }
        assert!(!task.is_alive());
        assert!(Own.hold(id).is_none());
    }
}
