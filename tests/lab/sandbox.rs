//! The sandbox of the unit is in force, and the service works in it.

use std::fs;

use crate::harness::*;

/// The maximum exposure of each unit in `systemd-analyze security`, on its scale from 0 to 100.
const EXPOSURE: [(&str, &str); 3] = [
    ("vcpud.service", "17"),
    ("vcpud-autoscale.service", "6"),
    ("vcpud-exporter.service", "2"),
];

#[tokio::test]
async fn systemd_finds_nothing_wrong_with_the_units() {
    for (unit, exposure) in EXPOSURE {
        assert_eq!(
            output("systemd-analyze", &["verify", "--man=no", unit]).await,
            ""
        );
        let limit = format!("--threshold={exposure}");
        output("systemd-analyze", &["security", "--no-pager", &limit, unit]).await;
    }
}

#[tokio::test]
async fn the_service_has_no_more_rights_than_it_needs() {
    const CAP_DAC_OVERRIDE: u64 = 1 << 1;
    const CAP_SYS_NICE: u64 = 1 << 23;
    const CAP_AUDIT_WRITE: u64 = 1 << 29;
    let host = Host::enter().await;
    host.manager().await.version().await.unwrap();

    let status = format!("/proc/{}/status", host.unit("MainPID").await);
    let status = fs::read_to_string(status).unwrap();
    let value = |key: &str| {
        let lines = status.lines().filter_map(|line| line.split_once(":\t"));
        let mut values = lines.filter(|(name, _)| *name == key);
        values.next().unwrap().1.trim().to_owned()
    };
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let set = u64::from_str_radix(&value(set), 16).unwrap();
        assert_eq!(
            set,
            CAP_AUDIT_WRITE | CAP_DAC_OVERRIDE | CAP_SYS_NICE,
            "{status}"
        );
    }
    assert_eq!(value("NoNewPrivs"), "1");
    assert_eq!(value("Seccomp"), "2", "no filter of system calls");
}

#[tokio::test]
async fn the_service_sees_the_process_behind_a_socket() {
    let host = Host::enter().await;
    let guest = Guest::paused("web").await;
    let machine = host.machine("web").await;

    assert_eq!(machine.leader().await, Ok(guest.pid()));
    assert_eq!(machine.accelerator().await.as_deref(), Ok("kvm"));
    let path = host.manager().await.get_machine_by_pid(guest.pid()).await;
    assert_eq!(path.unwrap().as_str(), machine.path());
}

#[tokio::test]
async fn the_service_works_with_a_qemu_of_another_user() {
    let host = Host::enter().await;
    let guest = Guest::paused_as("libvirt-qemu", "theirs").await;
    let machine = host.machine("theirs").await;

    assert_eq!(machine.leader().await, Ok(guest.pid()));
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
}

#[tokio::test]
async fn the_service_has_limits() {
    let host = Host::enter().await;
    host.manager().await.version().await.unwrap();
    for (property, value) in [
        ("MemoryHigh", 256u64 << 20),
        ("MemoryMax", 512 << 20),
        ("TasksMax", 64),
        ("RestartSteps", 5),
        ("RestartMaxDelayUSec", 30),
        ("LogRateLimitBurst", 5000),
    ] {
        let shown = host.unit(property).await;
        assert_eq!(shown.trim_end_matches('s'), value.to_string(), "{property}");
    }
    assert_eq!(host.unit("OOMPolicy").await, "kill");
    assert_eq!(host.unit("ProcSubset").await, "pid");
}

/// The service runs as root, and cannot connect to the sockets of other daemons.
#[tokio::test]
async fn the_service_cannot_reach_the_sockets_of_other_daemons() {
    let host = Host::enter().await;
    output("systemctl", &["start", "libvirtd.socket"]).await;
    host.stop_service().await;
    host.manager().await.version().await.unwrap();
    let main = host.unit("MainPID").await;
    let socket = format!("/proc/{main}/root/run/libvirt/libvirt-sock");
    let connected = std::os::unix::net::UnixStream::connect(&socket);
    connected.expect_err("the socket is hidden");
    let mode = fs::metadata(&socket).unwrap().permissions();
    let mode = std::os::unix::fs::PermissionsExt::mode(&mode);
    assert_eq!(mode & 0o777, 0, "{socket}");
}
