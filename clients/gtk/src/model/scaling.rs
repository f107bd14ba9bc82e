//! Owns what the application shows of automatic scaling. It must not decide about numbers of vCPUs.

use super::dict::{Dict, get, text};
use super::sentence::sentence;

/// The scaling of one machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Scaling {
    /// The service has not answered yet.
    #[default]
    Unknown,
    /// `vcpud-autoscale` does not run, so it scales no machine.
    NotRunning,
    /// `vcpud-autoscale` has ended, and this was its last decision.
    Stopped(Decision),
    /// `vcpud-autoscale` runs, and does not answer.
    NoAnswer,
    /// `vcpud-autoscale` has answered with this error.
    Failed(String),
    /// The machine has no settings.
    Off,
    /// The last decision.
    On(Decision),
}

/// The settings of a machine that the application changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Settings {
    /// It decides only, and changes nothing.
    pub(crate) is_observed: bool,
    pub(crate) min: u32,
    /// 0 if it is not known.
    pub(crate) max: u32,
}

/// A reply of `Explain`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Decision {
    pub(crate) settings: Settings,
    pub(crate) goal: Option<u32>,
    pub(crate) reason: String,
    /// The error of the last request or sample.
    pub(crate) failure: String,
}

impl Scaling {
    /// Returns the scaling of a reply of `Explain`.
    pub(crate) fn new(reply: &Dict) -> Self {
        if text(reply, "mode") == "off" {
            return Self::Off;
        }
        let failure = ["failure", "sampling-error"].map(|key| text(reply, key));
        Self::On(Decision {
            settings: Settings {
                is_observed: text(reply, "mode") == "observe",
                min: get(reply, "min").unwrap_or(1),
                max: get(reply, "max").unwrap_or(0),
            },
            goal: get(reply, "goal"),
            reason: text(reply, "reason"),
            failure: failure
                .into_iter()
                .find(|text| !text.is_empty())
                .unwrap_or_default(),
        })
    }

    /// Returns the scaling for an error of `Explain` with this name and this text.
    pub(crate) fn from_error(name: &str, text: String) -> Self {
        match name {
            "org.vcpud1.Error.NoSuchMachine" => Self::Off,
            "org.freedesktop.DBus.Error.ServiceUnknown"
            | "org.freedesktop.DBus.Error.NameHasNoOwner" => Self::NotRunning,
            _ => Self::Failed(text),
        }
    }

    /// Takes what the service says now. The last decision stays if the service has ended, because its settings do, and
    /// if the service cannot explain it.
    pub(crate) fn change(&mut self, now: Self) {
        *self = match (std::mem::take(self), now) {
            (Self::On(decision) | Self::Stopped(decision), Self::NotRunning) => {
                Self::Stopped(decision)
            }
            (Self::On(decision), Self::Failed(failure)) => Self::On(Decision {
                failure,
                ..decision
            }),
            (_, now) => now,
        };
    }

    /// Returns the last decision, if the machine has settings.
    pub(crate) fn decision(&self) -> Option<&Decision> {
        match self {
            Self::On(decision) | Self::Stopped(decision) => Some(decision),
            _ => None,
        }
    }

    /// Returns whether it can change without a signal.
    pub(crate) fn is_changing(&self) -> bool {
        matches!(self, Self::On(_) | Self::Failed(_))
    }

    /// Returns whether its settings can be changed, because they are known or absent.
    pub(crate) fn is_known(&self) -> bool {
        !matches!(self, Self::Unknown | Self::NoAnswer | Self::Failed(_))
    }

    /// Returns whether the machine can have settings that only a running `vcpud-autoscale` reports.
    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self, Self::NotRunning | Self::Stopped(_))
    }

    /// Returns the settings to begin with, for a machine that can have `min` to `max` vCPUs.
    pub(crate) fn settings(&self, min: u32, max: u32) -> Settings {
        let Some(Decision { settings, .. }) = self.decision() else {
            return Settings {
                min,
                max,
                ..Settings::default()
            };
        };
        let most = if settings.max == 0 { max } else { settings.max };
        Settings {
            min: settings.min.clamp(min, max),
            max: most.clamp(min, max),
            is_observed: settings.is_observed,
        }
    }

    /// Returns the title and the subtitle of the row.
    pub(crate) fn text(&self) -> (String, String) {
        match self {
            Self::Unknown => (
                "Unknown".to_owned(),
                "Waiting for vcpud-autoscale".to_owned(),
            ),
            Self::NoAnswer => {
                let text = "vcpud-autoscale does not answer";
                ("Unknown".to_owned(), text.to_owned())
            }
            Self::Failed(text) => ("Unknown".to_owned(), sentence(text)),
            Self::Off => {
                let text = "vcpud-autoscale does not change the number of vCPUs";
                ("Off".to_owned(), text.to_owned())
            }
            Self::NotRunning => {
                let text = "vcpud-autoscale does not change the number of vCPUs";
                ("Not running".to_owned(), text.to_owned())
            }
            Self::Stopped(Decision { settings, .. }) => {
                let title = format!("Stopped, {} to {}", settings.min, settings.max);
                let text = "vcpud-autoscale has ended, and does not change the number of vCPUs until it runs again";
                (title, text.to_owned())
            }
            Self::On(decision) => {
                let settings = &decision.settings;
                let mode = if settings.is_observed {
                    "Observe only"
                } else {
                    "On"
                };
                let mut title = format!("{mode}, {} to {}", settings.min, settings.max);
                if let Some(goal) = decision.goal {
                    title += &format!(", goal {goal}");
                }
                let subtitle = if decision.failure.is_empty() {
                    &decision.reason
                } else {
                    &decision.failure
                };
                (title, sentence(subtitle))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dict::dict;

    #[test]
    fn the_decision_is_a_sentence() {
        let reply = dict([
            ("mode", "on".into()),
            ("min", 1_u32.into()),
            ("max", 8_u32.into()),
            ("goal", 4_u32.into()),
            ("reason", "the load is high".into()),
        ]);
        let text = Scaling::new(&reply).text();
        assert_eq!(
            text,
            ("On, 1 to 8, goal 4".into(), "The load is high".into())
        );
        assert_eq!(Scaling::new(&dict([("mode", "off".into())])), Scaling::Off);
    }

    #[test]
    fn a_change_begins_with_the_present_settings() {
        let reply = dict([
            ("mode", "observe".into()),
            ("min", 1_u32.into()),
            ("max", 64_u32.into()),
        ]);
        let expected = Settings {
            is_observed: true,
            min: 4,
            max: 16,
        };
        // The machine can have 4 to 16 vCPUs.
        assert_eq!(Scaling::new(&reply).settings(4, 16), expected);
        let new = Scaling::Off.settings(4, 16);
        assert_eq!((new.min, new.max, new.is_observed), (4, 16, false));
        let unknown = Scaling::new(&dict([("mode", "on".into())]));
        assert_eq!(unknown.settings(1, 8).max, 8);
    }

    #[test]
    fn a_service_that_does_not_run_scales_nothing() {
        let error = |name: &str| Scaling::from_error(name, "why".to_owned());
        assert_eq!(
            error("org.freedesktop.DBus.Error.NameHasNoOwner"),
            Scaling::NotRunning
        );
        assert_eq!(error("org.vcpud1.Error.NoSuchMachine"), Scaling::Off);
        assert_eq!(Scaling::Off.text().0, "Off");
        // It may have settings.
        assert_eq!(Scaling::NotRunning.text().0, "Not running");
    }

    #[test]
    fn an_error_keeps_the_decision() {
        let error =
            || Scaling::from_error("org.vcpud1.Error.LimitExceeded", "too many calls".into());
        let mut scaling = Scaling::default();
        scaling.change(error());
        assert_eq!(scaling.text(), ("Unknown".into(), "Too many calls".into()));
        assert!(scaling.is_changing() && !scaling.is_known());
        scaling = Scaling::On(Decision {
            settings: Settings {
                min: 1,
                max: 6,
                ..Settings::default()
            },
            ..Decision::default()
        });
        scaling.change(error());
        assert_eq!(
            scaling.text(),
            ("On, 1 to 6".into(), "Too many calls".into())
        );
    }

    #[test]
    fn the_end_of_the_service_keeps_the_settings() {
        let settings = Settings {
            min: 1,
            max: 6,
            ..Settings::default()
        };
        let mut scaling = Scaling::On(Decision {
            settings,
            ..Decision::default()
        });
        assert!(!scaling.is_stopped());
        scaling.change(Scaling::NotRunning);
        scaling.change(Scaling::NotRunning);
        assert_eq!(scaling.text().0, "Stopped, 1 to 6");
        assert!(scaling.decision().is_some() && scaling.is_stopped());
        scaling.change(Scaling::Off);
        scaling.change(Scaling::NotRunning);
        assert_eq!(scaling, Scaling::NotRunning);
    }
}
