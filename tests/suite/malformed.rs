//! Every method of the service with arguments that nobody in his senses gives.

use std::collections::HashMap;

use zbus::fdo::IntrospectableProxy;
use zbus_xml::{ArgDirection, Node};
use zvariant::{Fd, StructureBuilder, Value};

use crate::harness::*;

/// How many kinds of odd values there are of each type.
const ODDITIES: usize = 6;

/// An odd value of the type `signature`.
fn odd(signature: &str, kind: usize) -> Value<'static> {
    let options = |kind: usize| {
        let mut options: HashMap<String, Value<'static>> = HashMap::new();
        match kind {
            0 => {}
            1 => drop(options.insert("async".into(), "yes".into())),
            2 => drop(options.insert("\u{1b}[31m".into(), true.into())),
            3 => drop(options.insert("timeout-usec".into(), u64::MAX.into())),
            4 => options.extend((0..1000).map(|n| (format!("option-{n}"), n.into()))),
            _ => drop(options.insert("placement".into(), Value::new(Value::new(7u8)))),
        }
        options
    };
    let text = || match kind {
        0 => String::new(),
        1 => "x".repeat(1 << 20),
        2 => "../../etc/passwd\n".to_owned(),
        3 => "\u{1b}]0;owned\u{7}".to_owned(),
        4 => "0-4294967295,".repeat(1000),
        _ => "unix:/nonexistent".to_owned(),
    };
    match signature {
        "s" => text().into(),
        "u" => [0, 1, u32::MAX, 65_536, 7, i32::MAX as u32][kind].into(),
        "i" => [0, -1, i32::MIN, i32::MAX, 99, 100][kind].into(),
        "t" => [0, u64::MAX, 1, 1_000_000, 999, 100_000][kind].into(),
        "x" => [0, -1, i64::MIN, i64::MAX, 999, -2][kind].into(),
        "b" => kind.is_multiple_of(2).into(),
        "au" => match kind {
            0 => Vec::<u32>::new(),
            1 => vec![u32::MAX],
            2 => (0..50_000).collect(),
            3 => vec![0; 16_000],
            4 => vec![0, 1, 2, 3, 4],
            _ => vec![2, 1],
        }
        .into(),
        "a{sv}" => options(kind).into(),
        "h" => {
            let file = std::fs::File::open("/dev/null").expect("it is there");
            Fd::from(std::os::fd::OwnedFd::from(file)).into()
        }
        other => panic!("an argument of a type that is not known here: {other}"),
    }
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn every_method_answers_whatever_it_is_called_with() {
    let world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    let pid = world.service.as_ref().expect("it runs").pid();
    let mut called = 0;
    for path in ["/org/vcpud1", machine.path()] {
        let builder = IntrospectableProxy::builder(&world.connection);
        let builder = builder.destination("org.vcpud1").unwrap();
        let proxy = builder.path(path).unwrap().build().await.unwrap();
        let xml = proxy.introspect().await.unwrap();
        let node = Node::try_from(xml.as_str()).unwrap();
        let own = node.interfaces().iter();
        for interface in own.filter(|i| i.name().starts_with("org.vcpud1.")) {
            for method in interface.methods() {
                let inputs = method.args().iter();
                let inputs = inputs.filter(|arg| arg.direction() == Some(ArgDirection::In));
                let types: Vec<String> = inputs.map(|arg| arg.ty().inner().to_string()).collect();
                for kind in 0..ODDITIES {
                    let mut body = StructureBuilder::new();
                    for signature in &types {
                        body = body.append_field(odd(signature, kind));
                    }
                    let name = method.name();
                    let name = name.as_str();
                    let of = interface.name();
                    let of = Some(of.as_str());
                    let what = format!("{name} with oddity {kind}");
                    let call = async {
                        match types.is_empty() {
                            true => {
                                let call = world.connection.call_method(
                                    Some("org.vcpud1"),
                                    path,
                                    of,
                                    name,
                                    &(),
                                );
                                call.await
                            }
                            false => {
                                let body = body.build().expect("a body");
                                let call = world.connection.call_method(
                                    Some("org.vcpud1"),
                                    path,
                                    of,
                                    name,
                                    &body,
                                );
                                call.await
                            }
                        }
                    };
                    match within(&what, call).await {
                        Ok(_) | Err(zbus::Error::MethodError(..)) => called += 1,
                        Err(error) => panic!("{what}: {error}"),
                    }
                    // Arguments of quite another type; who takes none does not look at them.
                    if types.is_empty() {
                        continue;
                    }
                    let nonsense = (7u8, vec![(1.5f64, "x")]);
                    let call =
                        world
                            .connection
                            .call_method(Some("org.vcpud1"), path, of, name, &nonsense);
                    let refused = within(&what, call).await.unwrap_err();
                    assert!(
                        matches!(refused, zbus::Error::MethodError(..)),
                        "{what}: {refused}"
                    );
                }
            }
        }
    }
    assert!(called >= 14 * ODDITIES, "{called}");
    assert_eq!(world.service.as_ref().expect("it runs").pid(), pid);
    assert!(is_owned(&world.connection, "org.vcpud1").await);
    let log = world.service.as_ref().expect("it runs").log();
    assert!(
        !log.contains("panicked") && !log.contains('\u{1b}'),
        "{log}"
    );
    let machine = world.machine("web").await;
    machine.set(3).await.unwrap();
}
