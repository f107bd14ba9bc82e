//! Requests that change the tuning.

use std::sync::Arc;

use super::effect::Effect;
use super::error::{Error, TuningError};
use super::operation::{Operation, Refreshed, Then, Tune};
use super::process::{Context, Process};
use super::request::{Outcome, RequestId};
use super::snapshot::{Snapshot, Subject};
use super::tuning::TuningChange;
use crate::ids::VcpuId;
use crate::placement::{Report, StepError, Tuning};

impl Process {
    /// Lets the placer check whether the host supports `change`.
    pub(super) fn begin_tuning(
        &mut self,
        cx: &mut Context<'_>,
        id: RequestId,
        change: TuningChange,
        subject: &Subject,
    ) {
        let snapshot = cx.out.snapshot();
        let checked = snapshot.check(subject).and_then(|()| {
            let checked = self.placement.check(&change, &snapshot.inventory);
            checked.map_err(Error::Tuning)
        });
        match checked {
            Ok(wanted) => {
                cx.out.push(Effect::CheckTuning(change.clone()));
                self.operation = Operation::Checking(Tune { id, change }, wanted);
            }
            Err(error) => cx.out.reply(id, Err(error)),
        }
    }

    /// Saves the tuning before it is enforced: one that is enforced and not saved would be undone by
    /// a restart.
    pub(super) fn tuning_checked(&mut self, cx: &mut Context<'_>, result: Result<(), TuningError>) {
        match std::mem::take(&mut self.operation) {
            Operation::Checking(tune, wanted) => match result {
                Ok(()) => {
                    let previous = self.placement.replace(wanted);
                    let save = self.save(cx.out);
                    self.operation = Operation::SavingTuning(save, tune, previous);
                }
                Err(error) => cx.out.reply(tune.id, Err(Error::Tuning(error))),
            },
            other => self.operation = other,
        }
    }

    /// Lets the placer enforce the tuning.
    pub(super) fn switch(&mut self, cx: &mut Context<'_>, tune: Tune, previous: Arc<Tuning>) {
        let change = tune.change.clone();
        let switch = self.placement.switch_from(previous.clone(), change);
        cx.out.push(Effect::ChangeTuning(Box::new(switch)));
        self.operation = Operation::Switching(tune, previous);
    }

    /// Publishes the tuning, or goes back to the previous one, which the placer has restored.
    pub(super) fn tuning_changed(
        &mut self,
        cx: &mut Context<'_>,
        result: Result<Report, Vec<(VcpuId, StepError)>>,
    ) {
        match (std::mem::take(&mut self.operation), result) {
            (Operation::Switching(tune, _), Ok(report)) => {
                if self.placement.placed(cx.now, &report) {
                    self.save(cx.out);
                }
                let snapshot = Snapshot::clone(cx.out.snapshot());
                self.publish(snapshot, cx.out);
                cx.out.reply(tune.id, Ok(Outcome::default()));
            }
            (Operation::Switching(tune, previous), Err(failures)) => {
                let error = Error::Tuning(TuningError::Failed(failures));
                self.revert(cx, &tune, previous, error);
            }
            (other, _) => self.operation = other,
        }
    }

    /// Goes back to the previous tuning, and answers with `error`.
    pub(super) fn revert(
        &mut self,
        cx: &mut Context<'_>,
        tune: &Tune,
        previous: Arc<Tuning>,
        error: Error,
    ) {
        self.placement.replace(previous);
        self.save(cx.out);
        let snapshot = Snapshot::clone(cx.out.snapshot());
        self.publish(snapshot, cx.out);
        cx.out.reply(tune.id, Err(error));
    }

    /// Places and publishes the machine again without a refresh.
    pub(super) fn reapply(&mut self, cx: &mut Context<'_>, then: Then) {
        let snapshot = Snapshot::clone(cx.out.snapshot());
        let refreshed = Refreshed {
            before: snapshot.inventory.clone(),
            snapshot,
            events: Vec::new(),
            since: cx.now,
            cost: std::time::Duration::ZERO,
            save: None,
            then,
        };
        self.place(cx, Box::new(refreshed));
    }
}
