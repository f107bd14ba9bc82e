//! The choice of the placer of a machine: a new one, or the one that it had.

use std::collections::BTreeMap;

use tracing::warn;

use super::host::Host;
use super::placer::Placer;
use crate::placement::{StepError, UnitPlacement};

/// The result of [`Placer::create`].
#[derive(Debug)]
pub struct Created {
    /// The placer; `None` if vCPUs cannot be placed at all.
    pub placer: Option<Placer>,
    /// Whether it is not the previous one.
    pub is_new: bool,
    /// Why it is not as wanted.
    pub refused: Option<StepError>,
}

impl Created {
    fn new(placer: Placer, refused: Option<StepError>) -> Self {
        Self {
            placer: Some(placer),
            is_new: true,
            refused,
        }
    }

    fn stays(placer: Option<Placer>) -> Self {
        Self {
            placer,
            is_new: false,
            refused: None,
        }
    }
}

impl Placer {
    /// Creates a placer like [`Self::new`], or one without control groups if the kernel refuses them. If
    /// `previous` is the same placer, it stays, because it knows what it has changed. If the machine has left
    /// its unit, the new one gets this knowledge, and the groups of the previous one are removed. Blocks.
    pub fn create(
        host: &Host,
        machine: &str,
        placement: UnitPlacement,
        previous: Option<Self>,
    ) -> Created {
        let (previous, applied) = match previous {
            Some(previous) if previous.is_elsewhere => (None, previous.abandon()),
            previous => (previous, BTreeMap::new()),
        };
        let made = |mut placer: Self, refused| {
            placer.applied = applied;
            Created::new(placer, refused)
        };
        let stays = |wanted: &UnitPlacement| {
            let previous = previous.as_ref();
            previous.is_some_and(|previous| previous.placement == *wanted)
        };
        if stays(&placement) {
            return Created::stays(previous);
        }
        let without = UnitPlacement::without_groups(placement.unit.clone());
        match Self::new(host.clone(), machine, placement) {
            Ok(placer) => made(placer, None),
            Err(error) if stays(&without) => Created {
                refused: Some(error),
                ..Created::stays(previous)
            },
            Err(error) => match Self::new(host.clone(), machine, without) {
                Ok(placer) => made(placer, Some(error)),
                Err(error) => {
                    warn!(vm_name = machine, %error, "{machine}: vCPUs are not placed: {error}");
                    Created {
                        refused: Some(error),
                        ..Created::stays(None)
                    }
                }
            },
        }
    }
}
