//! The exporter, as systemd starts it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

use crate::harness::*;

const SOCKET: &str = "vcpud-exporter.socket";
const SERVICE: &str = "vcpud-exporter.service";
const ADDRESS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 9986);

/// Returns a property of a unit.
async fn property(unit: &str, name: &str) -> String {
    output("systemctl", &["show", "--value", "--property", name, unit]).await
}

async fn metrics() -> String {
    let answer = request(SocketAddr::from(ADDRESS), "GET", "/metrics").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

#[tokio::test]
async fn systemd_starts_the_exporter_for_each_scrape_without_rights() {
    let host = Host::enter().await;
    let _guest = Guest::paused("web").await;
    host.machine("web").await;
    assert_eq!(property(SOCKET, "UnitFileState").await, "disabled");
    output("systemctl", &["start", SOCKET]).await;
    assert_eq!(property(SERVICE, "ActiveState").await, "inactive");

    let page = metrics().await;
    assert!(
        page.contains("\nvcpud_vcpus{machine=\"web\"} 1\n"),
        "{page}"
    );
    let usage = "\nvcpud_vcpu_usage_seconds_total{machine=\"web\",vcpu=\"0\"} ";
    assert!(page.contains(usage), "{page}");

    let pid = property(SERVICE, "MainPID").await;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let lines = [
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ];
    for line in lines {
        assert!(
            status.lines().any(|other| other == line),
            "{line}: {status}"
        );
    }
    assert!(!status.contains("\nUid:\t0\t"), "{status}");
    // It sees no other socket than that of the bus.
    let run = fs::read_dir(format!("/proc/{pid}/root/run")).unwrap();
    let names: Vec<_> = run.map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name == "vcpud"), "{names:?}");
    assert!(names.iter().any(|name| name == "dbus"), "{names:?}");

    output("systemctl", &["stop", SERVICE]).await;
    assert!(metrics().await.contains("machine=\"web\""));
    assert_ne!(property(SERVICE, "MainPID").await, pid);
    assert_eq!(property(SERVICE, "Result").await, "success");
    output("systemctl", &["stop", SOCKET, SERVICE]).await;
}
