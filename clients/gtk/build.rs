//! Generates the proxies from the XML files of the interfaces. It must not know what the application does.

use std::error::Error;
use std::fs;
use std::path::Path;

use zbus_xml::Node;
use zbus_xmlgen::CodeGenerator;

const INTERFACES: [&str; 2] = [
    "../../dbus/org.vcpud1.xml",
    "../../dbus/org.vcpud1.Autoscale.xml",
];

/// The methods for which polkit can ask for a password. The generator knows no such flag.
const ASK: [&str; 5] = [
    "fn set_vcpus(",
    "fn pin_vcpus(",
    "fn set_bandwidth(",
    "fn enable(",
    "fn disable(",
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut code = String::new();
    for path in INTERFACES {
        println!("cargo:rerun-if-changed={path}");
        let xml = fs::read_to_string(path)?;
        let node = Node::try_from(xml.as_str())?;
        for interface in node.interfaces() {
            code += &CodeGenerator::new().interface_code(interface)?;
        }
    }
    for method in ASK {
        if code.matches(method).count() != 1 {
            return Err(format!("the interfaces do not have one method \"{method}\"").into());
        }
        code = code.replace(
            method,
            &format!("#[zbus(allow_interactive_auth)]\n    {method}"),
        );
    }
    let directory = std::env::var("OUT_DIR")?;
    fs::write(Path::new(&directory).join("proxies.rs"), code)?;
    Ok(())
}
