//! The statistics of a machine, for callers that only read: at a limited cost, and without a wait for the
//! operation or the placement pass that goes on.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::{Instant, timeout};

use super::model::snapshot::Snapshot;
use super::qmp_session::QmpSession;
use super::tally::Tally;
use crate::blocking::blocking;
use crate::ids::{Tid, VcpuId};
use crate::inventory::Vcpu;
use crate::placer::{Mounts, sample};
use crate::process::{Leader, monotonic};
use crate::qmp;
use crate::statistics::{
    KvmReply, MachineCounters, Reported, Sample, Statistics, VcpuCounters, VcpuKvm, by_vcpu,
};

/// How many machines are sampled at a time. Placement has a limit of its own.
static SAMPLES: Semaphore = Semaphore::const_new(1);

/// How long a caller waits for the reply of QEMU.
const PATIENCE: Duration = Duration::from_millis(500);
/// How old a reply of QEMU may be. QEMU interrupts each vCPU to make one, and callers need no authorization.
const FRESH: Duration = Duration::from_millis(500);
/// A slow reply may be so many times as old as the time that QEMU took.
const FRESH_FACTOR: u32 = 10;
/// How old a reply may be at most.
const LONGEST: Duration = Duration::from_secs(5);

/// Reads the statistics of one machine.
#[derive(Debug)]
pub(super) struct Meter {
    /// The connection to QEMU, while there is one.
    sessions: watch::Receiver<Weak<QmpSession>>,
    /// Locked by the reader that waits for QEMU.
    kvm: Mutex<KvmReader>,
    reported: std::sync::Mutex<Reported>,
    tally: Tally,
}

impl Meter {
    /// Returns the meter of a machine, and the way to pass it the connection to QEMU.
    pub(super) fn new() -> (watch::Sender<Weak<QmpSession>>, Self) {
        let (sender, sessions) = watch::channel(Weak::new());
        let meter = Self {
            sessions,
            kvm: Mutex::default(),
            reported: std::sync::Mutex::default(),
            tally: Tally::default(),
        };
        (sender, meter)
    }

    /// Returns the counters of what the service does.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Returns the counters of KVM, at most as old as [`FRESH`] says. They are empty if QEMU does not have them,
    /// or does not answer soon.
    pub(super) async fn kvm(&self) -> Arc<[VcpuKvm]> {
        let session = self.sessions.borrow().clone();
        let read = async { self.kvm.lock().await.read(&session).await };
        timeout(PATIENCE, read).await.unwrap_or_default()
    }

    /// Returns the counters of the machine with this `snapshot`, with those of `kvm`.
    pub(super) async fn statistics(
        &self,
        snapshot: &Snapshot,
        leader: Option<Arc<Leader>>,
        mounts: &Arc<Mounts>,
        kvm: &[VcpuKvm],
    ) -> Statistics {
        let present = || snapshot.inventory.vcpus().filter(is_present);
        let threads = present().filter_map(|vcpu| Some((vcpu.id, vcpu.thread?)));
        let sample = take_sample(leader, threads.collect(), mounts.clone()).await;

        let reported = self.reported.lock();
        let mut reported = reported.unwrap_or_else(PoisonError::into_inner);
        let vcpus = snapshot.inventory.vcpu_count();
        let machine = MachineCounters {
            timestamp: sample.timestamp,
            usage: reported.usage(&sample, vcpus),
            vcpus,
            max_vcpus: snapshot.inventory.max_vcpus(),
            pending: u32::try_from(snapshot.pending.len()).unwrap_or(u32::MAX),
            started: snapshot.counts_started(),
            activity: self.tally.read(),
        };
        let waits = reported.waits(&sample);
        let kvm = by_vcpu(&snapshot.inventory, kvm);
        let vcpu = |Vcpu { id, .. }: Vcpu<'_>| VcpuCounters {
            id,
            wait: waits.get(&id).copied(),
            thread: sample.threads.get(&id).copied().unwrap_or_default(),
            kvm: kvm.get(&id).copied().unwrap_or_default(),
        };
        Statistics {
            machine,
            vcpus: present().map(vcpu).collect(),
        }
    }
}

fn is_present(vcpu: &Vcpu<'_>) -> bool {
    vcpu.slot.presence.is_some()
}

/// Samples the threads of a process, in turn with the other samples. Without a process, only the time is known.
async fn take_sample(
    leader: Option<Arc<Leader>>,
    threads: BTreeMap<VcpuId, Tid>,
    mounts: Arc<Mounts>,
) -> Sample {
    let turn = SAMPLES.acquire().await;
    blocking(move || {
        let _turn = turn;
        match leader {
            Some(leader) => sample(leader.as_ref(), &threads, &mounts),
            None => Sample::at(monotonic()),
        }
    })
    .await
}

/// Queries KVM's counters of one QEMU, one query at a time.
#[derive(Default)]
struct KvmReader {
    /// The connection of the other fields.
    session: Weak<QmpSession>,
    /// The query that QEMU has not answered, also if its caller does not wait any longer.
    pending: Option<(Instant, BoxFuture<'static, Result<KvmReply, qmp::Error>>)>,
    reply: Arc<[VcpuKvm]>,
    fresh_until: Option<Instant>,
}

impl KvmReader {
    async fn read(&mut self, session: &Weak<QmpSession>) -> Arc<[VcpuKvm]> {
        if !self.session.ptr_eq(session) {
            *self = Self {
                session: session.clone(),
                ..Self::default()
            };
        }
        if session.strong_count() == 0 {
            return Arc::default();
        }
        if self.fresh_until.is_some_and(|end| Instant::now() < end) {
            return self.reply.clone();
        }
        loop {
            if self.pending.is_none() {
                let query = session.upgrade().and_then(|session| session.ask_kvm());
                self.pending = query.map(|reply| (Instant::now(), reply.wait().boxed()));
            }
            let Some((since, reply)) = &mut self.pending else {
                return Arc::default();
            };
            let since = *since;
            // Fails if QEMU has no such query yet (`-preconfig`), or if the connection ended.
            let reply = reply.await.map(|reply| reply.0).unwrap_or_default();
            self.pending = None;
            let age = since.elapsed();
            // A reply for which no caller waited may be outdated.
            if age < LONGEST {
                self.fresh_until = Some(since + (age * FRESH_FACTOR).clamp(FRESH, LONGEST));
                self.reply = reply.into();
                return self.reply.clone();
            }
        }
    }
}

impl std::fmt::Debug for KvmReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvmReader").finish_non_exhaustive()
    }
}
