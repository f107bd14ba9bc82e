//! Attempts of a user without rights, which all fail.

use crate::harness::*;

/// Each command fails with an error about permissions.
const ATTEMPTS: &[&str] = &[
    // On the bus.
    "busctl call org.vcpud1 $web org.vcpud1.Machine SetVcpus 'ua{sv}' 2 0",
    "busctl call org.vcpud1 $web org.vcpud1.Machine SetVcpu 'auba{sv}' 1 1 true 0",
    "busctl call org.vcpud1 $web org.vcpud1.Machine SetScheduler 'ausia{sv}' 1 0 fifo 99 0",
    "busctl call org.vcpud1 $web org.vcpud1.Machine SetBandwidth 'txa{sv}' 100000 1000 0",
    "busctl call org.vcpud1 /org/vcpud1 org.vcpud1.Manager UnregisterMachine s web",
    "busctl call org.vcpud1 /org/vcpud1 org.vcpud1.Manager Reload",
    "busctl call org.vcpud1 /org/vcpud1 org.vcpud1.Manager RegisterMachine 'ssa{sv}' mine \
     /run/vcpud/qmp/web.sock 0",
    "busctl call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus RequestName su \
     org.vcpud1 0",
    "vcpuctl set web 2",
    // With systemd.
    "systemctl --no-ask-password stop vcpud.service",
    "systemctl --no-ask-password kill vcpud.service",
    "systemctl --no-ask-password reload vcpud.service",
    "systemctl --no-ask-password set-property --runtime \"$unit\" CPUWeight=1",
    // On files.
    "touch /run/vcpud/qmp/mine.sock",
    "ln -s /run/vcpud/qmp/web.sock /run/vcpud/qmp/mine.sock",
    "rm -f /run/vcpud/qmp/web.sock",
    "touch /run/vcpud/guest-agent/web.sock",
    "touch /run/vcpud/machines/mine",
    "touch /run/vcpud/mine",
    "touch /etc/vcpud/machines.d/mine.toml",
    "echo > /run/vcpud/qmp/web.sock",
    // On processes.
    "kill -KILL $service",
    "kill -STOP $qemu",
    "taskset --pid --all-tasks 1 $qemu",
    "renice 19 $service",
    "cat /proc/$service/mem",
    "ls /proc/$service/fd",
    "echo $$ > /sys/fs/cgroup\"$group\"/cgroup.procs",
];

/// The messages of programs about missing permissions.
const NO: [&str; 6] = [
    "Access denied",
    "denied",
    "not permitted",
    "not allowed",
    "not authorized",
    "authentication",
];

#[tokio::test]
async fn an_unprivileged_users_attempts_all_fail() {
    let host = Host::enter().await;
    let guest = Guest::paused("web").await;
    let machine = host.machine("web").await;
    std::fs::create_dir_all("/etc/vcpud/machines.d").unwrap();
    let service = host.unit("MainPID").await;
    let variables = format!(
        "web={} service={service} qemu={} unit='{}' group='{}'; ",
        machine.path(),
        guest.pid(),
        machine.unit().await.unwrap(),
        machine.control_group().await.unwrap(),
    );
    // The reply follows all signals of earlier changes.
    assert_eq!(machine.set(1).await, Ok(Outcome::default()));
    let mark = host.signals.mark().await;
    for attempt in ATTEMPTS {
        let failure = User::ALICE.run(&format!("{variables}{attempt}")).await;
        let failure = failure.expect_err(attempt);
        let is_refusal = NO.iter().any(|no| failure.contains(no));
        assert!(is_refusal, "{attempt}: {failure}");
    }
    assert_eq!(host.signals.since(mark).await, []);
    assert_eq!(host.unit("MainPID").await, service);
    assert_eq!(guest.vcpu_threads(), [0]);
    assert_eq!(machine.set(2).await, Ok(Outcome::added([1])));
}
