//! Generates the proxies.

use std::error::Error;
use std::path::Path;

use zbus_xml::Node;
use zbus_xmlgen::CodeGenerator;

const XML: &str = "../../dbus/org.vcpud1.xml";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={XML}");
    let xml = std::fs::read_to_string(XML)?;
    let node = Node::try_from(xml.as_str())?;
    let generator = CodeGenerator::new();
    let mut code = String::new();
    for interface in node.interfaces() {
        code += &generator.interface_code(interface)?;
    }
    let directory = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&directory).join("proxies.rs"), code)?;
    Ok(())
}
