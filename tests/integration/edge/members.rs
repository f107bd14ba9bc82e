//! Every method, with everything that a caller can get wrong.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;

use zbus::Variant;
use zbus::fdo::IntrospectableProxy;
use zbus_xml::{ArgDirection, Node};

use super::Served;

/// Interface, member and signatures of the arguments of a method, with the path of an object.
type Method = (String, String, String, Vec<String>);

/// Scripted QEMU, dbus-daemon, raw clients. The methods are those of the introspection, the
/// standard interfaces included.
#[tokio::test]
async fn no_method_is_harmed_by_what_a_caller_sends() {
    let served = Served::start().await;
    let methods = methods(&served).await;
    assert!(methods.len() > 20, "{methods:?}");
    let file = File::open("/dev/null").unwrap();
    // It never reads.
    let mut deaf = served.nobody().await;
    for (path, interface, member, _) in &methods {
        let what = format!("{interface}.{member} at {path}");
        let mut nobody = served.nobody().await;
        let mut bodies: Vec<Vec<u8>> = Vec::new();
        let mut add = |call: (u32, Vec<u8>)| bodies.push(call.1);
        add(nobody.call_of(path, interface, member, &()));
        let long = "x".repeat(1 << 20);
        add(nobody.call_of(path, interface, member, &(&long, &long)));
        let keys: Vec<String> = (0..64).map(|key| format!("key-{key}")).collect();
        let keys = keys.iter().map(|key| (key.as_str(), Variant::from(true)));
        let keys: HashMap<&str, Variant<'_>> = keys.collect();
        add(nobody.call_of(path, interface, member, &(1u32, &keys)));
        add(nobody.call_of(path, interface, member, &("x", "/x", &keys)));
        add(nobody.call_of(path, interface, member, &(vec![1u32], true, &keys)));
        add(nobody.call_of(path, interface, member, &((1u8, 2.5f64), vec![vec![1u64]])));
        let mut flags = nobody.call_of(path, interface, member, &()).1;
        flags[2] = 0xf8;
        bodies.push(flags);
        let count = bodies.len();
        for bytes in &bodies {
            nobody.send(bytes, &[]).await;
            deaf.send(bytes, &[]).await;
        }
        for _ in 0..count {
            let received = nobody.receive().await;
            assert!(
                received.length < 64 << 10,
                "{what}: {} bytes",
                received.length
            );
        }
        let fds: Vec<zbus::Fd<'_>> = (0..16).map(|_| zbus::Fd::from(&file)).collect();
        let (serial, bytes) = nobody.call_of(path, interface, member, &(fds,));
        nobody.send(&bytes, &[file.as_fd(); 16]).await;
        assert!(nobody.reply(serial).await.error.is_some(), "{what}");
        served.assert_untouched(&what).await;
    }
    assert_eq!(served.peer.count("device_add"), 0);
    assert_eq!(served.peer.count("device_del"), 0);
}

/// All methods of the root object and of the machine.
async fn methods(served: &Served) -> Vec<Method> {
    let mut methods = Vec::new();
    for path in ["/org/vcpud1", served.machine.path()] {
        let proxy = IntrospectableProxy::builder(&served.world.connection);
        let proxy = proxy
            .destination("org.vcpud1")
            .path(path)
            .build()
            .await
            .unwrap();
        let xml = proxy.introspect().await.unwrap();
        let node = Node::try_from(xml.as_str()).unwrap();
        for interface in node.interfaces() {
            for method in interface.methods() {
                let inputs = method.args().iter();
                let inputs = inputs.filter(|arg| arg.direction() == Some(ArgDirection::In));
                methods.push((
                    path.to_owned(),
                    interface.name().to_string(),
                    method.name().to_string(),
                    inputs.map(|arg| arg.ty().to_string()).collect(),
                ));
            }
        }
    }
    methods
}
