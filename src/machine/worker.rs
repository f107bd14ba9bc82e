//! Work that blocks: `/proc`, control groups and what else the kernel answers. It runs on the
//! blocking pool, so that no machine holds up the others, and a limited number of machines work at a
//! time.

use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::blocking::{blocking, broken};
use crate::ids::VcpuId;
use crate::placement::{Report, StepError};
use crate::placer::Placer;

/// The number of works at a time, of all machines.
static PLACES: Semaphore = Semaphore::const_new(2);

/// The result of a placement pass: a report, or why everything was put back, by vCPU.
pub(super) type Passed = Result<Report, Vec<(VcpuId, StepError)>>;

/// The owner of a machine's placer.
#[derive(Debug, Default)]
pub(super) enum Worker {
    /// The machine has no placer.
    #[default]
    Absent,
    /// No pass is under way.
    Idle(Box<Placer>),
    /// A pass is under way.
    Busy(JoinHandle<(Box<Placer>, Passed)>),
}

impl Worker {
    /// Returns the placer, unless a pass is under way.
    #[cfg(test)]
    pub(super) fn placer(&self) -> Option<&Placer> {
        match self {
            Self::Idle(placer) => Some(placer),
            Self::Absent | Self::Busy(_) => None,
        }
    }

    /// Makes a pass. Returns `None` where there is no placer. Where the call is given up, the pass
    /// goes on, and [`Worker::finish`] waits for it.
    pub(super) async fn pass(
        &mut self,
        work: impl FnOnce(&mut Placer) -> Passed + Send + 'static,
    ) -> Option<Passed> {
        self.finish().await;
        let place = PLACES.acquire().await;
        *self = match std::mem::take(self) {
            Self::Idle(mut placer) => Self::Busy(spawn_blocking(move || {
                let _place = place;
                let passed = work(&mut placer);
                (placer, passed)
            })),
            other => other,
        };
        self.finish().await
    }

    /// Waits for the end of a pass that is under way.
    pub(super) async fn finish(&mut self) -> Option<Passed> {
        let Self::Busy(pass) = self else {
            return None;
        };
        let (placer, passed) = pass.await.unwrap_or_else(broken);
        *self = Self::Idle(placer);
        Some(passed)
    }
}

/// Does `work` on the blocking pool.
pub(super) async fn on_host<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let place = PLACES.acquire().await;
    blocking(move || {
        let _place = place;
        work()
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::placement::UnitPlacement;
    use crate::placer::Host;

    #[tokio::test]
    async fn a_pass_that_is_given_up_goes_on_and_the_next_one_waits_for_it() {
        let home = UnitPlacement::without_groups(String::new());
        let placer = Placer::new(Host::this().unwrap(), "test", home).unwrap();
        let mut worker = Worker::Idle(Box::new(placer));
        let (go_on, waits) = mpsc::channel::<()>();
        let (sender, done) = mpsc::channel();
        let first = sender.clone();
        let pass = worker.pass(move |_| {
            let _ = waits.recv();
            first.send("first").unwrap();
            Ok(Report::default())
        });
        tokio::select! {
            biased;
            _ = pass => panic!("the pass waits"),
            () = tokio::task::yield_now() => {}
        }
        assert!(worker.placer().is_none());
        drop(go_on);
        let second = worker.pass(move |_| {
            sender.send("second").unwrap();
            Ok(Report::default())
        });
        assert!(second.await.is_some());
        assert_eq!(done.iter().collect::<Vec<_>>(), ["first", "second"]);
        assert!(worker.placer().is_some());
        assert!(
            Worker::Absent
                .pass(|_| Ok(Report::default()))
                .await
                .is_none()
        );
    }
}
