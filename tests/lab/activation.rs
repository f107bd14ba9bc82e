//! systemd starts the service for a call, and knows its state.

use futures_util::StreamExt;

use crate::harness::*;

#[tokio::test]
async fn the_first_call_starts_the_service_through_systemd() {
    let host = Host::enter().await;
    host.stop_service().await;
    assert_eq!(host.unit("ActiveState").await, "inactive");

    let call = ["call", "org.vcpud1", "/org/vcpud1", "org.vcpud1.Manager"];
    let printed = output("busctl", &[&call[..], &["ListMachines"]].concat()).await;
    assert_eq!(printed, "a(sou) 0");

    // The service answers before it notifies systemd.
    host.has("ActiveState", "active").await;
    assert_eq!(host.unit("SubState").await, "running");
    assert_eq!(host.unit("StatusText").await, "No machines.");
    let owner = output("busctl", &["status", "org.vcpud1"]).await;
    let main = format!("PID={}\n", host.unit("MainPID").await);
    assert!(owner.starts_with(&main), "{owner}");
}

#[tokio::test]
async fn the_call_that_starts_the_service_finds_its_machine() {
    let host = Host::enter().await;
    let _guest = Guest::paused("web").await;
    host.stop_service().await;

    let manager = host.manager().await;
    let path = manager.get_machine("web").await.unwrap();
    assert_eq!(path.as_str(), "/org/vcpud1/machine/web");
}

#[tokio::test]
async fn a_socket_that_appears_starts_the_service() {
    let host = Host::enter().await;
    host.stop_service().await;
    output("systemctl", &["start", "vcpud.path"]).await;
    let bus = zbus::fdo::DBusProxy::new(&host.connection).await.unwrap();
    let mut owners = bus
        .receive_name_owner_changed_with_args(&[(0, "org.vcpud1")])
        .await
        .unwrap();
    let _guest = Guest::paused("web").await;
    let owner = within("the service", owners.next()).await.unwrap();
    assert!(owner.args().unwrap().new_owner().is_some());
    output("systemctl", &["stop", "vcpud.path"]).await;
    let manager = host.manager().await;
    let path = manager.get_machine("web").await.unwrap();
    assert_eq!(path.as_str(), "/org/vcpud1/machine/web");
}

#[tokio::test]
async fn no_call_is_lost_while_the_service_ends_by_itself() {
    const FILE: &str = "/etc/vcpud/vcpud.toml";
    let host = Host::enter().await;
    host.stop_service().await;
    std::fs::create_dir_all("/etc/vcpud").unwrap();
    std::fs::write(FILE, "[service]\nidle-exit = \"1s\"\n").unwrap();
    let bus = zbus::fdo::DBusProxy::new(&host.connection).await.unwrap();
    let mut owners = bus
        .receive_name_owner_changed_with_args(&[(0, "org.vcpud1")])
        .await
        .unwrap();
    let manager = host.manager().await;
    for _ in 0..4 {
        // Just after the service has released its name, while its process still runs.
        let called = within("an answer", manager.version()).await;
        assert!(called.is_ok(), "{called:?}");
        let given_up = async {
            while let Some(change) = owners.next().await {
                if change.args().unwrap().new_owner().is_none() {
                    return;
                }
            }
        };
        within("the service to end by itself", given_up).await;
    }
    std::fs::remove_file(FILE).unwrap();
    let called = within("an answer", manager.version()).await;
    assert!(called.is_ok(), "{called:?}");
    assert_eq!(host.unit("Result").await, "success");
    host.stop_service().await;
}

#[tokio::test]
async fn systemd_knows_the_state_reloading() {
    const FILE: &str = "/etc/vcpud/vcpud.toml";
    let host = Host::enter().await;
    let manager = host.manager().await;
    assert_eq!(manager.configuration_errors().await.unwrap(), [""; 0]);
    std::fs::create_dir_all("/etc/vcpud").unwrap();
    std::fs::write(FILE, "[defaults]\nremoval-timeout = \"soon\"\n").unwrap();
    output("systemctl", &["reload", "vcpud.service"]).await;
    let found = async {
        loop {
            let problems = manager.configuration_errors().await.unwrap();
            if let [problem] = &problems[..] {
                return problem.clone();
            }
        }
    };
    let problem = within("the mistake", found).await;
    assert!(
        problem.contains("vcpud.toml:2: removal-timeout"),
        "{problem}"
    );
    // The service notifies systemd after it has published the mistake.
    host.has("ActiveState", "active").await;
    std::fs::remove_file(FILE).unwrap();
    manager.reload().await.unwrap();
    assert_eq!(manager.configuration_errors().await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn the_service_ends_cleanly_and_the_machine_continues_to_run() {
    let host = Host::enter().await;
    let guest = Guest::paused("web").await;
    host.machine("web").await;
    host.stop_service().await;

    assert_eq!(host.unit("Result").await, "success");
    assert_eq!(host.unit("ExecMainStatus").await, "0");
    assert_eq!(guest.vcpu_threads(), [0]);
}

#[tokio::test]
async fn the_log_of_the_service_is_in_the_journal() {
    let host = Host::enter().await;
    host.stop_service().await;
    host.manager().await.version().await.unwrap();

    let ready = "ready, watching the directory of QMP sockets";
    assert_eq!(host.logs(ready).await, 1);
    let invocation = format!("_SYSTEMD_INVOCATION_ID={}", host.unit("InvocationID").await);
    // No warning and no error.
    let trouble = ["--priority", "warning", "--quiet", "--output", "cat"];
    let trouble = output("journalctl", &[&trouble[..], &[&invocation]].concat()).await;
    assert_eq!(trouble, "");
}
