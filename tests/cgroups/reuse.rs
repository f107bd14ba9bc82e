//! Thread ids that another process gets while vcpud uses them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vcpud::ids::{Pid, Tid, VcpuId};
use vcpud::placement::{Kind, Reason, Scheduler, Step, Tuning, UnitPlacement};
use vcpud::placer::{Host, Placer, affinity, scheduling};
use vcpud::process::Tasks;

use super::parts::{Bystander, Ran, not_run, two_cpus};

tests![undoes_the_change_of_a_process_that_got_the_number_of_a_thread,];

/// This process with a thread that ends at the Nth check. Then another process gets its number.
struct Ending {
    thread: Tid,
    checks: Cell<usize>,
    ends_at: usize,
    parked: RefCell<Option<(mpsc::Sender<()>, JoinHandle<()>)>>,
    successor: RefCell<Option<Bystander>>,
}

impl Ending {
    fn start(ends_at: usize) -> Self {
        let (sender, id) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let parked = thread::spawn(move || {
            sender.send(rustix::thread::gettid()).unwrap();
            let _ = ended.recv();
        });
        let thread = Tid(id.recv().unwrap().as_raw_nonzero().get().unsigned_abs());
        Self {
            thread,
            checks: Cell::new(0),
            ends_at,
            parked: RefCell::new(Some((end, parked))),
            successor: RefCell::default(),
        }
    }

    /// Ends the thread, and starts a process that has its number.
    fn swap(&self) {
        let (end, parked) = self.parked.take().unwrap();
        drop(end);
        parked.join().unwrap();
        // The kernel removes the directory after the join, and emits no event.
        while self.path().exists() {
            thread::sleep(Duration::from_millis(1));
        }
        let before = (self.thread.get() - 1).to_string();
        let successor = loop {
            // Any other process of the host may be faster.
            fs::write(LAST_PID, &before).unwrap();
            let process = Bystander::start();
            if process.thread() == self.thread {
                break process;
            }
        };
        self.successor.replace(Some(successor));
    }

    fn path(&self) -> std::path::PathBuf {
        format!("/proc/{}/task/{}", self.pid(), self.thread).into()
    }
}

impl Tasks for Ending {
    fn pid(&self) -> Pid {
        Pid(std::process::id())
    }

    fn has_task(&self, thread: Tid) -> bool {
        let is_there = Path::new(&format!("/proc/{}/task/{thread}", self.pid())).exists();
        self.checks.set(self.checks.get() + 1);
        if self.checks.get() == self.ends_at {
            self.swap();
        }
        is_there
    }
}

/// The next process gets the number after the one in this file.
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

/// Uses a thread of the test, and a process that gets its number.
fn undoes_the_change_of_a_process_that_got_the_number_of_a_thread() -> Ran {
    if fs::read_to_string(LAST_PID)
        .and_then(|last| fs::write(LAST_PID, last))
        .is_err()
    {
        return Err(not_run(
            "this host does not let the test choose process ids",
        ));
    }
    let host = Host::this().unwrap();
    let (first, _) = two_cpus(&host);
    let own = affinity(Tid(std::process::id())).unwrap();
    // The first check comes before all steps; then each step has one.
    for (ends_at, step) in [(2, Step::Affinity), (3, Step::Scheduler)] {
        let home = UnitPlacement {
            kind: Kind::None,
            unit: String::new(),
            control_group: String::new(),
        };
        let mut placer = Placer::new(host.clone(), "test", home).unwrap();
        let tuning = Tuning {
            affinity: Some(first.clone()),
            scheduler: Some(Scheduler::Idle),
            ..Tuning::default()
        };
        let qemu = Ending::start(ends_at);
        let vcpus = BTreeMap::from([(VcpuId(0), qemu.thread)]);
        let report = placer.reconcile(&tuning, &vcpus, &qemu);
        let failures: Vec<_> = report.failures().collect();
        let [(VcpuId(0), error)] = failures[..] else {
            panic!("{report:#?}");
        };
        assert_eq!((error.step, &error.reason), (step, &Reason::Ended));
        let successor = qemu.successor.take().unwrap();
        let successor_thread = successor.thread();
        assert_eq!(successor_thread, qemu.thread);
        assert_eq!(affinity(successor_thread).unwrap(), own);
        assert_eq!(scheduling(successor_thread).unwrap().name(), "other");
    }
    Ok(())
}
