//! Scrapes: one call to the service at a time. Scrapes that arrive during a call share the next one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{info, warn};
use vcpud::names::name_of;
use vcpud::proxy::{ManagerProxy, error_reply};
use zbus::Connection;
use zbus::proxy::CacheProperties;

use crate::http::MAX_CONNECTIONS;
use crate::metrics::{self, Machines};

/// The time limit of a scrape. Prometheus waits for 10 seconds by default.
const LIMIT: Duration = Duration::from_secs(9);

/// The metrics, or the reason for their absence.
pub(crate) type Page = Result<Bytes, Arc<str>>;

/// Requests pages.
#[derive(Clone, Debug)]
pub(crate) struct Scraper(mpsc::Sender<oneshot::Sender<Page>>);

impl Scraper {
    /// Returns a scraper that gets its pages from `read`, and the future that calls it.
    pub(crate) fn new(mut read: impl AsyncFnMut() -> Page) -> (Self, impl Future<Output = ()>) {
        let (sender, mut requests) = mpsc::channel(MAX_CONNECTIONS);
        let run = async move {
            let mut waiting: Vec<oneshot::Sender<Page>> = Vec::new();
            while requests.recv_many(&mut waiting, MAX_CONNECTIONS).await > 0 {
                let page = read().await;
                for request in waiting.drain(..) {
                    // A client that left needs no page.
                    let _ = request.send(page.clone());
                }
            }
        };
        (Self(sender), run)
    }

    /// Returns the metrics of a call that begins from now on.
    pub(crate) async fn scrape(&self) -> Page {
        let (sender, page) = oneshot::channel();
        let _ = self.0.send(sender).await;
        page.await
            .unwrap_or_else(|_| Err("the exporter is ending".into()))
    }
}

/// The service, over a connection to the bus that is made when it is needed.
#[derive(Debug, Default)]
pub(crate) struct Service {
    manager: Option<ManagerProxy<'static>>,
    /// The reason why the last scrape failed.
    failure: Option<Arc<str>>,
}

impl Service {
    /// Returns the metrics of all machines. Logs the first of equal failures.
    pub(crate) async fn page(&mut self) -> Page {
        let page = match timeout(LIMIT, self.read()).await {
            Ok(Ok(machines)) => metrics::encode(machines)
                .map(Bytes::from)
                .map_err(|error| error.to_string()),
            Ok(Err(error)) => {
                Err(error_reply(&error).map_or_else(|| error.to_string(), |(_, text)| text))
            }
            Err(_) => Err(format!("no reply within {} s", LIMIT.as_secs())),
        };
        let page =
            page.map_err(|error| Arc::from(format!("cannot get the statistics of vcpud: {error}")));
        let failure = page.as_ref().err();
        if failure != self.failure.as_ref() {
            match failure {
                Some(failure) => warn!("{failure}"),
                None => info!("vcpud answers again"),
            }
            self.failure = failure.cloned();
        }
        page
    }

    async fn read(&mut self) -> zbus::Result<Machines> {
        let manager = match self.manager.take() {
            Some(manager) => manager,
            None => connect().await.map_err(|error| {
                zbus::Error::Failure(format!("cannot connect to the system bus: {error}"))
            })?,
        };
        let machines = manager.get_statistics(HashMap::new()).await?;
        // After a failure, the next scrape makes another connection.
        self.manager = Some(manager);
        let machines = machines.into_iter();
        let machines = machines.map(|(path, statistics)| (name_of(&path), statistics));
        Ok(Machines(machines.collect()))
    }
}

async fn connect() -> zbus::Result<ManagerProxy<'static>> {
    let bus = Connection::system().await?;
    let manager = ManagerProxy::builder(&bus).cache_properties(CacheProperties::No);
    manager.build().await
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::future::join_all;
    use futures_util::poll;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn scrapes_that_arrive_during_a_call_share_the_next_one() {
        let (mut calls, go_on) = (0, Notify::new());
        let (scraper, run) = Scraper::new(async || {
            calls += 1;
            let page = Bytes::from(calls.to_string());
            go_on.notified().await;
            Ok(page)
        });
        let mut run = pin!(run);
        let mut first = pin!(scraper.scrape());
        assert!(poll!(&mut first).is_pending());
        assert!(poll!(&mut run).is_pending());

        let mut others = pin!(join_all((0..9).map(|_| scraper.scrape())));
        assert!(poll!(&mut others).is_pending());
        go_on.notify_one();
        assert!(poll!(&mut run).is_pending());
        assert_eq!(first.await.unwrap(), "1");

        go_on.notify_one();
        assert!(poll!(&mut run).is_pending());
        let pages = others.await.into_iter().map(Result::unwrap);
        assert_eq!(pages.collect::<Vec<_>>(), ["2"; 9]);
    }
}
