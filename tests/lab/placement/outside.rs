//! The service restores changes of groups and threads by other programs.

use super::*;

#[tokio::test]
async fn changes_by_other_programs_are_restored_and_logged_once() {
    let host = Host::enter().await;
    let log = Log::from_now().await;
    let (guest, machine, groups) = four_vcpus(&host, "web").await;
    assert_eq!(pin(&machine, &[1], "1-2").await, Ok(()));
    assert_eq!(schedule(&machine, &[3], "fifo", 5).await, Ok(()));
    assert_eq!(limit(&machine, 50_000, 40_000).await, Ok(()));

    let threads: Vec<String> = (0..4).map(|vcpu| guest.thread(vcpu).to_string()).collect();
    for _ in 0..2 {
        groups.write("vcpud/vcpu1/cpuset.cpus", "0");
        groups.write("vcpud/vcpu0/cpu.max", "20000 100000");
        groups.write("vcpud/emulator/cgroup.threads", &threads[2]);
        output("taskset", &["--cpu-list", "--pid", "3", &threads[0]]).await;
        output("chrt", &["--other", "--pid", "0", &threads[3]]).await;

        until("the drift", Drift::default(), || Drift::of(&guest, &groups)).await;
        assert_eq!(scheduling_of(guest.thread(3)).await, "SCHED_FIFO 5");
        assert_placed(&groups, &guest);
    }
    let said = log.values("changed by another program", "STEP").await;
    let steps = [
        "moving the thread into the control group",
        "setting the group's host CPUs",
        "setting the group's period and quota",
        "setting the thread's affinity",
        "setting the thread's scheduler",
    ];
    assert_eq!(said, steps);
}

/// The differences from the settings of the test above.
#[derive(Debug, Default, PartialEq)]
struct Drift(Vec<String>);

impl Drift {
    fn of(guest: &Guest, groups: &Groups) -> Self {
        let all = online();
        let mut drift = Vec::new();
        for vcpu in 0..4 {
            let cpus = if vcpu == 1 { "1-2" } else { &all };
            let thread = guest.thread(vcpu);
            for (what, is, wanted) in [
                ("cpu.max", groups.of_vcpu(vcpu, "cpu.max"), "40000 50000"),
                (
                    "threads",
                    groups.of_vcpu(vcpu, "cgroup.threads"),
                    &*thread.to_string(),
                ),
                ("affinity", list_of(thread), cpus),
                (
                    "cpuset",
                    groups.of_vcpu(vcpu, "cpuset.cpus.effective"),
                    cpus,
                ),
            ] {
                if is != wanted {
                    drift.push(format!("vCPU {vcpu}: {what} {is}"));
                }
            }
        }
        let scheduled = fs::read_to_string(format!("/proc/{}/stat", guest.thread(3)));
        // Its 40th and 41st fields are the priority and the policy (proc_pid_stat(5)).
        if !scheduled.is_ok_and(|stat| stat.contains(" 5 1 ")) {
            drift.push("vCPU 3: scheduler".to_owned());
        }
        Self(drift)
    }
}

#[tokio::test]
async fn properties_set_with_systemd_do_not_change_the_groups_of_vcpus() {
    let host = Host::enter().await;
    let log = Log::from_now().await;
    let guest = Guest::paused_in(Place::Scope, "web").await;
    let machine = host.machine("web").await;
    let groups = Groups::of(&machine).await;
    assert_eq!(machine.set(3).await, Ok(Outcome::added([1, 2])));
    assert_eq!(pin(&machine, &[1], "1-2").await, Ok(()));
    assert_eq!(limit(&machine, 50_000, 40_000).await, Ok(()));
    let all = online();
    let as_wanted = async || {
        assert_placed(&groups, &guest);
        assert_eq!(
            affinities(&machine, &groups, &guest).await,
            [&all, "1-2", &all]
        );
        assert_eq!(of_all(&groups, &guest, "cpu.max"), ["40000 50000"; 3]);
        assert_eq!(groups.read("vcpud/cgroup.subtree_control"), "cpuset cpu");
    };
    as_wanted().await;

    output("systemctl", &["daemon-reload"]).await;
    as_wanted().await;
    let set = ["set-property", "--runtime", "vcpud-web.scope"];
    output(
        "systemctl",
        &[&set[..], &["CPUWeight=50", "CPUQuota=150%"]].concat(),
    )
    .await;
    // systemd writes them after its reply.
    let written = ["50", "150000 100000"].map(str::to_owned);
    until("the properties", written, || {
        ["cpu.weight", "cpu.max"].map(|file| groups.read(file))
    })
    .await;
    as_wanted().await;
    output("systemctl", &["daemon-reload"]).await;
    assert_eq!(groups.read("cpu.max"), "150000 100000");
    as_wanted().await;
    // vCPUs can be added as before.
    assert_eq!(machine.set(4).await, Ok(Outcome::added([3])));
    assert_placed(&groups, &guest);
    assert_eq!(groups.of_vcpu(3, "cpu.max"), "40000 50000");
    assert_eq!(log.of("changed by another program").await, []);
}

#[tokio::test]
async fn host_cpus_that_go_offline_and_online_are_followed() {
    let host = Host::enter().await;
    let log = Log::from_now().await;
    let guest = Guest::paused_in(Place::Scope, "web").await;
    let machine = host.machine("web").await;
    let groups = Groups::of(&machine).await;
    assert_eq!(machine.set(3).await, Ok(Outcome::added([1, 2])));
    assert_eq!(pin(&machine, &[1], "1-2").await, Ok(()));
    assert_eq!(pin(&machine, &[2], "1").await, Ok(()));
    let lists = || -> Vec<String> {
        let threads = (0..3).map(|vcpu| guest.thread(vcpu));
        threads.map(list_of).collect()
    };
    let wanted = ["0-3", "1-2", "1"].map(str::to_owned).to_vec();
    assert_eq!(lists(), wanted);

    let offline = Offline::new(1);
    until("the default", "0,2-3".to_owned(), || lists().swap_remove(0)).await;
    until("the pin", "2".to_owned(), || lists().swap_remove(1)).await;
    machine.wait_for("Affinity", "0,2-3").await;
    // A new setting also applies, and an impossible one is logged.
    assert_eq!(machine.set(4).await, Ok(Outcome::added([3])));
    assert_eq!(list_of(guest.thread(3)), "0,2-3");
    let said = log
        .values("the host CPU list 1 has no CPU that is online", "VCPU")
        .await;
    assert_eq!(said, ["2"]);

    // A failure for one vCPU does not prevent changes of the others.
    let unavailable = pin(&machine, &[3], "1").await.unwrap_err();
    unavailable.assert("org.vcpud1.Error.CpuUnavailable", &["offline"]);
    assert_eq!(limit(&machine, 50_000, 40_000).await, Ok(()));
    for vcpu in 0..4 {
        assert_eq!(groups.of_vcpu(vcpu, "cpu.max"), "40000 50000");
    }
    assert_eq!(machine.effective_bandwidth_quota_usec().await, Ok(40_000));

    drop(offline);
    until("all lists", wanted, lists).await;
    machine.wait_for("Affinity", "0-3").await;
    until("the list of the new vCPU", "0-3".to_owned(), || {
        list_of(guest.thread(3))
    })
    .await;
    let limits = vec!["40000 50000".to_owned(); 4];
    until("all limits", limits, || of_all(&groups, &guest, "cpu.max")).await;
    assert_placed(&groups, &guest);
    assert_eq!(
        affinities(&machine, &groups, &guest).await,
        ["0-3", "1-2", "1", "0-3"]
    );
}

#[tokio::test]
async fn a_qemu_that_another_program_moved_to_a_scope_gets_its_scope_again() {
    let host = Host::enter().await;
    let guest = Guest::paused_in(Place::Scope, "web").await;
    let machine = host.machine("web").await;
    machine.wait_for("Placement", "scope").await;
    let groups = Groups::of(&machine).await;
    let pid = guest.pid().to_string();
    let manager = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1"];
    let method = ["org.freedesktop.systemd1.Manager", "StartTransientUnit"];
    let scope = ["ssa(sv)a(sa(sv))", "lab-other.scope", "fail"];
    let process = ["1", "PIDs", "au", "1", &pid, "0"];
    let call = [&["call"], &manager[..], &method, &scope, &process].concat();
    output("busctl", &call).await;
    until("the move", true, || {
        Groups::around(guest.pid())
            .unit
            .ends_with("/lab-other.scope")
    })
    .await;
    until("the groups", BTreeMap::new(), || groups.misplaced(&guest)).await;
    assert_placed(&groups, &guest);
    machine
        .wait_for("PlacementErrors", Vec::<String>::new())
        .await;
    assert_eq!(machine.set(3).await, Ok(Outcome::added([1, 2])));
    assert_placed(&groups, &guest);
}
