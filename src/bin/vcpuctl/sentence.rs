//! Sentences about the events of "monitor".

use std::collections::{HashMap, HashSet};

use nix::unistd::{Uid, User};
use serde_json::{Map, Value as Json};
use vcpud::placement::VcpuList;

use crate::query::counted;
use crate::render::name_vcpus;

/// Makes sentences, and knows what the previous ones said.
pub(crate) struct Sentences {
    /// The users of the events are users of this host.
    is_local: bool,
    /// The pending removals of each machine.
    pending: HashMap<String, HashSet<u32>>,
}

impl Sentences {
    pub(crate) fn new(is_local: bool) -> Self {
        let pending = HashMap::new();
        Self { is_local, pending }
    }

    /// Returns the sentences about an event. An event that another one explains has none.
    pub(crate) fn of(&mut self, event: &Json) -> Vec<String> {
        let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
        // An event without a machine is about the service.
        let machine = event["machine"].as_str().unwrap_or("vcpud").to_owned();
        let cause = || self.cause(&event["details"]);
        let vcpu = || format!("{machine}: vCPU {}", event["vcpu"]);
        let sentence = match text(&event["event"]).as_str() {
            "ServiceStarted" => "vcpud started".to_owned(),
            "ServiceStopped" => {
                self.pending.clear();
                "vcpud stopped".to_owned()
            }
            "MachineAdded" => format!("{machine}: machine added"),
            "MachineRemoved" => {
                self.pending.remove(&machine);
                format!("{machine}: machine removed")
            }
            "VcpuAdded" => format!("{} added {}", vcpu(), cause()),
            "VcpuStarted" => format!("{} started by the guest", vcpu()),
            "VcpuRemoved" => format!("{} removed {}", vcpu(), cause()),
            "VcpuRemovalFailed" => {
                let reason = text(&event["reason"]);
                format!("{} not removed {}: {reason}", vcpu(), cause())
            }
            "PropertiesChanged" => {
                let empty = Map::new();
                let changed = event["changed"].as_object().unwrap_or(&empty);
                return self.of_properties(&machine, changed);
            }
            _ => return Vec::new(),
        };
        vec![sentence]
    }

    fn of_properties(&mut self, machine: &str, changed: &Map<String, Json>) -> Vec<String> {
        let mut sentences = Vec::new();
        let count = |list: &Json| list.as_array().map_or(0, Vec::len);
        if let Some(state) = changed.get("State").and_then(Json::as_str) {
            sentences.push(format!("{machine}: the state is \"{state}\""));
        }
        if let Some(pending) = changed.get("PendingRemovals").and_then(Json::as_array) {
            let numbers = pending
                .iter()
                .filter_map(|vcpu| u32::try_from(vcpu.as_u64()?).ok());
            let now: HashSet<u32> = numbers.collect();
            let before = self.pending.insert(machine.to_owned(), now.clone());
            let new = now
                .difference(&before.unwrap_or_default())
                .copied()
                .collect::<VcpuList>();
            if !new.is_empty() {
                sentences.push(format!(
                    "{machine}: the removal of {} is pending",
                    name_vcpus(&new)
                ));
            }
        }
        if let Some(errors) = changed.get("ConfigurationErrors") {
            let errors = counted(count(errors), "error");
            sentences.push(format!("{machine}: the configuration has {errors}"));
        }
        if let Some(errors) = changed.get("PlacementErrors") {
            let sentence = match count(errors) {
                0 => format!("{machine}: the placement is complete"),
                _ => format!(
                    "{machine}: the placement is not complete (\"vcpuctl status {machine}\" shows the reasons)"
                ),
            };
            sentences.push(sentence);
        }
        sentences
    }

    /// Returns the cause of a change, and the user that requested it.
    fn cause(&self, details: &Json) -> String {
        let uid = details["uid"]
            .as_u64()
            .and_then(|uid| u32::try_from(uid).ok());
        let by = uid.map(|uid| format!(" by {}", self.user(uid)));
        let cause = details["cause"].as_str().unwrap_or("unknown");
        format!("({cause}{})", by.unwrap_or_default())
    }

    fn user(&self, uid: u32) -> String {
        let user = self.is_local.then(|| User::from_uid(Uid::from_raw(uid)));
        match user {
            Some(Ok(Some(user))) => user.name,
            _ => format!("uid {uid}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_has_at_most_one_sentence_for_each_fact() {
        let mut sentences = Sentences::new(true);
        let changed = |changed: Json| json!({"event": "PropertiesChanged", "machine": "web", "changed": changed});
        let removed = json!({"event": "VcpuRemoved", "machine": "web", "vcpu": 3,
            "details": {"cause": "request", "uid": 0}});
        for (event, expected) in [
            (
                changed(json!({"PendingRemovals": [2, 3]})),
                vec!["web: the removal of vCPUs 2-3 is pending"],
            ),
            (changed(json!({"PendingRemovals": [2], "Vcpus": 3})), vec![]),
            (removed, vec!["web: vCPU 3 removed (request by root)"]),
            (
                changed(json!({"PendingRemovals": [2, 1]})),
                vec!["web: the removal of vCPU 1 is pending"],
            ),
            (
                changed(json!({"State": "paused"})),
                vec!["web: the state is \"paused\""],
            ),
            (
                json!({"event": "VcpuChanged", "machine": "web", "vcpus": [1]}),
                vec![],
            ),
            (
                json!({"event": "ServiceStopped", "machine": null}),
                vec!["vcpud stopped"],
            ),
        ] {
            assert_eq!(sentences.of(&event), expected, "{event}");
        }
        let remote = Sentences::new(false);
        assert_eq!(
            remote.cause(&json!({"cause": "request", "uid": 0})),
            "(request by uid 0)"
        );
    }
}
