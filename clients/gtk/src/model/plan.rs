//! Owns the texts of a plan: the changes of a number of vCPUs, or why it is not possible. It must not plan.

use super::dict::{Dict, get, text};
use super::failure;
use super::numbers;

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
}

impl Plan {
    /// Returns the plan of a reply of the method `Plan`.
    pub(crate) fn new(reply: &Dict) -> Self {
        if let Some(error) = get::<String>(reply, "error") {
            let failure = failure::describe(&error, &text(reply, "reason"));
            let nearest: Vec<u32> = get(reply, "nearest").unwrap_or_default();
            let numbers: Vec<String> = nearest.iter().map(u32::to_string).collect();
            let reason = match numbers.is_empty() {
                true => failure.detail,
                false => format!(
                    "{}. Possible numbers: {}",
                    failure.detail,
                    numbers.join(", ")
                ),
            };
            return Self::Impossible {
                title: failure.title,
                reason,
            };
        }
        let added: Vec<u32> = get(reply, "added").unwrap_or_default();
        let removed: Vec<u32> = get(reply, "removed").unwrap_or_default();
        if added.is_empty() && removed.is_empty() {
            return Self::Unchanged;
        }
        let warnings = get(reply, "warnings").unwrap_or_default();
        Self::Possible {
            added,
            removed,
            warnings,
        }
    }

    /// Returns whether the change can be applied.
    pub(crate) fn is_possible(&self) -> bool {
        matches!(self, Self::Possible { .. })
    }

    /// Returns the title and the subtitle of the row.
    pub(crate) fn text(&self) -> (String, String) {
        match self {
            Self::Unchanged => ("No change".to_owned(), String::new()),
            Self::Impossible { title, reason } => (title.clone(), reason.clone()),
            Self::Possible { added, removed, .. } => {
                let part = |verb: &str, list: &[u32]| {
                    (!list.is_empty()).then(|| format!("{verb} {}", numbers::named(list)))
                };
                let parts = [part("Add", added), part("Remove", removed)];
                let title: Vec<String> = parts.into_iter().flatten().collect();
                let subtitle = match removed.is_empty() {
                    true => "The guest starts them when it notices them.",
                    false => "The guest must release them, and can refuse.",
                };
                (title.join(", "), subtitle.to_owned())
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
        assert!(plan.is_possible());
        assert_eq!(plan.text().0, "Add vCPUs 1–3");
        assert_eq!(plan.warnings(), ["the guest may be booting"]);
        let plan = Plan::new(&dict([("removed", vec![3_u32].into())]));
        assert_eq!(
            plan.text(),
            (
                "Remove vCPU 3".into(),
                "The guest must release them, and can refuse.".into()
            )
        );
        assert_eq!(
            Plan::new(&dict([("added", Vec::<u32>::new().into())])),
            Plan::Unchanged
        );
    }

    #[test]
    fn an_error_has_the_nearest_numbers() {
        let reply = dict([
            ("error", "org.vcpud1.Error.OutOfRange".into()),
            ("reason", "machine web: 3 is not a multiple of 2".into()),
            ("nearest", vec![2_u32, 4].into()),
        ]);
        let plan = Plan::new(&reply);
        assert!(!plan.is_possible());
        let (title, reason) = plan.text();
        assert_eq!(title, "The machine cannot have this number of vCPUs");
        assert_eq!(
            reason,
            "machine web: 3 is not a multiple of 2. Possible numbers: 2, 4"
        );
    }
}
