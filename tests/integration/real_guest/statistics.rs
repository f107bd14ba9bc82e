//! Statistics, compared with the files of the kernel. There is no systemd on the bus of the test, so there are no
//! control groups: `tests/cgroups` and the lab have those.

use std::collections::HashMap;
use std::fs;

use rustix::process::Pid;
use rustix::thread::{sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};

use crate::harness::*;

/// Returns CPU time and run delay of each vCPU's thread, in ns, from `schedstat`.
fn times(pid: u32, rows: &[Dict]) -> Vec<[u64; 2]> {
    let of_row = |row: &Dict| {
        let path = format!("/proc/{pid}/task/{}/schedstat", row["thread-id"]);
        let text = fs::read_to_string(path).expect("the thread runs");
        let mut fields = text.split_whitespace().map(|field| field.parse().unwrap());
        [fields.next().unwrap(), fields.next().unwrap()]
    };
    let present = rows.iter().filter(|row| row["present"] == true);
    present.map(of_row).collect()
}

fn number(row: &Dict, key: &str) -> u64 {
    let value = row.get(key).and_then(Value::as_u64);
    value.unwrap_or_else(|| panic!("no number {key}: {row:?}"))
}

/// Real QEMU with firmware only, dbus-daemon.
#[tokio::test]
async fn counters_are_those_of_the_kernel_and_never_decrease() {
    let world = World::without_polkit().await;
    let qemu = Qemu::start(&world, "web", &Boot::FIRMWARE).await;
    let machine = world.machine("web").await;
    assert_eq!(machine.set(4).await, Ok(Outcome::added([2, 3])));

    let listed = machine.rows().await;
    let before = times(qemu.pid(), &listed);
    let (counters, rows) = machine.statistics(&[]).await.unwrap();
    let after = times(qemu.pid(), &listed);
    assert_eq!(rows.len(), 4);
    for (id, row) in rows.iter().enumerate() {
        assert_eq!(row["id"], id);
        for (n, key) in ["usage-usec", "wait-usec"].into_iter().enumerate() {
            let possible = before[id][n] / 1000..=after[id][n] / 1000;
            assert!(
                possible.contains(&number(row, key)),
                "{key}: {row:?}, {possible:?}"
            );
        }
        assert!(number(row, "host-cpu") < 4096, "{row:?}");
        for key in ["throttled-usec", "periods", "exits"] {
            assert!(!row.contains_key(key), "{row:?}");
        }
    }
    let numbers = ["vcpus", "max-vcpus", "pending"].map(|key| &counters[key]);
    assert_eq!(numbers, [&json!(4), &json!(MAX_VCPUS), &json!(0)]);
    let vcpus: u64 = rows.iter().map(|row| number(row, "usage-usec")).sum();
    let emulator = number(&counters, "emulator-usage-usec");
    assert!(emulator > 0, "{counters:?}");
    let all = number(&counters, "usage-usec");
    assert!(vcpus + emulator <= all + 1, "{counters:?}, vCPUs: {vcpus}");

    let (later, later_rows) = machine.statistics(&[]).await.unwrap();
    for key in ["timestamp-usec", "usage-usec", "emulator-usage-usec"] {
        assert!(number(&later, key) >= number(&counters, key), "{key}");
    }
    for (row, later) in rows.iter().zip(&later_rows) {
        assert!(number(later, "usage-usec") >= number(row, "usage-usec"));
        assert!(number(later, "wait-usec") >= number(row, "wait-usec"));
    }
}

/// Real QEMU with firmware only, dbus-daemon.
#[tokio::test]
async fn vcpus_that_share_a_thread_have_no_counters() {
    let world = World::without_polkit().await;
    let _qemu = Qemu::start(&world, "web", &Boot::ONE_THREAD).await;
    let machine = world.machine("web").await;
    let (counters, rows) = machine.statistics(&[("kvm", true.into())]).await.unwrap();
    let rows: Vec<Value> = rows.into_iter().map(Value::from).collect();
    assert_eq!(rows, [json!({"id": 0}), json!({"id": 1})]);
    assert!(number(&counters, "usage-usec") > 0);
    assert!(!counters.contains_key("emulator-usage-usec"));
}

/// Real QEMU with firmware only, dbus-daemon, vcpuctl.
#[tokio::test]
async fn vcpuctl_shows_statistics_to_people_and_to_scripts() {
    let world = World::without_polkit().await;
    let _qemu = Qemu::start(&world, "web-1", &Boot::FIRMWARE).await;
    world.machine("web-1").await;
    let shown = async |arguments: &[&str]| {
        let (status, printed, complaint) = world.vcpuctl(arguments).await;
        assert_eq!((status, complaint.as_str()), (0, ""), "{arguments:?}");
        printed
    };
    let one = shown(&["stats", "web-1"]).await;
    assert!(one.contains("vCPUs: 2 of 64"), "{one}");
    let (_, table) = one.split_once("\n\n").expect("a table below");
    let table: Vec<&str> = table.lines().collect();
    let headings: Vec<&str> = table[0].split_whitespace().collect();
    assert_eq!(headings, ["VCPU", "USAGE", "WAIT", "THROTTLED", "HOST-CPU"]);
    assert_eq!(table.len(), 3, "{one}");

    let all = shown(&["stats"]).await;
    let words: Vec<&str> = all.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(words[..4], ["web-1", "2", "64", "0"], "{all}");

    let json = async |arguments: &[&str]| -> Value {
        serde_json::from_str(&shown(&[&["--json"], arguments].concat()).await).unwrap()
    };
    let one = json(&["stats", "--kvm", "web-1"]).await;
    assert_eq!(one["name"], "web-1");
    assert_eq!(one["vcpus"][1]["id"], 1);
    assert!(one["machine"]["usage-usec"].is_u64(), "{one}");
    let all = json(&["stats"]).await;
    assert_eq!(all[0]["name"], "web-1");
    assert_eq!(all.as_array().map(Vec::len), Some(1));
}

/// Real QEMU with firmware only, dbus-daemon. The test changes the affinity of a thread.
#[tokio::test]
async fn a_setting_that_is_restored_is_counted() {
    let world = World::without_polkit().await;
    let _qemu = Qemu::start(&world, "web", &Boot::FIRMWARE).await;
    let machine = world.machine("web").await;
    let all = sched_getaffinity(None).unwrap();
    let pin = machine.pin_vcpus(&[1], "0", HashMap::new());
    within("PinVcpus", pin).await.unwrap();

    let thread = machine.rows().await[1]["thread-id"].as_u64().unwrap();
    let thread = Pid::from_raw(thread.try_into().unwrap());
    sched_setaffinity(thread, &all).unwrap();
    // The thread of the new vCPU needs a placement pass.
    machine.set(3).await.unwrap();
    assert!(sched_getaffinity(thread).unwrap().count() == 1);
    let (counters, _) = machine.statistics(&[]).await.unwrap();
    assert_eq!(number(&counters, "restored"), 1);
}
