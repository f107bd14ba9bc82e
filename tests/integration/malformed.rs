//! Every method of the service with arguments that make no sense.

use std::collections::HashMap;

use serde::Serialize;
use zbus::Connection;
use zbus::fdo::IntrospectableProxy;
use zbus::{DynamicType, Fd, Structure, Variant};
use zbus_xml::{ArgDirection, Node};

use crate::harness::*;

/// How many kinds of odd values there are of each type.
const ODDITIES: usize = 6;

/// The methods that answer everybody, of the manager and of a machine.
const READABLE: [&str; 7] = [
    "ListMachines",
    "GetStatistics",
    "Plan",
    "CanSetVcpus",
    "GetTuning",
    "ListVcpus",
    "GetStatistics",
];

/// An odd value of the type `signature`.
fn odd(signature: &str, kind: usize) -> Variant<'static> {
    let options = |kind: usize| {
        let mut options: HashMap<String, Variant<'static>> = HashMap::new();
        match kind {
            0 => {}
            1 => drop(options.insert("async".into(), "yes".into())),
            2 => drop(options.insert("\u{1b}[31m".into(), true.into())),
            3 => drop(options.insert("timeout-usec".into(), u64::MAX.into())),
            4 => options.extend((0..1000).map(|n| (format!("option-{n}"), n.into()))),
            _ => drop(options.insert("placement".into(), Variant::new(Variant::new(7u8)))),
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

/// Arguments of the types `signature`, of the odd kind `kind`; `None` for a method without arguments.
fn odd_body(types: &[String], kind: usize) -> Option<zbus::Structure<'static>> {
    let fields = types.iter().map(|signature| odd(signature, kind));
    let body = fields.fold(Structure::builder(), |body, field| body.append_field(field));
    (!types.is_empty()).then(|| body.build().expect("a body"))
}

/// The result of a call with odd arguments: its description, and the name of the error.
type Answered = (String, Option<String>);

/// Calls every method of the objects `paths` with everything odd, and with nonsense.
async fn call_everything(connection: Connection, paths: Vec<String>) -> Vec<Answered> {
    let mut answered = Vec::new();
    for path in &paths {
        let builder = IntrospectableProxy::builder(&connection);
        let builder = builder.destination("org.vcpud1");
        let proxy = builder.path(path.as_str()).build().await.unwrap();
        let xml = proxy.introspect().await.unwrap();
        let node = Node::try_from(xml.as_str()).unwrap();
        let own = node.interfaces().iter();
        for interface in own.filter(|i| i.name().starts_with("org.vcpud1.")) {
            for method in interface.methods() {
                let inputs = method.args().iter();
                let inputs = inputs.filter(|arg| arg.direction() == Some(ArgDirection::In));
                let types: Vec<String> = inputs.map(|arg| arg.ty().to_string()).collect();
                let (of, name) = (interface.name(), method.name());
                let call = Call {
                    connection: &connection,
                    path,
                    interface: of.as_str(),
                    method: name.as_str(),
                };
                for kind in 0..ODDITIES {
                    let what = format!("{name} with oddity {kind}");
                    let error = match odd_body(&types, kind) {
                        Some(body) => call.error(&what, &body).await,
                        None => call.error(&what, &()).await,
                    };
                    answered.push((what, error));
                }
                // Arguments of quite another type; who takes none does not look at them.
                if !types.is_empty() {
                    let nonsense = (7u8, vec![(1.5f64, "x")]);
                    let error = call.error(&format!("nonsense for {name}"), &nonsense).await;
                    assert!(error.is_some(), "nonsense for {name} is taken");
                }
            }
        }
    }
    answered
}

/// A method of an object.
struct Call<'a> {
    connection: &'a Connection,
    path: &'a str,
    interface: &'a str,
    method: &'a str,
}

impl Call<'_> {
    /// The name of the error that a call with `body` gives, if it does.
    async fn error(&self, what: &str, body: &(impl Serialize + DynamicType)) -> Option<String> {
        let (of, name) = (Some(self.interface), self.method);
        let connection = self.connection;
        let call = connection.call_method(Some("org.vcpud1"), self.path, of, name, body);
        match within(what, call).await {
            Ok(_) => None,
            Err(error) => Some(Failure::of(error).name),
        }
    }
}

/// Whether the service has taken all of that without harm.
async fn assert_well(world: &World, pid: u32) {
    assert_eq!(world.service.as_ref().expect("it runs").pid(), pid);
    assert!(is_owned(&world.connection, "org.vcpud1").await);
    let log = world.service.as_ref().expect("it runs").log();
    let is_clean = !log.contains("panicked") && !log.contains('\u{1b}');
    assert!(is_clean, "{log}");
    world.machine("web").await.set(3).await.unwrap();
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn every_method_answers_whatever_it_is_called_with() {
    let world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    let pid = world.service.as_ref().expect("it runs").pid();
    let paths = ["/org/vcpud1", machine.path()].map(str::to_owned);
    let answered = call_everything(world.connection.clone(), paths.to_vec()).await;
    assert!(answered.len() >= 14 * ODDITIES, "{answered:?}");
    assert_well(&world, pid).await;
}

/// Scripted QEMU, dbus-daemon, polkitd.
#[tokio::test]
async fn whatever_nobody_calls_changes_nothing() {
    let world = World::with_polkit("").await;
    let peer = world.peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    let pid = world.service.as_ref().expect("it runs").pid();
    let (mark, asked) = (world.signals.mark().await, peer.changing_calls());
    let paths = ["/org/vcpud1", machine.path()].map(str::to_owned);
    let answered = world
        .with_nobody(move |manager| {
            call_everything(manager.inner().connection().clone(), paths.to_vec())
        })
        .await;
    assert!(answered.len() >= 14 * ODDITIES, "{answered:?}");
    // The calls that succeed only read.
    let taken = answered.iter().filter(|(_, error)| error.is_none());
    let mut taken: Vec<&str> = taken
        .filter_map(|(what, _)| what.split(' ').next())
        .collect();
    taken.dedup();
    assert_eq!(taken, READABLE);
    assert_eq!(world.signals.since(mark).await, []);
    assert_eq!(
        peer.changing_calls(),
        asked,
        "QEMU was asked to change something"
    );
    assert_well(&world, pid).await;
}
