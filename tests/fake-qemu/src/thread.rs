//! Threads in the place of vCPU threads. They do nothing.

use std::fs;
use std::sync::mpsc;
use std::thread;

/// A thread of this process. It ends when this is dropped.
pub(crate) struct Parked {
    id: u32,
    _release: mpsc::Sender<()>,
}

impl Parked {
    /// Starts a thread.
    pub(crate) fn start() -> Self {
        let (report, reported) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        thread::spawn(move || {
            let link = fs::read_link("/proc/thread-self").expect("Linux has it");
            let id = link.file_name().and_then(|id| id.to_str()?.parse().ok());
            report
                .send(id.expect("PID/task/ID"))
                .expect("it is awaited");
            let _ = released.recv();
        });
        Self {
            id: reported.recv().expect("the thread reports"),
            _release: release,
        }
    }

    /// Returns its thread id.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }
}
