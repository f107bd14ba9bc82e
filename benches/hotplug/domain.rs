//! The guests, as domains of libvirt.

use std::path::{Path, PathBuf};

use super::peers::Way;

/// The directory of the files of the guests. QEMU has another user than the benchmark.
pub(super) const DIRECTORY: &str = "/run/bench";

/// Returns the path of a file of the guest `name`.
pub(super) fn path(name: &str, kind: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{name}.{kind}"))
}

/// Returns the domain of a guest with one vCPU of `max`. Each guest has two QMP sockets besides that of libvirt:
/// `NAME.qmp`, and another that makes it a machine of vcpud if the guest is for it.
pub(super) fn xml(name: &str, way: Way, max: u32) -> String {
    let qmp = path(name, "qmp");
    let console = path(name, "console");
    let machine = match way {
        Way::Vcpud => PathBuf::from(format!("/run/vcpud/qmp/{name}.sock")),
        Way::RawQmp | Way::LibvirtDbus | Way::Libvirt => path(name, "unused"),
    };
    let [qmp, console, machine] = [&qmp, &console, &machine].map(|path| path.display());
    format!(
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>256</memory>
  <vcpu placement='static' current='1'>{max}</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/usr/local/share/guest/vmlinux</kernel>
    <initrd>/usr/local/share/guest/initrd.bench</initrd>
    <cmdline>console=ttyS0 quiet panic=-1</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='host-passthrough' migratable='off'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <serial type='unix'><source mode='bind' path='{console}'/><target port='0'/></serial>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:{qmp},server=on,wait=off'/>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:{machine},server=on,wait=off'/>
  </qemu:commandline>
</domain>
"
    )
}
