//! The bus is restarted or killed.

use crate::harness::*;

#[tokio::test]
async fn the_service_survives_a_restart_of_the_bus() {
    let mut host = Host::enter().await;
    let mut guest = Guest::paused("web").await;
    let mut machine = host.machine_of(&guest).await;
    for (command, vcpu, plugged) in [
        (&["restart", "dbus.service"][..], 1, 7),
        (&["kill", "--signal=KILL", "dbus.service"], 2, 6),
    ] {
        let grown = machine.set(2 * vcpu).await;
        assert_eq!(grown, Ok(Outcome::added([vcpu])));
        let former = host.unit("MainPID").await;
        output("systemctl", command).await;
        let id = format!("mine{plugged}");
        guest.monitor.plug(plugged, &id).await;
        host = Host::enter().await;
        machine = host.machine_of(&guest).await;
        machine.wait_for("Vcpus", 2 * vcpu + 1).await;
        host.has("NFileDescriptorStore", "2").await;
        assert_eq!(host.unit("MainPID").await, former);
        assert_eq!(host.unit("ActiveState").await, "active");
    }
    // systemd-logind does not connect to the new bus itself, and later logins would wait for it.
    output("systemctl", &["restart", "systemd-logind.service"]).await;
    assert_eq!(machine.set(6).await, Ok(Outcome::added([3])));
    assert_eq!(machine.present().await, [0, 1, 2, 3, 6, 7]);
}
