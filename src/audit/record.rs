//! Records of the audit log: of every change of a machine's vCPUs and of every authorized call, in
//! the fields that libvirt writes and ausearch(8) and auvirt(8) read.

use std::fmt;

use crate::ids::Uid;

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
    pub uid: Option<Uid>,
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

/// The maximum length of a value in a record of a call, in bytes. A record has room for all values of
/// a call then; the journal has them at full length.
const MAX_VALUE: usize = 256;

/// A call that was authorized.
#[derive(Clone, Debug)]
pub struct CallRecord<'a> {
    /// The operation, in words of the service's own.
    pub operation: &'a str,
    /// The machine's name, if the call is about one; it has no character that means anything in a
    /// record.
    pub machine: Option<&'a str>,
    /// Its UUID as QEMU tells it; anything else is not written.
    pub uuid: &'a str,
    /// Whether KVM runs it.
    pub kvm: bool,
    /// The user whose call was authorized.
    pub uid: Uid,
    /// The arguments, by words of the service's own.
    pub values: Vec<(&'a String, &'a String)>,
}

impl fmt::Display for CallRecord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let virt = if self.kvm { "kvm" } else { "qemu" };
        let uuid = if is_uuid(self.uuid) { self.uuid } else { "?" };
        let (operation, uid) = (self.operation, self.uid);
        write!(f, "virt={virt} op={operation} reason=request")?;
        match self.machine {
            Some(machine) => write!(f, " vm=\"{machine}\" uuid={uuid}")?,
            None => write!(f, " vm=? uuid=?")?,
        }
        write!(f, " request-uid={uid}")?;
        for (key, value) in &self.values {
            write!(f, " {key}=")?;
            write_value(f, value)?;
        }
        f.write_str(" exe=\"/usr/sbin/vcpud\" hostname=? addr=? terminal=? res=success")
    }
}

/// Writes `value` as `audit_log_untrustedstring()` of the kernel does: in quotes, or in hexadecimal if
/// it contains a byte that could end it.
fn write_value(f: &mut fmt::Formatter<'_>, value: &str) -> fmt::Result {
    let value = &value.as_bytes()[..value.len().min(MAX_VALUE)];
    let is_plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'"';
    if value.iter().all(is_plain) {
        write!(f, "\"{}\"", String::from_utf8_lossy(value))
    } else {
        value.iter().try_for_each(|byte| write!(f, "{byte:02X}"))
    }
}

/// Whether `text` is 32 hexadecimal digits in the groups of a UUID.
fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.concat().bytes().all(|byte| byte.is_ascii_hexdigit())
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
        uid: Some(Uid(1000)),
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
    fn no_value_of_a_call_forges_a_field() {
        let values = [
            ("cpus", "0-3,8"),
            ("address", "/a\" res=failed"),
            ("schemata", "L3:0=f"),
        ];
        let values = values.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut record = CallRecord {
            operation: "register",
            machine: Some("web"),
            uuid: "x res=success",
            kvm: false,
            uid: Uid(1000),
            values: values.iter().map(|(key, value)| (key, value)).collect(),
        };
        let text = "virt=qemu op=register reason=request vm=\"web\" uuid=? request-uid=1000 \
                    cpus=\"0-3,8\" address=2F6122207265733D6661696C6564 schemata=\"L3:0=f\" \
                    exe=\"/usr/sbin/vcpud\" hostname=? addr=? terminal=? res=success";
        assert_eq!(record.to_string(), text);
        let (key, long) = ("cpus".to_owned(), "ä".repeat(5000));
        record.values = vec![(&key, &long)];
        assert!(record.to_string().len() < 1000);
        record.machine = None;
        assert!(record.to_string().contains(" vm=? uuid=? "));
    }
}
