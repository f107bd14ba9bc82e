//! Guest CPUs that were taken offline for removals. They are brought online again if the vCPU is not
//! removed, also after a restart of the service.

use std::time::{Duration, Instant};

use super::request::OfflineCpu;
use crate::ids::VcpuId;

/// The pause after a failure to reach the guest agent. Each next one is twice as long.
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// The longest such pause.
const LONGEST_RETRY: Duration = Duration::from_secs(300);

/// The guest CPUs that are offline because of this service.
#[derive(Debug, Default)]
pub(super) struct OfflineCpus {
    cpus: Vec<Entry>,
    /// The CPUs that are being brought online, except those that a later call is responsible for.
    restoring: Option<Vec<u32>>,
    retry: Option<(Instant, Duration)>,
}

#[derive(Debug)]
struct Entry {
    cpu: OfflineCpu,
    /// The number of calls that are responsible for it.
    calls: u32,
    /// Whether it may be offline because of a call that has ended.
    is_left: bool,
    /// Whether its vCPU is not present any more.
    is_gone: bool,
}

impl OfflineCpus {
    /// Notes the CPUs that a call is about to take offline.
    pub(super) fn hold(&mut self, cpus: Vec<OfflineCpu>) {
        for cpu in cpus {
            if let Some(restoring) = &mut self.restoring {
                // The call may take it offline after it was brought online.
                restoring.retain(|other| *other != cpu.cpu);
            }
            let known = self.cpus.iter().find(|entry| entry.cpu.cpu == cpu.cpu);
            let known = known.map(|entry| (entry.calls, entry.is_left));
            let (calls, is_left) = known.unwrap_or_default();
            self.remove(&[cpu.cpu]);
            self.cpus.push(Entry {
                cpu,
                calls: calls + 1,
                is_left,
                is_gone: false,
            });
        }
    }

    /// Ends the responsibility of a call that did not take `cpus` offline. Others may have done so.
    pub(super) fn cancel(&mut self, cpus: &[u32]) {
        let entries = self.cpus.iter_mut();
        for entry in entries.filter(|entry| cpus.contains(&entry.cpu.cpu)) {
            entry.calls = entry.calls.saturating_sub(1);
        }
        self.cpus.retain(|entry| {
            let is_over = entry.calls == 0 && !entry.is_left;
            !(is_over && cpus.contains(&entry.cpu.cpu))
        });
        self.reset_retry();
    }

    /// Ends the responsibility of a call for `cpus`. With `restored` they are online, unless another call
    /// takes them offline.
    pub(super) fn release(&mut self, cpus: &[u32], restored: bool) {
        let entries = self.cpus.iter_mut();
        for entry in entries.filter(|entry| cpus.contains(&entry.cpu.cpu)) {
            entry.calls = entry.calls.saturating_sub(1);
            entry.is_left = !restored;
        }
        if restored {
            self.remove_unheld(cpus);
        }
    }

    /// Restores the CPUs of a previous instance, whose calls have ended.
    pub(super) fn restore(&mut self, cpus: Vec<OfflineCpu>) {
        let left = cpus.into_iter().map(|cpu| Entry {
            cpu,
            calls: 0,
            is_left: true,
            is_gone: false,
        });
        self.cpus.extend(left);
    }

    /// Returns whether no CPU is offline.
    pub(super) fn is_empty(&self) -> bool {
        self.cpus.is_empty()
    }

    /// Returns the persisted form.
    pub(super) fn to_saved(&self) -> Vec<OfflineCpu> {
        self.cpus.iter().map(|entry| entry.cpu).collect()
    }

    /// Notes the CPUs whose vCPU is gone. The guest has them no longer. The next attempt brings those online
    /// that the guest lists nevertheless, because they are of other vCPUs.
    pub(super) fn note_present(&mut self, is_present: impl Fn(VcpuId) -> bool) {
        for entry in &mut self.cpus {
            entry.is_gone = !is_present(entry.cpu.vcpu);
        }
    }

    /// Returns the CPUs to bring online now: those that no call is responsible for, and whose vCPU is
    /// not `leaving`.
    pub(super) fn begin_restore(
        &mut self,
        now: Instant,
        is_leaving: impl Fn(VcpuId) -> bool,
    ) -> Option<Vec<u32>> {
        let is_early = self.retry.is_some_and(|(at, _)| at > now);
        if self.restoring.is_some() || is_early {
            return None;
        }
        let left = self.cpus.iter();
        let left = left.filter(|entry| entry.calls == 0 && !is_leaving(entry.cpu.vcpu));
        let cpus: Vec<u32> = left.map(|entry| entry.cpu.cpu).collect();
        if cpus.is_empty() {
            return None;
        }
        self.restoring = Some(cpus.clone());
        Some(cpus)
    }

    /// Notes whether the CPUs were brought online. Returns those that were not, except those whose vCPU is
    /// gone: there is one attempt for them.
    pub(super) fn end_restore(&mut self, now: Instant, is_online: bool) -> Option<Vec<u32>> {
        let mut cpus = self.restoring.take()?;
        if !is_online {
            self.cpus.retain(|entry| {
                let is_over = entry.is_gone && entry.calls == 0 && cpus.contains(&entry.cpu.cpu);
                if is_over {
                    cpus.retain(|cpu| *cpu != entry.cpu.cpu);
                }
                !is_over
            });
        }
        if is_online || cpus.is_empty() {
            // A call may have taken one offline in the meantime.
            self.remove_unheld(&cpus);
            self.retry = None;
            return None;
        }
        let pause = self.retry.map_or(FIRST_RETRY, |(_, pause)| pause * 2);
        let pause = pause.min(LONGEST_RETRY);
        self.retry = Some((now + pause, pause));
        Some(cpus)
    }

    /// Notes that the connection ended, and the attempt with it.
    pub(super) fn interrupt(&mut self) {
        self.restoring = None;
    }

    /// Returns when the next attempt is due, if that is after `now`.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let (at, _) = self.retry.filter(|_| !self.cpus.is_empty())?;
        (at > now && self.restoring.is_none()).then_some(at)
    }

    fn remove_unheld(&mut self, cpus: &[u32]) {
        let is_over = |entry: &Entry| entry.calls == 0 && cpus.contains(&entry.cpu.cpu);
        self.cpus.retain(|entry| !is_over(entry));
        self.reset_retry();
    }

    fn remove(&mut self, cpus: &[u32]) {
        self.cpus.retain(|entry| !cpus.contains(&entry.cpu.cpu));
    }

    /// Lets the next attempt be the first of its kind if no CPU is offline.
    fn reset_retry(&mut self) {
        if self.cpus.is_empty() {
            self.retry = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(vcpu: u32, cpu: u32) -> OfflineCpu {
        OfflineCpu {
            vcpu: VcpuId(vcpu),
            cpu,
        }
    }

    #[test]
    fn restores_what_no_call_is_responsible_for() {
        let (mut cpus, now) = (OfflineCpus::default(), Instant::now());
        cpus.hold(vec![cpu(2, 1), cpu(3, 2)]);
        assert_eq!(cpus.begin_restore(now, |_| false), None);
        cpus.release(&[1, 2], false);
        let leaving = |vcpu: VcpuId| vcpu == 3;
        assert_eq!(cpus.begin_restore(now, leaving), Some(vec![1]));
        assert_eq!(cpus.begin_restore(now, leaving), None, "one at a time");
        assert_eq!(cpus.end_restore(now, true), None);
        assert_eq!(cpus.to_saved(), [cpu(3, 2)]);
    }

    #[test]
    fn a_call_during_an_attempt_needs_another_attempt() {
        let (mut cpus, now) = (OfflineCpus::default(), Instant::now());
        cpus.restore(vec![cpu(2, 1), cpu(3, 2)]);
        assert_eq!(cpus.begin_restore(now, |_| false), Some(vec![1, 2]));
        cpus.hold(vec![cpu(2, 1)]);
        cpus.release(&[1], false);
        assert_eq!(cpus.end_restore(now, true), None);
        assert_eq!(cpus.to_saved(), [cpu(2, 1)]);
        assert_eq!(cpus.begin_restore(now, |_| false), Some(vec![1]));
    }

    #[test]
    fn verifies_once_that_the_cpu_of_a_removed_vcpu_is_gone() {
        for is_online in [true, false] {
            let (mut cpus, now) = (OfflineCpus::default(), Instant::now());
            cpus.hold(vec![cpu(3, 2)]);
            cpus.release(&[2], false);
            let leaving = |vcpu: VcpuId| vcpu == 3;
            assert_eq!(cpus.begin_restore(now, leaving), None);
            cpus.note_present(|vcpu| vcpu != 3);
            assert_eq!(cpus.begin_restore(now, |_| false), Some(vec![2]));
            assert_eq!(cpus.end_restore(now, is_online), None);
            assert_eq!(cpus.to_saved(), []);
            assert_eq!(cpus.next_deadline(now), None);
        }
    }

    #[test]
    fn tries_again_after_a_failure() {
        let (mut cpus, now) = (OfflineCpus::default(), Instant::now());
        cpus.restore(vec![cpu(2, 1)]);
        assert_eq!(cpus.begin_restore(now, |_| false), Some(vec![1]));
        assert_eq!(cpus.end_restore(now, false), Some(vec![1]));
        assert_eq!(cpus.begin_restore(now, |_| false), None);
        assert_eq!(cpus.next_deadline(now), Some(now + FIRST_RETRY));
        let later = now + FIRST_RETRY;
        assert_eq!(cpus.begin_restore(later, |_| false), Some(vec![1]));
        cpus.end_restore(later, false);
        assert_eq!(cpus.next_deadline(later), Some(later + 2 * FIRST_RETRY));
    }

    #[test]
    fn a_cpu_that_another_call_takes_offline_stays_its_responsibility() {
        let (mut cpus, now) = (OfflineCpus::default(), Instant::now());
        cpus.hold(vec![cpu(2, 1)]);
        cpus.hold(vec![cpu(2, 1)]);
        cpus.release(&[1], true);
        assert_eq!(cpus.begin_restore(now, |_| false), None);
        cpus.release(&[1], false);
        assert_eq!(cpus.begin_restore(now, |_| false), Some(vec![1]));
        cpus.hold(vec![cpu(2, 1)]);
        cpus.end_restore(now, true);
        cpus.release(&[1], false);
        assert_eq!(cpus.begin_restore(now, |_| false), Some(vec![1]));
    }

    #[test]
    fn a_call_that_took_nothing_offline_forgets_nothing_of_others() {
        let (mut cpus, now) = (OfflineCpus::default(), Instant::now());
        cpus.hold(vec![cpu(2, 1)]);
        cpus.hold(vec![cpu(2, 1), cpu(3, 2)]);
        cpus.release(&[1], false);
        cpus.cancel(&[1, 2]);
        assert_eq!(cpus.to_saved(), [cpu(2, 1)]);
        cpus.hold(vec![cpu(2, 1)]);
        cpus.cancel(&[1]);
        assert_eq!(cpus.begin_restore(now, |_| false), Some(vec![1]));
    }

    #[test]
    fn forgets_what_a_call_restored() {
        let mut cpus = OfflineCpus::default();
        cpus.hold(vec![cpu(2, 1), cpu(3, 2)]);
        cpus.release(&[1], true);
        assert_eq!(cpus.to_saved(), [cpu(3, 2)]);
    }
}
