//! File descriptors that no method takes.

use std::fs::File;
use std::os::fd::AsFd;

use vcpud::names::error_name;

use super::Served;

/// Scripted QEMU, dbus-daemon, a raw client.
#[tokio::test]
async fn descriptors_that_a_method_does_not_take_are_closed() {
    let served = Served::start().await;
    let mut nobody = served.nobody().await;
    let file = File::open("/dev/null").unwrap();
    let service = served.world.service.as_ref().unwrap();
    let before = service.descriptors();
    for member in [
        "ListMachines",
        "GetMachine",
        "RegisterMachineWithFd",
        "Reload",
    ] {
        for _ in 0..100 {
            let (serial, bytes) = with_descriptors(&mut nobody, member);
            nobody.send(&bytes, &[file.as_fd(); 16]).await;
            let reply = nobody.reply(serial).await;
            assert_eq!(reply.error.as_deref(), Some(error_name::LIMIT_EXCEEDED));
        }
    }
    served.assert_untouched("descriptors").await;
    assert!(service.descriptors() <= before + 4, "{before} before");
}

/// A call with 16 descriptors.
fn with_descriptors(nobody: &mut crate::harness::RawClient, member: &str) -> (u32, Vec<u8>) {
    let serial = nobody.next_serial();
    // zbus counts the descriptors of a body; this one has none, so the count is written here.
    let message = zbus::Message::method_call("/org/vcpud1", member)
        .destination("org.vcpud1")
        .interface("org.vcpud1.Manager")
        .serial(serial);
    let file = File::open("/dev/null").unwrap();
    let fds: Vec<zbus::Fd<'_>> = (0..16).map(|_| zbus::Fd::from(&file)).collect();
    let message = message.build(&(fds,)).unwrap();
    (serial.get(), message.data().bytes().to_vec())
}
