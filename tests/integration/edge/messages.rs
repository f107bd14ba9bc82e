//! Messages that the specification allows and no library sends.

use futures_util::StreamExt;
use zbus::wire::Endian;
use zbus::{Message, MessageStream, message};

use super::Served;
use crate::harness::{RawClient, World, within};

const ROOT: &str = "/org/vcpud1";
const MANAGER: &str = "org.vcpud1.Manager";

/// Scripted QEMU, dbus-daemon, a raw client.
#[tokio::test]
async fn unknown_flags_are_ignored() {
    let served = Served::start().await;
    let mut root = served.root().await;
    for flags in [0x08, 0x10, 0x80, 0xf8] {
        let (serial, mut bytes) = root.call_of(ROOT, MANAGER, "ListMachines", &());
        bytes[2] = flags;
        root.send(&bytes, &[]).await;
        assert_eq!(root.reply(serial).await.error, None, "flags {flags:#x}");

        let signal = Message::signal("/x", "a.b", "C").destination("org.vcpud1");
        let signal = signal.serial(root.next_serial()).build(&()).unwrap();
        let mut bytes = signal.data().bytes().to_vec();
        bytes[2] = flags;
        root.send(&bytes, &[]).await;
    }
    served.assert_untouched("unknown flags").await;
}

/// Scripted QEMU, dbus-daemon, a raw client.
#[tokio::test]
async fn a_call_that_expects_no_reply_gets_none() {
    let served = Served::start().await;
    let mut nobody = served.nobody().await;
    let (silent, mut bytes) = nobody.call_of(ROOT, MANAGER, "ListMachines", &());
    bytes[2] = 1;
    nobody.send(&bytes, &[]).await;
    let (_, mut failing) = nobody.call_of("/nowhere", MANAGER, "ListMachines", &());
    failing[2] = 1;
    nobody.send(&failing, &[]).await;
    // Its calls are answered in turn.
    for _ in 0..8 {
        let (serial, bytes) = nobody.call_of(ROOT, MANAGER, "ListMachines", &());
        nobody.send(&bytes, &[]).await;
        loop {
            let received = nobody.receive().await;
            assert!(received.reply_to > silent + 1);
            if received.reply_to == serial {
                break;
            }
        }
    }
}

/// Scripted QEMU, dbus-daemon, a raw client.
#[tokio::test]
async fn odd_messages_of_every_type_harm_nothing() {
    let served = Served::start().await;
    let mut nobody = served.nobody().await;
    let call = || Message::method_call(ROOT, "ListMachines").destination("org.vcpud1");
    let of = |builder: zbus::message::Builder<'static>| builder;
    let odd = [
        ("no interface", of(call())),
        (
            "a big-endian call",
            of(call().interface(MANAGER).endian(Endian::Big)),
        ),
        (
            "a reply in a call",
            of(call().interface(MANAGER).reply_serial(7.try_into().ok())),
        ),
        (
            "a path that is not served",
            of({
                Message::method_call("/a/b", "C")
                    .destination("org.vcpud1")
                    .interface("d.e")
            }),
        ),
        (
            "a member that is not served",
            of({
                Message::method_call(ROOT, "Nothing")
                    .destination("org.vcpud1")
                    .interface(MANAGER)
            }),
        ),
    ];
    for (what, builder) in odd {
        nobody.call(builder, &()).await;
        served.assert_untouched(what).await;
    }
    // The bus drops messages that its policy does not allow, and passes on the rest.
    let (_, mut bytes) = nobody.call_of(ROOT, MANAGER, "ListMachines", &());
    bytes[1] = 5;
    nobody.send(&bytes, &[]).await;
    served.assert_untouched("a type that does not exist").await;
}

/// Scripted QEMU, dbus-daemon, a raw client: as many signals as it can send, to the service alone.
#[tokio::test]
async fn signals_that_look_like_systemds_are_ignored() {
    let served = Served::start().await;
    let mut root = served.root().await;
    let manager = "org.freedesktop.systemd1.Manager";
    for _ in 0..5_000 {
        let signal = Message::signal("/org/freedesktop/systemd1", manager, "JobRemoved");
        let body = (
            1u32,
            "/org/freedesktop/systemd1/job/1",
            "vcpud-web.scope",
            "done",
        );
        root.call(signal.destination("org.vcpud1"), &body).await;
    }
    let _second = served.world.peer("db", crate::harness::Model::x86(1, 2));
    served.world.machine("db").await;
    served.assert_untouched("signals").await;
}

/// dbus-daemon; the test has the name of the service.
#[tokio::test]
async fn the_bus_delivers_no_signals_of_users() {
    let world = World::without_service().await;
    let name = "org.vcpud1";
    world.connection.request_name(name).await.unwrap();
    let mut messages = MessageStream::from(&world.connection);
    let mut nobody = RawClient::nobody(&world.bus).await;
    for destination in [name, world.connection.unique_name().unwrap().as_str()] {
        let signal = Message::signal("/x", "a.b", "C").destination(destination.to_owned());
        nobody.call(signal, &()).await;
    }
    let (_, call) = nobody.call_of(ROOT, MANAGER, "ListMachines", &());
    nobody.send(&call, &[]).await;

    let from_nobody = async {
        loop {
            let message = messages.next().await.unwrap().unwrap();
            if message.header().sender() == Some(&nobody.name) {
                return message.message_type();
            }
        }
    };
    assert_eq!(
        within("the call", from_nobody).await,
        message::Type::MethodCall
    );
}
