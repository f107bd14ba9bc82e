//! Owns the number of vCPUs that the user has chosen, and the question for its plan. It must not know widgets.

use super::machine::Machine;
use super::message::Path;
use super::plan::Plan;

/// A question for a plan. A plan is about the machine at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// The number of vCPUs to plan.
    pub(crate) count: u32,
    /// The version of the machine: see [`Machine::version`].
    pub(crate) version: u64,
    /// Greater than that of each question before it, because answers can arrive in another order.
    pub(crate) serial: u64,
}

/// A choice of the user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Chosen {
    /// Nothing, so that the present number is shown.
    #[default]
    Present,
    /// A text that is not a number of the machine.
    Text,
    Number(u32),
}

/// The choice of the user for the machine on the page.
#[derive(Default)]
pub(crate) struct Choice {
    path: Path,
    name: String,
    present: u32,
    version: u64,
    can_change: bool,
    chosen: Chosen,
    /// The question whose answer is the present plan.
    asked: Option<Question>,
    /// The number of questions.
    questions: u64,
}

impl Choice {
    /// Follows the machine on the page. The choice ends with another machine, and if the machine has the chosen number or
    /// cannot have it. A machine without a connection can have wrong numbers, and keeps the choice. Returns whether it is
    /// another machine.
    pub(crate) fn follow(&mut self, path: &str, machine: &Machine) -> bool {
        let is_other = self.path != path;
        if is_other {
            self.forget();
            self.path = path.to_owned();
            self.name = machine.name();
        }
        self.present = machine.present();
        self.version = machine.version;
        self.can_change = machine.can_change();
        if self.can_change
            && let Chosen::Number(number) = self.chosen
            && (number == self.present || !(machine.min()..=machine.max()).contains(&number))
        {
            self.chosen = Chosen::Present;
        }
        is_other
    }

    /// Forgets the machine and the choice, because another machine can have the path now.
    pub(crate) fn forget(&mut self) {
        *self = Self {
            questions: self.questions,
            ..Self::default()
        };
    }

    /// Takes what the user has chosen or typed; `None` if the text is not a number of the machine.
    pub(crate) fn choose(&mut self, number: Option<u32>) {
        self.chosen = match number {
            None => Chosen::Text,
            Some(number) if number == self.present => Chosen::Present,
            Some(number) => Chosen::Number(number),
        };
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Returns the name of the machine.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the number of present vCPUs.
    pub(crate) fn present(&self) -> u32 {
        self.present
    }

    /// Returns whether the user has chosen or typed something that stays.
    pub(crate) fn is_made(&self) -> bool {
        self.chosen != Chosen::Present
    }

    /// Returns the chosen number, if it can be applied.
    pub(crate) fn number(&self) -> Option<u32> {
        match self.chosen {
            Chosen::Number(number) if self.can_change => Some(number),
            _ => None,
        }
    }

    /// Returns the question for the plan, unless it has been asked.
    pub(crate) fn ask(&mut self) -> Option<Question> {
        let Some(count) = self.number() else {
            self.asked = None;
            return None;
        };
        if self.is_asked(count) {
            return None;
        }
        self.questions += 1;
        self.asked = Some(Question {
            count,
            version: self.version,
            serial: self.questions,
        });
        self.asked
    }

    /// Returns whether the last question is about this number and the present state of the machine.
    fn is_asked(&self, count: u32) -> bool {
        let asked = self.asked.as_ref();
        asked.is_some_and(|asked| (asked.count, asked.version) == (count, self.version))
    }

    /// Returns the plan, unless it is about another number or another state of the machine.
    pub(crate) fn plan<'a>(&self, machine: &'a Machine) -> Option<&'a Plan> {
        let (question, plan) = machine.plan.as_ref()?;
        let is_last = self.asked.as_ref() == Some(question);
        (is_last && self.is_asked(self.number()?)).then_some(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dict::dict;
    use crate::model::machine::machine;

    fn disconnected() -> Machine {
        let mut web = machine("web", 0, 0);
        web.change(dict([
            ("State", "disconnected".into()),
            ("HotplugMethod", "none".into()),
        ]));
        web
    }

    #[test]
    fn a_machine_that_connects_has_no_choice_of_the_user() {
        let mut choice = Choice::default();
        choice.follow("/web", &disconnected());
        assert!(!choice.is_made());
        choice.follow("/web", &machine("web", 4, 16));
        assert!(!choice.is_made() && choice.ask().is_none());
    }

    #[test]
    fn a_choice_survives_a_lost_connection() {
        let mut choice = Choice::default();
        choice.follow("/web", &machine("web", 4, 16));
        choice.choose(Some(6));
        assert_eq!(choice.ask().map(|question| question.count), Some(6));
        choice.follow("/web", &disconnected());
        assert!(choice.is_made() && choice.number().is_none() && choice.ask().is_none());
        choice.follow("/web", &machine("web", 4, 16));
        assert_eq!(choice.number(), Some(6));
        assert!(
            choice.ask().is_some(),
            "the old question is about another state"
        );
    }

    #[test]
    fn a_choice_ends_with_its_number_and_its_machine() {
        let mut choice = Choice::default();
        choice.follow("/web", &machine("web", 4, 16));
        choice.choose(Some(6));
        choice.follow("/web", &machine("web", 6, 16));
        assert!(!choice.is_made());
        choice.choose(Some(8));
        choice.follow("/web", &machine("web", 6, 7));
        assert!(!choice.is_made(), "the machine cannot have 8");
        choice.choose(Some(7));
        assert!(choice.follow("/db", &machine("db", 1, 16)));
        assert!(!choice.is_made());
        // A text that is not a number stays, and is not applied.
        choice.choose(None);
        choice.follow("/db", &machine("db", 2, 16));
        assert!(choice.is_made() && choice.number().is_none());
        choice.choose(Some(2));
        assert!(!choice.is_made());
        choice.choose(Some(3));
        choice.forget();
        assert!(choice.follow("/db", &disconnected()) && !choice.is_made());
    }

    #[test]
    fn a_plan_is_about_one_state_of_the_machine() {
        let mut choice = Choice::default();
        let mut web = machine("web", 4, 16);
        choice.follow("/web", &web);
        choice.choose(Some(6));
        let question = choice.ask().unwrap();
        assert_eq!(choice.ask(), None, "the question is open");
        assert!(choice.plan(&web).is_none());
        web.plan = Some((question, Plan::Unchanged));
        assert!(choice.plan(&web).is_some());
        web.version += 1;
        choice.follow("/web", &web);
        assert!(choice.plan(&web).is_none(), "the old plan");
        let question = choice.ask().unwrap();
        web.plan = Some((question, Plan::Unchanged));
        assert!(choice.plan(&web).is_some());
        choice.choose(Some(7));
        assert!(choice.plan(&web).is_none());
    }
}
