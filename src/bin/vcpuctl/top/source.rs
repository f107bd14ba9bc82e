//! Gets samples from the service.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};
use vcpud::names::name_of;
use vcpud::proxy::{ManagerProxy, error_reply};
use vcpud::signals::Signals;
use zbus::Connection;

use super::sample::{Machine, Sample};
use crate::cli::Global;
use crate::client::{self, manager};
use crate::failure::Failure;
use crate::query::{self, Machines};

/// Returns one sample after each interval, the first one at once.
pub(crate) struct Source {
    interval: Interval,
    arguments: Global,
    link: Option<Link>,
}

impl Source {
    pub(crate) fn new(delay: Duration, arguments: Global) -> Self {
        let mut interval = interval(delay);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            interval,
            arguments,
            link: None,
        }
    }

    /// Waits for the next interval and gets a sample.
    ///
    /// # Errors
    /// The service or the bus does not answer, or refuses. The next call tries again.
    pub(crate) async fn next(&mut self) -> Result<Sample, Failure> {
        self.interval.tick().await;
        let mut link = match self.link.take() {
            Some(link) => link,
            None => Link::new(&self.arguments).await?,
        };
        let sample = link.sample().await;
        let is_lost = matches!(&sample, Err(error) if error_reply(error).is_none());
        self.link = (!is_lost).then_some(link);
        Ok(sample?)
    }
}

/// A connection to the bus.
struct Link {
    bus: Connection,
    manager: ManagerProxy<'static>,
    /// The properties of the machines when they were read last.
    machines: Machines,
    is_outdated: Arc<AtomicBool>,
    /// The task that reads the signals. It ends with the link.
    _signals: JoinSet<()>,
}

impl Link {
    async fn new(arguments: &Global) -> Result<Self, Failure> {
        let bus = client::connect(arguments).await?;
        let is_outdated = Arc::new(AtomicBool::new(true));
        let mut signals = Signals::subscribe(&bus, None).await?;
        let mut task = JoinSet::new();
        let flag = Arc::clone(&is_outdated);
        // A signal only says that the properties are to be read again, so a burst of them costs one call.
        task.spawn(async move {
            while signals.next().await.is_some() {
                flag.store(true, Ordering::Relaxed);
            }
        });
        Ok(Self {
            manager: manager(&bus).await?,
            bus,
            machines: HashMap::new(),
            is_outdated,
            _signals: task,
        })
    }

    async fn sample(&mut self) -> zbus::Result<Sample> {
        let statistics = self.manager.get_statistics(HashMap::new()).await?;
        if self.is_outdated.swap(false, Ordering::Relaxed) {
            let machines = query::machines(&self.bus).await;
            self.is_outdated.store(machines.is_err(), Ordering::Relaxed);
            self.machines = machines?;
        }
        let named = statistics.into_iter().map(|(path, statistics)| {
            let machine = Machine::new(&statistics, self.machines.get(&path));
            (name_of(&path), machine)
        });
        Ok(named.collect())
    }
}
