//! vcpuctl calls the service of another host, or in a container.

use super::vcpuctl;
use crate::harness::*;

/// Scripted QEMU, dbus-daemon, systemd-stdio-bridge, vcpuctl. Shell scripts replace ssh and the way into the container.
#[tokio::test]
async fn another_host_or_container_is_reached_through_the_bridge() {
    let world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(2, 4));
    world.machine("web").await;
    let directory = world.bus.directory();
    let bridge = format!(
        "exec /usr/bin/systemd-stdio-bridge --bus-path={}",
        world.bus.address()
    );
    for (name, arguments) in [
        ("ssh", "-xT -- admin@host systemd-stdio-bridge"),
        ("systemd-stdio-bridge", "--machine=box"),
    ] {
        let text = format!("[ \"$*\" = \"{arguments}\" ] && {bridge}");
        script(&directory.join(name), &text);
    }
    for (option, value) in [("-H", "admin@host"), ("-M", "box")] {
        let mut command = vcpuctl([option, value, "set", "web", "+1"]);
        command.env("PATH", format!("{}:/usr/bin:/bin", directory.display()));
        let output = within("vcpuctl", command.output()).await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (printed, complaint) = (text(output.stdout), text(output.stderr));
        assert!(output.status.success(), "{option}: {complaint}");
        assert!(printed.starts_with("web: added "), "{printed}");
    }
    let mut command = vcpuctl(["-H", "other@host", "list"]);
    command.env("PATH", format!("{}:/usr/bin:/bin", directory.display()));
    let output = within("vcpuctl", command.output()).await.unwrap();
    assert_eq!(output.status.code(), Some(75));
    let complaint = String::from_utf8(output.stderr).unwrap();
    let told = [
        "of the host other@host",
        "ssh other@host systemd-stdio-bridge",
    ];
    assert!(
        told.iter().all(|text| complaint.contains(text)),
        "{complaint}"
    );
}
