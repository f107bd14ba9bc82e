//! An autoscaler whose texts control terminals.

use std::collections::{BTreeMap, HashMap};

use zbus::{Variant, interface};

use crate::harness::*;

type Dict = HashMap<&'static str, Variant<'static>>;

/// Sets the title of a terminal, and begins a line.
const TEXT: &str = "a\u{1b}]0;title\u{7}b\nc\u{9b}31md\u{202e}";

struct Hostile;

#[interface(name = "org.vcpud1.Autoscale")]
impl Hostile {
    fn list(&self) -> BTreeMap<String, Dict> {
        BTreeMap::from([(TEXT.to_owned(), row())])
    }

    fn explain(&self, machine: &str) -> zbus::fdo::Result<Dict> {
        match machine {
            "web" => Ok(row()),
            _ => Err(zbus::fdo::Error::Failed(TEXT.to_owned())),
        }
    }

    #[zbus(property)]
    fn configuration_errors(&self) -> Vec<String> {
        vec![TEXT.to_owned()]
    }
}

fn row() -> Dict {
    let keys = ["machine", "mode", "reason", "failure", "sampling-error"];
    keys.map(|key| (key, TEXT.into())).into()
}

/// dbus-daemon, vcpuctl.
#[tokio::test]
async fn no_text_of_the_autoscaler_controls_a_terminal() {
    let world = World::without_service().await;
    let objects = world.connection.object_server();
    let path = "/org/vcpud1/autoscale";
    objects.at(path, Hostile).await.unwrap();
    let name = "org.vcpud1.Autoscale";
    world.connection.request_name(name).await.unwrap();
    for (line, expected) in [
        ("autoscale", 0),
        ("explain web", 0),
        ("explain db", 1),
        ("--json autoscale", 0),
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        let (status, printed, complaint) = world.vcpuctl(&arguments).await;
        assert_eq!(status, expected, "{line}: {complaint}");
        for text in [printed, complaint] {
            let is_special = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
            // JSON has escapes for control characters.
            let is_safe = !text.contains(is_special) || line.contains("--json");
            assert!(is_safe && !text.contains('\u{1b}'), "{line}: {text:?}");
        }
    }
    let (_, _, complaint) = world.vcpuctl(&["--json", "autoscale"]).await;
    assert!(
        complaint.contains("warning: a\u{fffd}]0;title"),
        "{complaint}"
    );
    let (_, _, complaint) = world.vcpuctl(&["--quiet", "autoscale"]).await;
    assert_eq!(complaint, "");
}
