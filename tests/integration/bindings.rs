//! The interface in other languages: code generators, and libraries of Python.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use generated_proxy::{MachineProxy, ManagerProxy};
use tempfile::TempDir;
use vcpud::names::{BUS_NAME, ROOT_PATH};

use crate::harness::*;

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs `program`, which must succeed without a word on standard error.
async fn run(program: &str, arguments: &[String]) -> String {
    let mut command = command(program);
    let output = within(program, command.args(arguments).output()).await;
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; see tests/setup"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && errors.is_empty(),
        "{program}: {errors}"
    );
    String::from_utf8(output.stdout).expect("text")
}

/// gdbus-codegen, cc with the headers of GLib.
#[tokio::test]
async fn gdbus_codegen_makes_c_that_compiles() {
    let directory = TempDir::new().unwrap();
    let code = directory.path().join("vcpud");
    let (code, xml) = (code.display(), source("dbus/org.vcpud1.xml"));
    let options = format!(
        "--generate-c-code {code} --c-namespace Vcpud --c-generate-object-manager --interface-prefix org.vcpud1. {}",
        xml.display()
    );
    run("gdbus-codegen", &words(&options)).await;
    let headers = source("target/guest/glib");
    let headers = headers.display();
    let options = format!(
        "-fsyntax-only -Wall -Wextra -Wno-unused-parameter -Werror -isystem {headers}/include/glib-2.0 -isystem {headers}/include/gio-unix-2.0 -isystem {headers}/lib/glib-2.0/include {code}.c"
    );
    run("cc", &words(&options)).await;
}

/// qdbusxml2cpp. The code is not compiled.
#[tokio::test]
async fn qdbusxml2cpp_knows_all_types() {
    let directory = TempDir::new().unwrap();
    let code = directory.path().join("vcpud").display().to_string();
    let xml = source("dbus/org.vcpud1.xml").display().to_string();
    run("qdbusxml2cpp", &["-p".to_owned(), code, xml]).await;
}

/// zbus_xmlgen, scripted QEMU, dbus-daemon.
#[tokio::test]
async fn proxies_of_zbus_xmlgen_work() {
    let world = World::without_polkit().await;
    let _peer = world.peer("web", Model::x86(1, 4));
    world.machine("web").await;
    let manager = ManagerProxy::builder(&world.connection)
        .destination(BUS_NAME)
        .path(ROOT_PATH);
    let manager = manager.build().await.unwrap();
    assert!(!manager.features().await.unwrap().is_empty());
    let path = manager.get_machine("web").await.unwrap();
    let machine = MachineProxy::builder(&world.connection)
        .destination(BUS_NAME)
        .path(path);
    let machine = machine.build().await.unwrap();
    let mut changes = machine.receive_vcpu_changed().await.unwrap();
    let result = machine.set_vcpus(3, HashMap::new()).await.unwrap();
    assert_eq!(result, (vec![1, 2], vec![], vec![]));
    // The placement of vCPU 0 can also be a change.
    let added = async {
        while let Some(change) = changes.next().await {
            if change.args().unwrap().vcpus == [1, 2] {
                return;
            }
        }
    };
    within("VcpuChanged of the added vCPUs", added).await;
}

/// Scripted QEMU, dbus-daemon, Python with Gio, dbus-python and dbus-fast.
#[tokio::test]
async fn libraries_of_python_work() {
    let world = World::without_polkit().await;
    for client in ["gio", "dbus_python", "dbus_fast"] {
        let name = client.replace('_', "-");
        let _peer = world.peer(&name, Model::x86(1, 4));
        world.machine(&name).await;
        let script = source(&format!("tests/clients/with_{client}.py"));
        let arguments = format!("{} {name} 3", script.display());
        // Not another Python, which lacks the packages of the distribution.
        let mut python = command("/usr/bin/python3");
        let output = world.run(python.args(words(&arguments))).await;
        let expected = "features True\nadded [1, 2]\nsignals [1, 2]\nvcpus 3\nerror org.vcpud1.Error.OutOfRange\n";
        assert_eq!(output, (0, expected.to_owned(), String::new()), "{client}");
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}
