//! Owns the machines, the selected one, and whether the service is reached. It must not know widgets.

use std::collections::BTreeMap;

use super::dict::Dict;
use super::failure::{self, Failure, Refusal};
use super::machine::Machine;
use super::message::{Event, Loss, Path};
use super::numbers;
use super::plan::Plan;
use super::scaling::Scaling;

/// The content of the main part of the window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// The service has not answered yet.
    Connecting,
    /// The service has no machines.
    Empty,
    Machines,
    Lost(Loss),
}

/// A change that an event causes for the user.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The list of machines or the view.
    Machines,
    /// The texts of one machine.
    Machine(Path),
    /// A machine has ended. Another one can have its path now.
    Ended(Path),
    /// The use of host CPUs of one machine.
    Usage(Path),
    /// The rows of vCPUs of the machine are old.
    ReadVcpus(Path),
    /// The scaling of the machine is old.
    ReadScaling(Path),
    /// The user can change the settings of the scaling of the machine.
    OpenScaling(Path),
    /// The refusals of a machine, to show instead of its previous ones.
    Refusal(Path, Failure),
    /// A failure to show.
    Failure(Path, Failure),
    /// A text to show.
    Note(Path, String),
}

/// All machines.
#[derive(Default)]
pub(crate) struct Fleet {
    machines: BTreeMap<Path, Machine>,
    loss: Option<Loss>,
    is_silent: bool,
    is_listed: bool,
    /// The number of events.
    events: u64,
}

impl Fleet {
    /// Returns what the window shows.
    pub(crate) fn view(&self) -> View {
        match &self.loss {
            // The service exits if it has no machines, and starts when one appears.
            Some(Loss::Service(_)) if self.is_listed && self.machines.is_empty() => View::Empty,
            Some(loss) => View::Lost(loss.clone()),
            None if self.is_silent => View::Lost(Loss::Silent),
            None if !self.is_listed => View::Connecting,
            None if self.machines.is_empty() => View::Empty,
            None => View::Machines,
        }
    }

    /// Returns the machine at a path.
    pub(crate) fn get(&self, path: &str) -> Option<&Machine> {
        self.machines.get(path)
    }

    /// Returns the machine at a path, to change it.
    pub(crate) fn get_mut(&mut self, path: &str) -> Option<&mut Machine> {
        self.machines.get_mut(path)
    }

    /// Makes the plan of a machine old if the service has not planned, so that the application repeats the question.
    /// Returns whether it has done so.
    pub(crate) fn forget_failed_plan(&mut self, path: &str) -> bool {
        self.events += 1;
        let machine = self.machines.get_mut(path);
        let failed = machine.filter(|machine| matches!(machine.plan, Some((_, Plan::Failed(_)))));
        let Some(machine) = failed else {
            return false;
        };
        machine.plan = None;
        machine.version = self.events;
        true
    }

    /// Returns the paths of the machines, sorted by name. "web10" follows "web9".
    pub(crate) fn paths(&self) -> Vec<Path> {
        let mut paths: Vec<(String, &Path)> = self
            .machines
            .iter()
            .map(|(path, machine)| (numbers::padded(&machine.name()), path))
            .collect();
        paths.sort();
        paths.into_iter().map(|(_, path)| path.clone()).collect()
    }

    /// Takes an event, and returns what it changes.
    pub(crate) fn apply(&mut self, event: Event) -> Vec<Effect> {
        self.events += 1;
        match event {
            Event::Machines(machines) => self.list(machines),
            Event::Lost(loss) => {
                self.loss = Some(loss);
                // A service that starts again, or a new connection, has no open reads.
                self.is_silent = false;
                vec![Effect::Machines]
            }
            Event::Silent(is_silent) => {
                self.is_silent = is_silent;
                vec![Effect::Machines]
            }
            Event::Scaler(is_running) => self.take_scaler(is_running),
            Event::MachineAdded(path, properties) => self.add(path, properties),
            Event::MachineRemoved(path) => {
                self.machines.remove(&path);
                vec![Effect::Ended(path), Effect::Machines]
            }
            Event::Failed(path, name, failure) => vec![Effect::Failure(path, failure.of(&name))],
            Event::Done(path, name, text) => vec![Effect::Note(path, format!("{name}: {text}"))],
            Event::Decided(name) => {
                let of_name = self
                    .machines
                    .iter()
                    .filter(|(_, machine)| machine.name() == name);
                of_name
                    .map(|(path, _)| Effect::ReadScaling(path.clone()))
                    .collect()
            }
            event => self.apply_to_machine(event),
        }
    }

    /// Takes a new machine, which can be in the list of the service already.
    fn add(&mut self, path: Path, properties: Dict) -> Vec<Effect> {
        let old = self.machines.remove(&path);
        let mut effects = self.renew(path.clone(), old, properties);
        self.loss = None;
        self.is_listed = true;
        effects.extend([
            Effect::Machines,
            Effect::ReadVcpus(path.clone()),
            Effect::ReadScaling(path),
        ]);
        effects
    }

    /// Takes all machines of the service.
    fn list(&mut self, machines: Vec<(Path, Dict)>) -> Vec<Effect> {
        let mut old = std::mem::take(&mut self.machines);
        let mut effects = Vec::new();
        for (path, properties) in machines {
            let machine = old.remove(&path);
            effects.extend(self.renew(path, machine, properties));
        }
        effects.extend(old.into_keys().map(Effect::Ended));
        self.loss = None;
        self.is_listed = true;
        effects.push(Effect::Machines);
        effects
    }

    /// Takes a machine whose path `old` had. The same machine keeps what the properties do not have.
    fn renew(&mut self, path: Path, old: Option<Machine>, properties: Dict) -> Vec<Effect> {
        let (mut machine, is_other) = match old {
            Some(mut machine) if machine.is_same(&properties) => {
                machine.change(properties);
                machine.usage.pause();
                (machine, false)
            }
            old => (Machine::new(properties), old.is_some()),
        };
        // A question of the old connection has no answer.
        machine.version = self.events;
        self.machines.insert(path.clone(), machine);
        is_other
            .then_some(Effect::Ended(path))
            .into_iter()
            .collect()
    }

    /// Takes the start or the end of the autoscaler.
    fn take_scaler(&mut self, is_running: bool) -> Vec<Effect> {
        if is_running {
            return self
                .machines
                .keys()
                .cloned()
                .map(Effect::ReadScaling)
                .collect();
        }
        for machine in self.machines.values_mut() {
            machine.scaling.change(Scaling::NotRunning);
        }
        self.machines.keys().cloned().map(Effect::Machine).collect()
    }

    fn apply_to_machine(&mut self, event: Event) -> Vec<Effect> {
        let Some(path) = event.path().cloned() else {
            return Vec::new();
        };
        // The machine can end before a reply about it arrives.
        let Some(machine) = self.machines.get_mut(&path) else {
            return Vec::new();
        };
        match event {
            Event::PropertiesChanged(_, properties) => {
                machine.version = self.events;
                return change(machine, path.clone(), properties);
            }
            Event::VcpusChanged(_) => {
                machine.version = self.events;
                return vec![Effect::ReadVcpus(path.clone()), Effect::Machine(path)];
            }
            Event::RemovalFailed {
                vcpu, code, reason, ..
            } => {
                machine.refusals.retain(|refusal| refusal.vcpu != vcpu);
                machine.refusals.push(Refusal::new(vcpu, &code, reason));
                let failure = failure::refused(&machine.name(), &machine.refusals);
                return vec![
                    Effect::Refusal(path.clone(), failure),
                    Effect::Machine(path),
                ];
            }
            Event::Listed(_, rows) => machine.list(&rows),
            Event::Tuned(_, tuning) => machine.tune(&tuning),
            Event::Sampled(_, own, rows) => {
                machine.usage.add(&own, &rows);
                return vec![Effect::Usage(path)];
            }
            Event::Planned(_, question, plan) => machine.take_plan(question, plan),
            Event::Finished(_) => machine.is_busy = false,
            Event::ScalingChanged(_) => return vec![Effect::ReadScaling(path)],
            Event::Explained(_, scaling) => machine.scaling.change(scaling),
            Event::SettingsRead(_, scaling) => {
                machine.scaling.change(scaling);
                return vec![Effect::Machine(path.clone()), Effect::OpenScaling(path)];
            }
            _ => {}
        }
        vec![Effect::Machine(path)]
    }
}

/// Takes changed properties. Another QEMU process at the path of the machine inherits only the properties.
fn change(machine: &mut Machine, path: Path, properties: Dict) -> Vec<Effect> {
    let is_same = machine.is_same(&properties);
    machine.change(properties);
    if is_same {
        return vec![Effect::Machine(path)];
    }
    machine.forget();
    vec![
        Effect::Ended(path.clone()),
        Effect::Machine(path.clone()),
        Effect::ReadVcpus(path.clone()),
        Effect::ReadScaling(path),
    ]
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
