//! The proxies that zbus_xmlgen generates from `dbus/org.vcpud1.xml`.

#![allow(clippy::all, missing_docs, reason = "generated code")]

use zbus::proxy;

include!(concat!(env!("OUT_DIR"), "/proxies.rs"));
