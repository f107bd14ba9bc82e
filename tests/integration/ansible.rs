//! The Ansible collection, with the real Ansible that `tests/setup` installs. Each host is a real sshd with a bus, a
//! service and a machine of its own. The first playbook is that of README.md.

use std::collections::HashMap;

use serde_json::{Value, json};
use tempfile::TempDir;
use vcpud::names::error_name;

use crate::harness::*;

/// A host with a machine `web`. The parts are dropped in the order of the fields.
struct Host {
    qemu: Qemu,
    _sshd: Sshd,
    _units: Units,
    world: World,
}

impl Host {
    async fn start(name: &str, keys: &Keys<'_>) -> Self {
        let mut world = World::without_service().await;
        let units = Units::start(&world.bus).await;
        world.serve().await;
        let sshd = Sshd::start(&world, name, keys).await;
        let mut qemu = Qemu::start(&world, "web", &Boot::default()).await;
        let machine = world.machine("web").await;
        machine.wait_for("Placement", "scope").await;
        qemu.online("0").await;
        Self {
            qemu,
            _sshd: sshd,
            _units: units,
            world,
        }
    }

    /// Returns the desired values of the machine, and the values of the kernel.
    async fn placement(&self) -> (Dict, Vec<Dict>) {
        let machine = self.world.machine("web").await;
        let tuning = machine.get_tuning().await.unwrap();
        (dict_without_structures(&tuning), machine.rows().await)
    }

    async fn present(&self) -> Vec<u32> {
        self.world.machine("web").await.present().await
    }
}

/// Returns the values of `GetTuning` except the lists of structures.
fn dict_without_structures(tuning: &HashMap<String, zbus::OwnedVariant>) -> Dict {
    let mut tuning = tuning.clone();
    tuning.retain(|key, _| !["pins", "schedulers", "cache"].contains(&key.as_str()));
    dict(&tuning)
}

/// Returns whether machines can have control groups, without which they have no bandwidth.
#[expect(clippy::print_stderr, reason = "the reason why the test does not run")]
async fn can_create_groups() -> bool {
    let world = World::without_service().await;
    let reason = "the test cannot create control groups";
    let can = Units::start(&world.bus).await.placement() == "scope";
    let is_required = std::env::var_os("VCPUD_REQUIRE_TESTS").is_some();
    assert!(can || !is_required, "{reason}");
    if !can {
        eprintln!("not run: {reason}");
    }
    can
}

const HOSTS: [&str; 2] = ["alpha", "beta"];

/// The values of a result that check mode predicts.
const PREDICTED: [&str; 6] = ["changed", "added", "removed", "pending", "vcpus", "diff"];

/// Real QEMUs with a Linux guest, a scripted systemd with control groups of the kernel, dbus-daemons, sshds, Ansible.
#[tokio::test]
async fn a_playbook_sets_the_vcpus_of_machines_on_two_hosts() {
    if !can_create_groups().await {
        return;
    }
    let directory = TempDir::new().unwrap();
    let keys = Keys(directory.path());
    keys.generate().await;
    let mut ansible = Ansible::install().await;
    ansible.connect_to(&HOSTS, &keys);
    let [alpha, beta] = HOSTS;
    let hosts = [
        Host::start(alpha, &keys).await,
        Host::start(beta, &keys).await,
    ];

    first_run(&ansible, &hosts).await;
    failures(&ansible, &hosts).await;
    changes(&ansible, &hosts).await;
    reads(&ansible, &hosts).await;
    for mut host in hosts {
        // The control groups can be removed when they are empty.
        host.qemu.kill().await;
    }
}

/// The playbook of README.md: check mode, a run, and a second run.
async fn first_run(ansible: &Ansible, hosts: &[Host; 2]) {
    let playbook = readme_block("hosts: hypervisors");
    let same = include_str!("../../ansible/README.md").contains(&playbook);
    assert!(same, "ansible/README.md has another playbook");
    let playbook = ansible.file("readme.yml", &playbook);
    let planned = ansible.play(&playbook, &["--check"]).await;
    for host in hosts {
        assert_eq!(host.present().await, [0]);
        assert_eq!(host.placement().await.0["bandwidth-quota-usec"], -1);
        assert_eq!(host.qemu.count("device_add"), 0);
    }
    let done = ansible.play(&playbook, &[]).await;
    let expected = json!({
        "changed": true, "added": [1, 2, 3], "removed": [], "pending": [], "vcpus": 4,
        "diff": {
            "before": {
                "vcpus": 1,
                "pins": {"2-3": "default"},
                "bandwidth": {"quota_usec": -1, "period_usec": 100_000},
            },
            "after": {
                "vcpus": 4,
                "pins": {"2-3": "0-1"},
                "bandwidth": {"quota_usec": 80_000, "period_usec": 100_000},
            },
        },
    });
    for name in HOSTS {
        assert_eq!(planned.values(name, &PREDICTED), expected, "{planned:?}");
        assert_eq!(done.values(name, &PREDICTED), expected, "{done:?}");
    }
    for host in hosts {
        let (tuning, vcpus) = host.placement().await;
        assert_eq!(tuning["bandwidth-quota-usec"], 80_000);
        for vcpu in &vcpus[..4] {
            assert_eq!(
                (&vcpu["present"], &vcpu["started"]),
                (&json!(true), &json!(true))
            );
            assert_eq!(vcpu["bandwidth-quota-usec"], 80_000, "of the kernel");
        }
        assert_eq!(vcpus[2]["affinity"], "0-1", "of the kernel");
    }

    let again = ansible.play(&playbook, &[]).await;
    for name in HOSTS {
        let stats = &again.stats[name];
        assert_eq!(
            (&stats["ok"], &stats["changed"]),
            (&json!(2), &json!(0)),
            "{again:?}"
        );
        let diff = &again.last(name)["diff"];
        assert_eq!(diff["before"], diff["after"]);
    }
    for host in hosts {
        assert_eq!(host.qemu.count("device_add"), 3);
    }
}

/// A number of vCPUs that is not possible: nothing is changed, with and without check mode.
async fn failures(ansible: &Ansible, hosts: &[Host; 2]) {
    for options in [&["--check"][..], &[]] {
        let failed = ansible.play_fixture("too-many.yml", options).await;
        for name in HOSTS {
            let values = failed.values(name, &["changed", "error", "rc", "nearest"]);
            let expected = json!({
                "changed": false, "error": error_name::OUT_OF_RANGE, "rc": 7, "nearest": [MAX_VCPUS],
            });
            assert_eq!(values, expected, "{failed:?}");
            let message = failed.last(name)["msg"].as_str().unwrap();
            assert!(message.contains("1 to 64 vCPUs"), "{message}");
            assert_eq!(failed.stats[name]["failures"], 1);
        }
    }
    for host in hosts {
        assert!(!host.placement().await.1[0].contains_key("desired-affinity"));
    }
}

/// Some values differ, others do not, and a vCPU is removed.
async fn changes(ansible: &Ansible, hosts: &[Host; 2]) {
    let planned = ansible.play_fixture("fewer.yml", &["--check"]).await;
    let done = ansible.play_fixture("fewer.yml", &[]).await;
    let expected = json!({
        "changed": true, "added": [], "removed": [3], "pending": [], "vcpus": 3,
        "diff": {
            "before": {
                "vcpus": 4,
                "pins": {"2-3": "0-1"},
                "bandwidth": {"quota_usec": 80_000},
                "schedulers": {"all": "default", "1-2": "default"},
            },
            "after": {
                "vcpus": 3,
                "pins": {"2": "default", "3": "0"},
                "bandwidth": {"quota_usec": -1},
                "schedulers": {"all": "other", "1-2": "batch"},
            },
        },
    });
    for name in HOSTS {
        assert_eq!(planned.values(name, &PREDICTED), expected, "{planned:?}");
        assert_eq!(done.values(name, &PREDICTED), expected, "{done:?}");
    }
    for host in hosts {
        assert_eq!(host.present().await, [0, 1, 2]);
        let vcpus = host.placement().await.1;
        assert_eq!(vcpus[2]["scheduler"], "batch", "of the kernel");
        assert_eq!(vcpus[0]["scheduler"], "other", "of the kernel");
    }
    let again = ansible.play_fixture("fewer.yml", &[]).await;
    assert_eq!(again.last(HOSTS[0])["changed"], false, "{again:?}");
}

/// The module `machine_info`, and the inventory plugin.
async fn reads(ansible: &Ansible, hosts: &[Host; 2]) {
    let read = ansible.play_fixture("info.yml", &[]).await;
    let inventory = "plugin: vcpud.vcpud.machines
hosts: [root@alpha, beta]
full_names: true
strict: true
compose: {ansible_host: vcpud_name ~ '.example.org'}
groups: {small: vcpud_vcpus < 4}
keyed_groups: [{key: vcpud_host, prefix: host}]\n";
    let listed = ansible.inventory(inventory).await;
    let names = json!(["web.alpha", "web.beta"]);
    assert_eq!(listed["vcpud_running"]["hosts"], names, "{listed}");
    assert_eq!(listed["small"]["hosts"], names, "{listed}");
    for (name, host) in HOSTS.into_iter().zip(hosts) {
        let machines = &read.results[name][0]["machines"];
        assert_eq!(machines.as_array().map(Vec::len), Some(1), "{read:?}");
        let (web, pid) = (&machines[0], host.qemu.pid());
        for (key, value) in [
            ("name", json!("web")),
            ("state", json!("running")),
            ("vcpus", json!(3)),
            ("started_vcpus", json!(3)),
            ("max_vcpus", json!(MAX_VCPUS)),
            ("pending_removals", json!([])),
        ] {
            assert_eq!(web[key], value, "{web}");
        }
        assert_eq!(web["vcpu_list"][2]["scheduler"], "batch");
        assert_eq!(web["vcpu_list"][3]["present"], false);
        assert_eq!(web["tuning"]["pins"], json!([{"vcpu": 3, "cpus": "0"}]));
        let unknown = read.values(name, &["error", "rc"]);
        assert_eq!(
            unknown,
            json!({"error": error_name::NO_SUCH_MACHINE, "rc": 6})
        );

        let full_name = format!("web.{name}");
        let variables = &listed["_meta"]["hostvars"][&full_name];
        for (key, value) in [
            ("vcpud_name", json!("web")),
            ("vcpud_host", json!(name)),
            ("vcpud_vcpus", json!(3)),
            ("vcpud_max_vcpus", json!(MAX_VCPUS)),
            ("ansible_host", json!("web.example.org")),
        ] {
            assert_eq!(variables[key], value, "{variables}");
        }
        // QEMU is started through a shell script, which becomes it.
        assert_eq!(variables["vcpud_leader"], pid, "{variables}");
        assert_eq!(
            listed[format!("host_{name}")]["hosts"],
            json!([full_name]),
            "{listed}"
        );
    }
}

/// Runs tasks with these parameters for the machine `web` of this host, and returns their results, also of tasks
/// that fail.
async fn tasks(ansible: &Ansible, parameters: &[&str], options: &[&str]) -> Vec<Value> {
    let mut playbook = "- hosts: hypervisors\n  gather_facts: false\n  tasks:\n".to_owned();
    for parameters in parameters {
        playbook.push_str(&format!(
            "    - vcpud.vcpud.machine: {{name: web, {parameters}}}\n      ignore_errors: true\n"
        ));
    }
    let playbook = ansible.file("tasks.yml", &playbook);
    let mut played = ansible.play(&playbook, options).await;
    let results = played.results.remove("localhost").unwrap_or_default();
    assert_eq!(results.len(), parameters.len(), "{results:?}");
    results
}

/// Scripted QEMU, dbus-daemon, Ansible on the same host. The guest does not release a vCPU.
#[tokio::test]
async fn a_failed_task_reports_what_it_changed() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    machine.set(4).await.unwrap();
    peer.model().removal = Removal::Held;
    let mut ansible = Ansible::install().await;
    ansible.stay_on(&world);
    let task = "vcpus: 3, timeout: 100ms, pins: {3: 0}";
    let results = tasks(&ansible, &[task, task], &[]).await;
    for (result, changed) in results.iter().zip([true, false]) {
        assert_eq!(result["error"], error_name::REMOVAL_PENDING, "{result}");
        assert_eq!(
            (&result["rc"], &result["changed"]),
            (&json!(5), &json!(changed))
        );
        let lists = ["added", "removed", "pending", "refused"].map(|key| &result[key]);
        assert_eq!(lists, [&json!([]), &json!([]), &json!([3]), &json!([])]);
        let applied = if changed { vec!["pin 3 0"] } else { Vec::new() };
        assert_eq!(result["applied"], json!(applied), "{result}");
    }
    let listed = ansible.inventory("plugin: vcpud.vcpud.machines\n").await;
    assert_eq!(listed["vcpud_running"]["hosts"], json!(["web"]), "{listed}");
    let variables = &listed["_meta"]["hostvars"]["web"];
    assert_eq!(
        variables["vcpud_pending_removals"],
        json!([3]),
        "{variables}"
    );

    peer.send(&deleted(&peer.model().unplug(3)));
    machine.wait_for("Vcpus", 3_u32).await;
    peer.script(|model, call| {
        let n =
            (call.command == "device_del").then(|| model.at(call.arguments["id"].as_str()?))??;
        Some(vec![call.reply(json!({})), ost(n, None, 3, 130)])
    });
    let refused = &tasks(&ansible, &["vcpus: 2"], &[]).await[0]["refused"];
    assert_eq!(
        (&refused[0]["vcpu"], &refused[0]["reason_code"]),
        (&json!(2), &json!("busy"))
    );
}

/// Scripted QEMU, dbus-daemon, Ansible on the same host.
#[tokio::test]
async fn values_that_are_not_valid_are_errors_before_a_change() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    world.machine("web").await;
    let mut ansible = Ansible::install().await;
    ansible.stay_on(&world);
    let cases = [
        (
            "vcpus: 2, pins: {0: x}",
            "\"x\" is not valid; write a list of host CPUs",
        ),
        ("vcpus: 2, pins: {x: 0}", "\"x\" is not a list of vCPUs"),
        ("vcpus: 2, pins: {4: 0}", "no vCPU 4; its vCPUs are 0 to 3"),
        ("vcpus: 2, pins: {0: 0, '0-1': 1}", "vCPU 0 has two values"),
        ("vcpus: 2, schedulers: {0: fifo}", "\"fifo\" is not valid"),
        (
            "vcpus: 2, schedulers: {0: 'default:1'}",
            "\"default:1\" is not valid",
        ),
        (
            "vcpus: 2, bandwidth: {quota: 5 apples}",
            "\"5 apples\" is not a time",
        ),
        ("vcpus: 2, cache: {0: L3}", "\"L3\" is not valid"),
        ("until: present", "one of the following is required"),
    ];
    let parameters = cases.map(|(parameters, _)| parameters);
    let results = tasks(&ansible, &parameters, &[]).await;
    for ((parameter, text), result) in cases.into_iter().zip(&results) {
        let message = result["msg"].as_str().unwrap();
        assert!(message.contains(text), "{parameter}: {message}");
    }
    assert_eq!(peer.count("device_add"), 0);
}

/// Scripted QEMU, dbus-daemon, Ansible on the same host. Check mode needs no host CPUs, control groups or resctrl.
#[tokio::test]
async fn equal_values_in_another_form_are_no_change() {
    let world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let options = HashMap::new;
    machine.pin_vcpus(&[2, 3], "0", options()).await.unwrap();
    let batch = machine.set_scheduler(&[2, 3], "batch", 0, options());
    batch.await.unwrap();
    let mut ansible = Ansible::install().await;
    ansible.stay_on(&world);
    let parameters = [
        "pins: {'3,2': '0,0', 1: default}, schedulers: {2-3: 'batch:0', 1: default}, bandwidth: {quota: unlimited}",
        "bandwidth: {quota: 0.05, period: 200 ms}",
        "cache: {all: 'L3:1=0F;0=f', 0: default}",
    ];
    let results = tasks(&ansible, &parameters, &["--check"]).await;
    let values = results
        .iter()
        .map(|result| (&result["changed"], &result["diff"]["after"]));
    let same = json!({
        "pins": {"1": "default", "2-3": "0"}, "schedulers": {"1": "default", "2-3": "batch"}, "bandwidth": {"quota_usec": -1},
    });
    let limit = json!({"bandwidth": {"quota_usec": 50_000, "period_usec": 200_000}});
    let cache = json!({"cache": {"0": "default", "1-3": "L3:0=f;1=f"}});
    let expected = [
        (&json!(false), &same),
        (&json!(true), &limit),
        (&json!(true), &cache),
    ];
    assert_eq!(values.collect::<Vec<_>>(), expected);
    let warnings = results[1]["warnings"].to_string();
    assert!(warnings.contains("no control groups"), "{warnings}");
    let results = tasks(&ansible, &parameters[..1], &[]).await;
    assert_eq!(
        (&results[0]["changed"], &results[0]["vcpus"]),
        (&json!(false), &json!(1))
    );
}

/// Scripted QEMU, dbus-daemon, Ansible on the same host. The guest starts no vCPU that is added.
#[tokio::test]
async fn a_task_waits_for_the_guest_unless_present_is_enough() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    world.machine("web").await;
    peer.model().starts = Starts::None;
    let mut ansible = Ansible::install().await;
    ansible.stay_on(&world);
    let parameters = [
        "vcpus: 2, timeout: 100ms",
        "vcpus: 2, timeout: 100ms",
        "vcpus: 3, until: present",
        "vcpus: 3, until: present",
    ];
    let results = tasks(&ansible, &parameters, &[]).await;
    let values = results.iter().map(|result| {
        let error = result["error"].as_str();
        (result["changed"].as_bool(), error, &result["added"])
    });
    let error = Some(error_name::GUEST_DID_NOT_START);
    let expected = [
        (Some(true), error, &json!([1])),
        (Some(false), error, &json!([])),
        (Some(true), None, &json!([2])),
        (Some(false), None, &json!([])),
    ];
    assert_eq!(values.collect::<Vec<_>>(), expected);
    let warnings = results[2]["warnings"].to_string();
    assert!(
        warnings.contains("the guest has not started vCPU 2"),
        "{warnings}"
    );
}
