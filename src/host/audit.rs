//! The kernel's audit log: a record of every change of a machine's vCPUs, in the fields that
//! libvirt writes and ausearch(8) and auvirt(8) read.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket,
};
use tracing::debug;

/// `AUDIT_VIRT_RESOURCE` in `linux/audit.h`.
const AUDIT_VIRT_RESOURCE: u16 = 2501;
/// `NLM_F_REQUEST`: no acknowledgement is asked for, as nobody could do anything about none.
const NLM_F_REQUEST: u16 = 1;
/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// What happened to the number of a machine's vCPUs.
#[derive(Clone, Copy, Debug)]
pub struct AuditRecord<'a> {
    /// The machine's name, which has no character that means anything in a record.
    pub machine: &'a str,
    /// Its UUID as QEMU tells it; anything else is not written.
    pub uuid: &'a str,
    /// Whether KVM runs it.
    pub kvm: bool,
    /// Whether it was seen for the first time.
    pub is_start: bool,
    /// The number of vCPUs before.
    pub old: u32,
    /// The number of vCPUs now, or that there were to be.
    pub new: u32,
    /// The user who asked, where one did.
    pub uid: Option<u32>,
    /// Whether it came to pass.
    pub success: bool,
}

impl fmt::Display for AuditRecord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let virt = if self.kvm { "kvm" } else { "qemu" };
        let reason = if self.is_start { "start" } else { "update" };
        let uuid = if is_uuid(self.uuid) { self.uuid } else { "?" };
        let (machine, old, new) = (self.machine, self.old, self.new);
        write!(
            f,
            "virt={virt} resrc=vcpu reason={reason} vm=\"{machine}\" uuid={uuid}"
        )?;
        write!(f, " old-vcpu={old} new-vcpu={new}")?;
        if let Some(uid) = self.uid {
            write!(f, " request-uid={uid}")?;
        }
        let result = if self.success { "success" } else { "failed" };
        write!(
            f,
            " exe=\"/usr/sbin/vcpud\" hostname=? addr=? terminal=? res={result}"
        )
    }
}

/// Whether `text` is 32 hexadecimal digits in the groups of a UUID.
fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.concat().bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The way to the kernel's audit log, if there is one.
#[derive(Debug)]
pub struct Audit {
    socket: Option<OwnedFd>,
}

impl Audit {
    /// The audit log of this host. That there is none is no error.
    pub fn open() -> Self {
        let opened = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkAudit,
        );
        if let Err(error) = &opened {
            debug!(%error, "this host has no audit log");
        }
        let socket = opened.ok();
        Self { socket }
    }

    /// An audit log that nobody keeps, for who only tries something out.
    pub fn none() -> Self {
        Self { socket: None }
    }

    /// Writes `record`.
    pub fn write(&self, record: &AuditRecord<'_>) {
        if let Some(Err(error)) = self.socket.as_ref().map(|socket| send(socket, record)) {
            debug!(%error, "no audit record");
        }
    }
}

fn send(socket: &OwnedFd, record: &AuditRecord<'_>) -> io::Result<()> {
    let message = message(&record.to_string());
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &message, &kernel, MsgFlags::empty())?;
    Ok(())
}

/// `text` with the header of netlink(7) before it.
fn message(text: &str) -> Vec<u8> {
    let length = HEADER + text.len() + 1;
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(AUDIT_VIRT_RESOURCE.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend([0; 8]); // no sequence number, from this process
    message.extend(text.as_bytes());
    message.push(0);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: AuditRecord<'_> = AuditRecord {
        machine: "web-1",
        uuid: "c0ffee00-1234-4abc-8def-0123456789ab",
        kvm: true,
        is_start: false,
        old: 2,
        new: 4,
        uid: Some(1000),
        success: true,
    };

    #[test]
    fn a_record_has_the_fields_of_libvirts() {
        let text = "virt=kvm resrc=vcpu reason=update vm=\"web-1\" \
                    uuid=c0ffee00-1234-4abc-8def-0123456789ab old-vcpu=2 new-vcpu=4 \
                    request-uid=1000 exe=\"/usr/sbin/vcpud\" hostname=? addr=? terminal=? \
                    res=success";
        assert_eq!(RECORD.to_string(), text);
        let start = AuditRecord {
            kvm: false,
            is_start: true,
            uid: None,
            success: false,
            ..RECORD
        };
        let text = start.to_string();
        assert!(
            text.starts_with("virt=qemu resrc=vcpu reason=start "),
            "{text}"
        );
        assert!(
            !text.contains("request-uid") && text.ends_with("res=failed"),
            "{text}"
        );
    }

    #[test]
    fn what_qemu_says_forges_no_field() {
        for uuid in [
            "",
            "x res=success",
            "c0ffee00-1234-4abc-8def-0123456789a ",
            "c0ffee00",
        ] {
            let text = AuditRecord { uuid, ..RECORD }.to_string();
            assert!(text.contains(" uuid=? old-vcpu=2 "), "{text}");
        }
    }

    #[test]
    fn the_kernel_gets_a_netlink_message() {
        let message = message("virt");
        assert_eq!(message.len(), 21);
        assert_eq!(message[..4], 21u32.to_ne_bytes());
        assert_eq!(&message[16..], b"virt\0");
    }
}
