//! Authorization by the polkit of the host.

use crate::harness::*;

const ACCESS_DENIED: &str = "org.freedesktop.DBus.Error.AccessDenied";
const AUTHENTICATION_REQUIRED: &str = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired";

/// Authorizes the group `vm-operators` for the machine `web-1` only.
const RULE: &str = r#"
polkit.addRule(function(action, subject) {
    if (action.id != "org.vcpud1.set-vcpus") return polkit.Result.NOT_HANDLED;
    if (subject.isInGroup("vm-operators") && action.lookup("machine") == "web-1")
        return polkit.Result.YES;
    return polkit.Result.NO;
});
"#;

#[tokio::test]
async fn a_user_without_rights_is_refused() {
    let host = Host::enter().await;
    let guest = Guest::paused("web").await;
    let machine = host.machine("web").await;

    for user in [User::ALICE, User::OSCAR] {
        let failure = user.set(&machine, 2).await.unwrap_err();
        failure.assert(AUTHENTICATION_REQUIRED, &["org.vcpud1.set-vcpus"]);
    }
    assert_eq!(machine.vcpus().await, Ok(1));
    assert_eq!(guest.vcpu_threads(), [0]);
}

#[tokio::test]
async fn a_rule_authorizes_a_group_for_one_machine_only() {
    let host = Host::enter().await;
    let _rule = host.rule(RULE).await;
    let guests = (Guest::paused("web-1").await, Guest::paused("web-2").await);
    let first = host.machine("web-1").await;
    let second = host.machine("web-2").await;

    let served = User::OSCAR.set(&first, 2).await;
    assert_eq!(served.as_deref(), Ok("auauau 1 1 0 0"));
    for (user, machine) in [(User::OSCAR, &second), (User::ALICE, &first)] {
        let failure = user.set(machine, 3).await.unwrap_err();
        failure.assert(ACCESS_DENIED, &["org.vcpud1.set-vcpus"]);
    }
    assert_eq!(guests.0.vcpu_threads(), [0, 1]);
    assert_eq!(guests.1.vcpu_threads(), [0]);
}

#[tokio::test]
async fn a_user_registers_a_machine_in_the_home_directory_and_resizes_it() {
    let host = Host::enter().await;
    let rules = [
        include_str!("../../polkit/examples/50-vcpud-group-register.rules"),
        include_str!("../../polkit/examples/50-vcpud-owner.rules"),
    ];
    let _rule = host.rule(&rules.concat()).await;
    let oscar = async |line: &str| User::OSCAR.run(line).await;
    oscar(
        "qemu-system-x86_64 -machine q35,accel=tcg -smp 1,maxcpus=4 -display none -S -daemonize \
         -pidfile ~/qemu.pid -qmp unix:$HOME/vm.sock,server=on,wait=off",
    )
    .await
    .unwrap();
    oscar("vcpuctl register $(id -u)-vm ~/vm.sock")
        .await
        .unwrap();
    let printed = oscar("vcpuctl set $(id -u)-vm 2").await.unwrap();
    assert!(printed.ends_with("-vm: added 1\n"), "{printed}");
    let complaint = User::ALICE
        .run("vcpuctl register mine /home/oscar/vm.sock")
        .await
        .unwrap_err();
    let denied = "cannot connect to the QMP socket /home/oscar/vm.sock: Permission denied";
    assert!(complaint.contains(denied), "{complaint}");
    oscar("vcpuctl unregister $(id -u)-vm").await.unwrap();
    oscar("kill $(cat ~/qemu.pid)").await.unwrap();
}

/// Stops polkit until it is dropped.
struct Hung;

impl Hung {
    const KILL: [&str; 3] = ["kill", "--kill-whom=main", "polkit.service"];

    async fn start() -> Self {
        output("systemctl", &["start", "polkit.service"]).await;
        output("systemctl", &[&Self::KILL[..], &["--signal=STOP"]].concat()).await;
        Self
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        let mut kill = std::process::Command::new("systemctl");
        let _ = kill.args(Self::KILL).arg("--signal=CONT").status();
    }
}

#[tokio::test]
async fn a_polkit_that_hangs_delays_only_callers_that_need_it() {
    let host = Host::enter().await;
    let guest = Guest::paused("web").await;
    let machine = host.machine("web").await;

    let hung = Hung::start().await;
    let seen = machine.clone();
    let asking = tokio::spawn(async move { User::ALICE.set(&seen, 8).await });
    // One after the other: root never waits for polkit.
    for count in 2..=3 {
        let set = machine.set(count).await;
        assert_eq!(set, Ok(Outcome::added([count - 1])));
        assert_eq!(machine.vcpus().await, Ok(count));
    }
    assert!(!asking.is_finished(), "{:?}", asking.await);
    let answer = within("the answer to alice", asking).await.unwrap();
    answer.unwrap_err().assert(
        ACCESS_DENIED,
        &["org.vcpud1.set-vcpus", "polkit did not answer", "10 s"],
    );
    assert_eq!(guest.vcpu_threads(), [0, 1, 2]);

    drop(hung);
    let failure = User::ALICE.set(&machine, 7).await.unwrap_err();
    failure.assert(AUTHENTICATION_REQUIRED, &["org.vcpud1.set-vcpus"]);
}
