//! A domain of libvirt with a second QMP monitor for the service. libvirt has its control groups.

use std::fmt::Write;

use super::*;

const NAME: &str = "theirs";

/// A running domain.
struct Domain;

impl Domain {
    async fn create() -> Self {
        let file = tempfile::NamedTempFile::new().expect("a file can be created");
        fs::write(file.path(), xml()).expect("the file can be written");
        let path = file.path().to_str().expect("UTF-8");
        output("virsh", &["--quiet", "create", path]).await;
        Self
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        let mut destroy = std::process::Command::new("virsh");
        let _ = destroy.args(["--quiet", "destroy", NAME]).status();
        let _ = fs::remove_file(format!("/run/vcpud/qmp/{NAME}.sock"));
    }
}

#[tokio::test]
async fn a_domain_of_libvirt_stays_as_libvirt_placed_it() {
    let host = Host::enter().await;
    host.stop_service().await;
    let domain = Domain::create().await;
    let pid = output("pgrep", &["--full", &format!("guest={NAME}")]).await;
    let pid: u32 = pid.parse().expect("one process");
    let before = seen(pid);
    assert!(
        before.contains("libvirt/vcpu1: 40000 50000 2-3"),
        "{before}"
    );

    let machine = host.machine(NAME).await;
    assert_eq!(machine.leader().await, Ok(pid));
    assert_eq!(machine.placement().await.as_deref(), Ok("none"));
    let unit = machine.unit().await.expect("the property can be read");
    assert!(unit.starts_with(r"machine-qemu\x2d"), "{unit}");
    assert_eq!(seen(pid), before);
    let refused = limit(&machine, 50_000, 10_000).await.unwrap_err();
    refused.assert("org.vcpud1.Error.NotSupported", &["no control groups"]);

    // A vCPU that the service adds stays where QEMU started it, and nothing else changes.
    assert_eq!(machine.set(3).await, Ok(Outcome::added([2])));
    assert!(seen(pid).starts_with(&before), "{} {before}", seen(pid));
    drop(domain);
}

/// Returns the state of the process in the kernel: its groups with their limits, then each thread with its
/// group and host CPUs.
fn seen(pid: u32) -> String {
    let emulator = Groups::around(pid);
    let unit = emulator.unit.strip_suffix("/libvirt/emulator");
    let unit = unit.expect("libvirt's own group").to_owned();
    let groups = Groups { unit };
    let mut text = String::new();
    for below in groups.below("libvirt") {
        let file = |file: &str| groups.read(&format!("libvirt/{below}/{file}"));
        let (limit, cpus) = (file("cpu.max"), file("cpuset.cpus"));
        writeln!(text, "libvirt/{below}: {limit} {cpus}").expect("memory");
    }
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let mut tasks: Vec<u32> = tasks
        .filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    // In the order of creation.
    tasks.sort_unstable();
    for task in tasks {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/task/{task}/{file}"));
        let (Ok(name), Ok(group)) = (read("comm"), read("cgroup")) else {
            continue;
        };
        // QEMU starts other threads at any time.
        if name.starts_with("CPU") {
            let (name, group) = (name.trim_end(), group.trim_end());
            writeln!(text, "{name}: {group} {}", list_of(task)).expect("memory");
        }
    }
    text
}

fn xml() -> String {
    format!(
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
           <name>{NAME}</name>
           <memory unit='MiB'>128</memory>
           <vcpu current='2'>8</vcpu>
           <cputune>
             <period>50000</period><quota>40000</quota>
             <vcpupin vcpu='0' cpuset='1'/><vcpupin vcpu='1' cpuset='2-3'/>
           </cputune>
           <os><type arch='x86_64' machine='q35'>hvm</type></os>
           <features><acpi/><apic/></features>
           <cpu mode='host-passthrough' migratable='off'/>
           <devices>
             <emulator>/usr/bin/qemu-system-x86_64</emulator>
             <controller type='usb' model='none'/>
             <memballoon model='none'/>
           </devices>
           <seclabel type='static' model='dac' relabel='yes'><label>+0:+0</label></seclabel>
           <qemu:commandline>
             <qemu:arg value='-qmp'/>
             <qemu:arg value='unix:/run/vcpud/qmp/{NAME}.sock,server=on,wait=off'/>
           </qemu:commandline>
         </domain>"
    )
}
