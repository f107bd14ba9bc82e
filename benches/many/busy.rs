//! A change of one machine beside machines whose vCPUs change.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use vcpud::proxy::MachineProxy;
use zbus::proxy::CacheProperties;

use super::timing::{Report, Times, compare, unless_brief};
use super::{Host, change, rounds};

/// Measures a change of one machine while the vCPUs of the others change: of each one once a second, and without
/// pauses.
pub(super) async fn measure(alone: &Host, report: &mut Report) {
    let others = unless_brief(100, 10);
    let (busy, _) = Host::start(others + 1).await;
    let machines = [
        alone.world.machine("vm-0").await,
        busy.world.machine("vm-0").await,
    ];
    // All others are changed over one connection.
    let connection = busy.world.bus.connect().await;
    let mut proxies = Vec::new();
    for n in 1..=others {
        let path = busy
            .world
            .machine(&format!("vm-{n}"))
            .await
            .path()
            .to_owned();
        let proxy = MachineProxy::builder(&connection).path(path);
        let proxy = proxy.cache_properties(CacheProperties::No).build().await;
        proxies.push(proxy.expect("the bus is there"));
    }
    let change_beside = async |way: usize| {
        let pause = match way {
            0 => return [change(&machines[0]).await],
            1 => Duration::from_secs(1),
            _ => Duration::ZERO,
        };
        let changes = Changes::start(&proxies, pause).await;
        let time = change(&machines[1]).await;
        changes.stop().await;
        [time]
    };
    let [times]: [[Times; 3]; 1] = compare(rounds(), change_beside).await;
    let names = [
        "alone".to_owned(),
        format!("{others} machines, each once a second"),
        format!("{others} machines without pauses"),
    ];
    report.compare(
        "SetVcpus, others busy",
        names.iter().map(String::as_str).zip(&times),
    );
}

/// Changes of machines, until this is stopped.
struct Changes {
    tasks: JoinSet<()>,
    end: CancellationToken,
}

impl Changes {
    /// Starts changes, and waits until each machine was changed.
    async fn start(machines: &[MachineProxy<'static>], pause: Duration) -> Self {
        let count = machines.len();
        let (changed, mut changes) = mpsc::channel(count);
        let (mut tasks, end) = (JoinSet::new(), CancellationToken::new());
        for (n, machine) in machines.iter().cloned().enumerate() {
            let (changed, end) = (changed.clone(), end.clone());
            // The changes are spread over the pause.
            let first = Instant::now() + pause * n as u32 / count as u32;
            tasks.spawn(async move {
                sleep_until(first.into()).await;
                let mut vcpus = machine.vcpus().await.expect("the property is there");
                // Each call gets its reply, because the bus limits the number of pending replies.
                while !end.is_cancelled() {
                    vcpus = 3 - vcpus;
                    let change = machine.set_vcpus(vcpus, HashMap::new()).await;
                    change.expect("it is done");
                    // The channel is full when each machine was changed.
                    changed.try_send(()).unwrap_or_default();
                    end.run_until_cancelled(sleep(pause)).await;
                }
            });
        }
        for _ in 0..count {
            changes.recv().await.expect("the tasks run");
        }
        Self { tasks, end }
    }

    async fn stop(self) {
        self.end.cancel();
        self.tasks.join_all().await;
    }
}
