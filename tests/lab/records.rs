//! The records of a machine in the audit log and in the journal.

use crate::harness::*;

#[tokio::test]
async fn every_change_is_in_the_audit_log_and_in_the_journal() {
    let host = Host::enter().await;
    host.stop_service().await;
    let mut guest = Guest::boot("audited").await;
    let machine = host.machine("audited").await;
    machine.set(3).await.unwrap();
    guest.online("0-2").await;
    machine.set_patiently(2).await.unwrap();
    // The guest is stopped, so it does not release another vCPU in time.
    guest.monitor.execute("stop", serde_json::json!({})).await;
    let options = [("timeout-usec", 1000u64.into())];
    machine.set_with(1, &options).await.unwrap_err();

    // ausearch fails until auditd has written a record.
    const SEARCH: &str =
        "ausearch --input-logs --message VIRT_RESOURCE --vm-name audited --raw 2>&1 || :";
    let found = async {
        loop {
            let records = output("sh", &["-c", SEARCH]).await;
            if records.lines().count() >= 4 {
                return records;
            }
        }
    };
    let records = within("the audit records", found).await;
    let expected = [
        "reason=start vm=\"audited\" uuid=? old-vcpu=0 new-vcpu=1 ",
        "reason=update vm=\"audited\" uuid=? old-vcpu=1 new-vcpu=3 request-uid=0 ",
        "reason=update vm=\"audited\" uuid=? old-vcpu=3 new-vcpu=2 request-uid=0 ",
        "reason=update vm=\"audited\" uuid=? old-vcpu=2 new-vcpu=1 request-uid=0 ",
    ];
    let results = ["success", "success", "success", "failed"];
    let records: Vec<&str> = records.lines().collect();
    assert_eq!(records.len(), expected.len(), "{records:#?}");
    for ((record, fields), result) in records.iter().zip(expected).zip(results) {
        assert!(record.contains("virt=kvm resrc=vcpu "), "{record}");
        assert!(record.contains(fields), "{record}");
        assert!(record.contains(&format!("res={result}")), "{record}");
    }

    output("journalctl", &["--sync"]).await;
    let entries = [
        "VM_NAME=audited",
        "MESSAGE_ID=3598f460a1c2447c9c19365cd6bd577d",
    ];
    let explain = ["--catalog", "--no-pager", "--quiet"];
    let told = output("journalctl", &[&explain[..], &entries].concat()).await;
    assert!(
        told.contains("vCPU 2 of virtual machine audited was removed"),
        "{told}"
    );
    assert!(told.contains("Defined-By: vcpud"), "{told}");
}

#[tokio::test]
async fn every_authorized_call_is_in_the_audit_log_and_in_the_journal() {
    let host = Host::enter().await;
    let _guest = Guest::paused("accounted").await;
    let machine = host.machine("accounted").await;
    let options = Default::default();
    let call = machine.set_scheduler(&[], "batch", 0, options);
    within("SetScheduler", call).await.unwrap();
    machine.set(2).await.unwrap();

    const SEARCH: &str =
        "ausearch --input-logs --message VIRT_CONTROL --vm-name accounted --raw 2>&1 || :";
    let found = async {
        loop {
            let records = output("sh", &["-c", SEARCH]).await;
            if records.lines().count() >= 2 {
                return records;
            }
        }
    };
    let records = within("the audit records", found).await;
    let records: Vec<&str> = records.lines().collect();
    for (record, operation, value) in [
        (records[0], "op=scheduler ", "policy=\"batch\" "),
        (records[1], "op=add ", "vcpus=\"2\" "),
    ] {
        for field in [
            operation,
            value,
            "vm=\"accounted\"",
            "request-uid=0 ",
            "res=success",
        ] {
            assert!(record.contains(field), "{record}");
        }
    }
    assert_eq!(records.len(), 2, "{records:#?}");

    output("journalctl", &["--sync"]).await;
    let entries = ["VM_NAME=accounted", "OPERATION=scheduler", "REQUEST_UID=0"];
    let explain = ["--catalog", "--no-pager", "--quiet"];
    let told = output("journalctl", &[&explain[..], &entries].concat()).await;
    let message = "accounted: operation \"scheduler\" authorized for uid 0";
    assert_eq!(told.matches(message).count(), 1, "{told}");
    assert!(
        told.contains("Operation scheduler was authorized for uid 0"),
        "{told}"
    );
}
