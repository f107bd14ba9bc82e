//! A machine that an unprivileged user registers stays within the limits of the user.

use std::os::unix::fs::chown;

use super::*;

const DIRECTORY: &str = "/run/lab-users";
const RULE: &str = include_str!("../../../polkit/examples/50-vcpud-group-register.rules");
/// The rule of the examples, and one that authorizes a scope.
const SCOPES: &str = r#"
polkit.addRule(function(action, subject) {
    if (action.lookup("options") === "placement" && action.lookup("placement") === "scope" &&
        action.lookup("owner") === action.lookup("uid")) {
        return polkit.Result.YES;
    }
});
"#;

/// Returns the number that `id` prints.
async fn oscars_uid() -> u32 {
    let uid = output("id", &["--user", "oscar"]).await;
    uid.trim().parse().expect("a number")
}

/// A QEMU of the user oscar in a scope of the slice of oscar, with its QMP socket in [`DIRECTORY`].
async fn oscars_qemu(uid: u32) -> Process {
    let _ = fs::remove_dir_all(DIRECTORY);
    fs::create_dir(DIRECTORY).expect("root may");
    chown(DIRECTORY, Some(uid), None).expect("root may");
    let mut command = command("systemd-run");
    command
        .args(["--quiet", "--collect", "--scope", "--unit=lab-users.scope"])
        .arg(format!("--slice=user-{uid}.slice"))
        .args(["setpriv", "--reuid=oscar", "--regid=oscar", "--init-groups"])
        .args([
            "qemu-system-x86_64",
            "-S",
            "-accel",
            "tcg",
            "-machine",
            "q35",
        ])
        .args(["-smp", "1,maxcpus=4", "-m", "64", "-display", "none"])
        .args(["-nodefaults", "-no-user-config", "-qmp"])
        .arg(format!("unix:{DIRECTORY}/qmp,server=on,wait=off"));
    let qemu = Process::spawn("QEMU", &mut command);
    let socket = format!("{DIRECTORY}/qmp");
    until("the socket", true, || {
        fs::exists(&socket).is_ok_and(|is| is)
    })
    .await;
    qemu
}

#[tokio::test]
async fn a_users_registration_stays_in_the_users_slice() {
    let host = Host::enter().await;
    let _rule = host.rule(&format!("{RULE}{SCOPES}")).await;
    let uid = oscars_uid().await;
    let mut qemu = oscars_qemu(uid).await;
    let slice = format!("user-{uid}.slice");

    // By default QEMU stays in its unit.
    let (name, socket) = (format!("{uid}-vm"), format!("{DIRECTORY}/qmp"));
    let register = format!("vcpuctl register {name} {socket}");
    User::OSCAR.run(&register).await.unwrap();
    let machine = host.machine(&name).await;
    assert_eq!(machine.placement().await.as_deref(), Ok("none"));
    let leader = machine.leader().await.expect("the property can be read");
    assert!(Groups::around(leader).unit.ends_with("/lab-users.scope"));
    let manager = host.manager().await;
    manager.unregister_machine(&name).await.unwrap();

    // A scope is in the slice of the user.
    let scoped = format!("{register} --placement scope");
    User::OSCAR.run(&scoped).await.unwrap();
    let machine = host.machine(&name).await;
    machine.wait_for("Placement", "scope").await;
    let group = Groups::of(&machine).await.unit;
    assert!(
        group.starts_with(&format!("/user.slice/{slice}/vcpud-")),
        "{group}"
    );

    // Another slice needs another rule.
    manager.unregister_machine(&name).await.unwrap();
    let escape = format!("{register} --placement scope --slice machine.slice");
    User::OSCAR.run(&escape).await.unwrap_err();
    qemu.kill().await;
    let _ = fs::remove_dir_all(DIRECTORY);
}
