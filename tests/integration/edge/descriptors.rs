//! File descriptors that no method takes.

use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

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

/// Scripted QEMU, dbus-daemon, raw clients. The last `close(2)` of a socket that lingers blocks until
/// its peer reads, which it never does.
#[tokio::test]
async fn a_descriptor_whose_close_blocks_does_not_stop_the_service() {
    let served = Served::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut peers = Vec::new();
    for member in [
        "RegisterMachineWithFd",
        "ListMachines",
        "RegisterMachineWithFd",
    ] {
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peers.push(listener.accept().unwrap());
        socket.set_nonblocking(true).unwrap();
        while socket.write(&[0; 64 << 10]).is_ok() {}
        set_socket_linger(&socket, Some(Duration::from_secs(3600))).unwrap();
        let mut nobody = served.nobody().await;
        let none: std::collections::HashMap<&str, zbus::Variant<'_>> = Default::default();
        let fd = zbus::Fd::from(&socket);
        let body = ("vm", fd, none);
        let (serial, bytes) = nobody.call_of("/org/vcpud1", "org.vcpud1.Manager", member, &body);
        nobody.send(&bytes, &[socket.as_fd()]).await;
        // This close does not block, because the descriptor is under way.
        drop(socket);
        assert!(nobody.reply(serial).await.error.is_some());
        served.assert_untouched("a socket that lingers").await;
    }
    assert_eq!(served.machine.set(3).await.unwrap().added, [2]);
    drop(peers);
}
