//! Owns the texts of a plan: the changes of a number of vCPUs, or why it is not possible. It must not plan.

use super::dict::{Dict, get, text};
use super::failure::{self, Failure, Refusal};
use super::numbers;
use super::sentence::sentence;

/// A reply of `Plan`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Plan {
    /// The machine has this number.
    Unchanged,
    /// The vCPUs that would change, and the warnings of the service.
    Possible {
        added: Vec<u32>,
        removed: Vec<u32>,
        warnings: Vec<String>,
    },
    /// The title and the reason.
    Impossible { title: String, reason: String },
    /// The service has not planned.
    Failed(Failure),
}

impl Plan {
    /// Returns the plan of a reply of the method `Plan`.
    pub(crate) fn new(reply: &Dict) -> Self {
        if let Some(error) = get::<String>(reply, "error") {
            let reason = text(reply, "reason");
            return Self::Impossible {
                title: failure::describe(&error, &reason).title,
                // The text names the nearest numbers that are possible.
                reason: sentence(&reason),
            };
        }
        let added: Vec<u32> = get(reply, "added").unwrap_or_default();
        let removed: Vec<u32> = get(reply, "removed").unwrap_or_default();
        if added.is_empty() && removed.is_empty() {
            return Self::Unchanged;
        }
        let warnings: Vec<String> = get(reply, "warnings").unwrap_or_default();
        let warnings = warnings.iter().map(|text| sentence(text)).collect();
        Self::Possible {
            added,
            removed,
            warnings,
        }
    }

    /// Returns whether the change can be applied. `pending` are the vCPUs whose removal is pending.
    pub(crate) fn is_possible(&self, pending: &[u32]) -> bool {
        matches!(self, Self::Possible { .. }) && !self.is_begun(pending)
    }

    /// Returns whether QEMU has asked the guest for all of this already.
    fn is_begun(&self, pending: &[u32]) -> bool {
        match self {
            Self::Possible { removed, .. } => {
                !removed.is_empty() && removed.iter().all(|id| pending.contains(id))
            }
            _ => false,
        }
    }

    /// Returns the title and the subtitle of the row. `pending` are the vCPUs whose removal is pending, and `refusals`
    /// those of the last request.
    pub(crate) fn text(&self, pending: &[u32], refusals: &[Refusal]) -> (String, String) {
        match self {
            Self::Unchanged => ("No change".to_owned(), String::new()),
            Self::Impossible { title, reason } => (title.clone(), reason.clone()),
            Self::Failed(failure) => (failure.title.clone(), sentence(&failure.detail)),
            Self::Possible { added, removed, .. } => {
                let list = if removed.is_empty() { added } else { removed };
                let is_pending = self.is_begun(pending);
                let verb = match (removed.is_empty(), is_pending) {
                    (true, _) => "Add",
                    (_, false) => "Remove",
                    (_, true) => "Waiting for the removal of",
                };
                let it = if list.len() == 1 { "it" } else { "them" };
                let refused = refusals
                    .iter()
                    .find(|refusal| removed.contains(&refusal.vcpu));
                let subtitle = match (removed.is_empty(), is_pending, refused) {
                    (true, ..) => format!("The guest then starts {it}"),
                    (_, true, _) => "QEMU has asked the guest, which has not answered".to_owned(),
                    (_, _, Some(refusal)) => {
                        format!("The last request was refused: {}", refusal.short())
                    }
                    (_, _, None) => format!("The guest must release {it}, and can refuse"),
                };
                (format!("{verb} {}", numbers::named(list)), subtitle)
            }
        }
    }

    /// Returns the warnings.
    pub(crate) fn warnings(&self) -> &[String] {
        match self {
            Self::Possible { warnings, .. } => warnings,
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dict::dict;

    #[test]
    fn a_change_names_the_vcpus() {
        let reply = dict([
            ("added", vec![1_u32, 2, 3].into()),
            ("removed", Vec::<u32>::new().into()),
            ("warnings", vec!["the guest may be booting"].into()),
        ]);
        let plan = Plan::new(&reply);
        assert!(plan.is_possible(&[]));
        assert_eq!(plan.text(&[], &[]).0, "Add vCPUs 1–3");
        assert_eq!(plan.warnings(), ["The guest may be booting"]);
        let none = Plan::new(&dict([("added", Vec::<u32>::new().into())]));
        assert_eq!(none, Plan::Unchanged);
    }

    #[test]
    fn a_pending_removal_is_not_a_new_one() {
        let plan = Plan::new(&dict([("removed", vec![3_u32].into())]));
        let (title, subtitle) = plan.text(&[], &[]);
        assert_eq!(title, "Remove vCPU 3");
        assert_eq!(subtitle, "The guest must release it, and can refuse");
        assert!(plan.is_possible(&[]) && !plan.is_possible(&[3]));
        let refusal = Refusal::new(3, "busy", String::new());
        let (_, subtitle) = plan.text(&[], &[refusal]);
        assert_eq!(
            subtitle,
            "The last request was refused: the guest is busy with it"
        );
        assert_eq!(plan.text(&[3], &[]).0, "Waiting for the removal of vCPU 3");
    }

    #[test]
    fn an_error_is_a_title_and_a_sentence() {
        let reply = dict([
            ("error", "org.vcpud1.Error.OutOfRange".into()),
            (
                "reason",
                "machine web: 3 is not possible; the nearest numbers are 2 and 4".into(),
            ),
            ("nearest", vec![2_u32, 4].into()),
        ]);
        let plan = Plan::new(&reply);
        assert!(!plan.is_possible(&[]));
        let (title, reason) = plan.text(&[], &[]);
        assert_eq!(title, "The machine cannot have this number of vCPUs");
        assert_eq!(reason, "3 is not possible; the nearest numbers are 2 and 4");
    }
}
