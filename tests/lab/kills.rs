//! The service is killed again and again, with a guest that has true vCPUs.

use std::collections::BTreeMap;

use crate::harness::*;

const KILLS: u32 = 30;

async fn kill(host: &Host) {
    // systemd starts it again by itself, but not as often as this.
    output("systemctl", &["kill", "--signal=KILL", "vcpud.service"]).await;
    output("systemctl", &["reset-failed", "vcpud.service"]).await;
    host.manager()
        .await
        .version()
        .await
        .expect("systemd starts it");
}

#[tokio::test]
async fn a_service_that_is_killed_again_and_again_tells_the_whole_truth() {
    let host = Host::enter().await;
    let mut guest = Guest::boot("web").await;
    let machine = host.machine("web").await;
    let mark = host.signals.mark().await;
    for round in 0..KILLS {
        let before = guest.vcpu_threads().len();
        let count = if round % 2 == 0 { 4 } else { 1 };
        let request = machine.start_set(count);
        if round % 3 != 0 {
            // In the middle: QEMU has done a part of it, or all.
            until("a change", true, || guest.vcpu_threads().len() != before).await;
        }
        kill(&host).await;
        request.abort();
        // What was asked of QEMU goes on, and what was not is asked for now.
        let machine = host.machine("web").await;
        machine.set_patiently(count).await.unwrap();
        let list = if count == 4 { "0-3" } else { "0" };
        guest.online(list).await;
        assert_eq!(
            host.unit("NFileDescriptorStore").await,
            "2",
            "QMP and pidfd are kept"
        );
    }
    let machine = host.machine("web").await;
    machine.set(2).await.unwrap();

    let mut stories: BTreeMap<u32, Vec<bool>> = BTreeMap::new();
    for signal in host.signals.since(mark).await {
        match signal {
            Signal::Added(vcpu) => stories.entry(vcpu.id).or_default().push(true),
            Signal::Removed(vcpu) => stories.entry(vcpu.id).or_default().push(false),
            _ => {}
        }
    }
    for (vcpu, mut story) in stories {
        // What was told just before the end may be told again after it.
        story.dedup();
        assert!(story[0], "vCPU {vcpu} comes first: {story:?}");
        assert_eq!(story.last(), Some(&(vcpu == 1)), "vCPU {vcpu}: {story:?}");
        let came = story.iter().filter(|came| **came).count() as u32;
        let expected = KILLS / 2 + u32::from(vcpu == 1);
        assert_eq!(came, expected, "vCPU {vcpu} came {came} times");
    }
    assert_eq!(guest.vcpu_threads(), [0, 1]);
}

#[tokio::test]
async fn systemd_may_change_itself_and_the_service_goes_on_where_it_was() {
    let host = Host::enter().await;
    let guest = Guest::paused("web").await;
    let machine = host.machine_of(&guest).await;
    assert_eq!(machine.set(3).await, Ok((vec![1, 2], vec![], vec![])));
    output("systemctl", &["daemon-reexec"]).await;
    output("systemctl", &["restart", "vcpud.service"]).await;
    let mark = host.signals.mark().await;
    let machine = host.machine("web").await;
    assert_eq!(machine.set(4).await, Ok((vec![3], vec![], vec![])));
    assert_eq!(ids(&added(&host.signals.since(mark).await)), [3]);
}
