//! The service continues its connections after a restart, because systemd keeps its descriptors.

use crate::harness::*;

/// Returns the descriptors that systemd keeps, as systemd lists them.
async fn kept() -> Vec<String> {
    let list = ["--no-pager", "fdstore", "vcpud.service"];
    let printed = output("systemd-analyze", &list).await;
    let mut lines: Vec<String> = printed.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

/// Waits until systemd keeps `count` descriptors.
async fn keeps(host: &Host, count: &str) {
    host.has("NFileDescriptorStore", count).await;
}

#[tokio::test]
async fn a_clean_restart_keeps_every_connection_open() {
    let host = Host::enter().await;
    host.stop_service().await;
    let guest = Guest::paused("web").await;
    host.machine_of(&guest).await;
    keeps(&host, "2").await;
    let before = kept().await;
    for (command, vcpus) in [
        (&["restart", "vcpud.service"][..], 2),
        (&["daemon-reload"], 3),
        (&["restart", "vcpud.service"], 4),
        (&["daemon-reexec"], 5),
        (&["restart", "vcpud.service"], 6),
    ] {
        output("systemctl", command).await;
        // An emulated QEMU can take longer to answer than the service waits before it shows it as disconnected.
        let machine = host.machine_of(&guest).await;
        let mark = host.signals.mark().await;
        let set = machine.set(vcpus).await;
        assert_eq!(set, Ok(Outcome::added([vcpus - 1])), "{command:?}");
        let told = added(&host.signals.since(mark).await);
        let alias = format!("vcpu{}", vcpus - 1);
        let expected = Vcpu::by_request("web", vcpus - 1, &alias);
        assert_eq!(told, [expected], "{command:?}");
        // The inodes show that the sockets are the same, and that none is stored twice.
        assert_eq!(kept().await, before, "{command:?}");
    }
}

#[tokio::test]
async fn a_full_store_of_systemd_loses_nothing() {
    const FULL: &str = "the file descriptor store of systemd is full";
    let host = Host::enter().await;
    // For the last of four descriptors, and for both of the second machine.
    for room in ["3", "2"] {
        host.stop_service().await;
        let line = format!("[Service]\nFileDescriptorStoreMax={room}\n");
        let _unit = host.drop_in(&line).await;
        let mut guests = [Guest::paused("one").await, Guest::paused("two").await];
        let machines = [host.machine("one").await, host.machine("two").await];
        for machine in &machines {
            assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
        }
        keeps(&host, room).await;
        assert_eq!(host.said(FULL).await, 1);

        let mark = host.signals.mark().await;
        let asked: Vec<_> = machines.iter().map(|m| m.start_set(4)).collect();
        for guest in &guests {
            let grown = || guest.vcpu_threads().len() == 4;
            until("the new vCPUs", true, grown).await;
        }
        assert!(host.kill_service().await);
        for guest in &mut guests {
            guest.monitor.plug(6, "mine").await;
        }
        for call in asked {
            call.abort();
        }
        for (guest, name) in guests.iter().zip(["one", "two"]) {
            let machine = host.machine_of(guest).await;
            machine.wait_for("Vcpus", 5u32).await;
            assert_eq!(machine.set(6).await, Ok(Outcome::added([4])));
            let told = host.signals.since(mark).await;
            let mut told = added(&told);
            told.retain(|vcpu| vcpu.machine == name);
            // An event just before the end may be reported twice.
            told.sort_unstable_by_key(|vcpu| vcpu.id);
            told.dedup();
            assert_eq!(ids(&told), [2, 3, 4, 6], "{told:?}");
            let own = told.iter().filter(|vcpu| vcpu.id != 6);
            for vcpu in own {
                let alias = format!("vcpu{}", vcpu.id);
                assert_eq!(*vcpu, Vcpu::by_request(name, vcpu.id, &alias));
            }
        }
        keeps(&host, room).await;
        assert_eq!(host.said(FULL).await, 1);
        host.stop_service().await;
    }
}
