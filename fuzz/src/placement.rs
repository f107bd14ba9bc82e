//! Texts for and about the placement of vCPUs: cache shares, CPU time, mounts, control groups.

use vcpud::placement::{Bandwidth, CpuList, Scheduler, Schemata, Tuning};
use vcpud::placer::{Membership, Mounts};

/// Accepted values survive serialization, and no text leads out of a hierarchy.
pub fn placement(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    schemata(text);
    groups(text);
    survives::<Bandwidth>(text);
    survives::<Scheduler>(text);
    survives::<Schemata>(text);
    survives::<CpuList>(text);
    survives::<Tuning>(text);
}

fn schemata(text: &str) {
    match text.parse::<Schemata>() {
        Ok(schemata) => {
            let written = schemata.to_string();
            assert_eq!(written.parse().as_ref(), Ok(&schemata), "{written}");
            assert!(schemata.is_in(&written), "{written}");
            // The kernel gets only lines of schemata.
            let is_known = |c: char| c.is_ascii_alphanumeric() || "_:;=\n".contains(c);
            assert!(written.chars().all(is_known), "{written}");
        }
        Err(error) => assert!(error.to_string().len() < 1024, "{error}"),
    }
}

/// Reads the text as the files of a process, and as those of the host.
fn groups(text: &str) {
    let mounts = Mounts::parse(text);
    let membership = Membership::parse(text);
    let paths = membership.paths().chain(membership.of_cpu());
    let any = text.split([' ', ':', '\n']);
    let paths: Vec<&str> = paths.chain(any).take(256).collect();
    for mount in mounts
        .unified
        .iter()
        .chain(mounts.controllers.values())
        .take(16)
    {
        for path in &paths {
            if let Some(relative) = mount.relative(path) {
                assert!(!relative.starts_with('/'), "{relative}");
                assert!(relative.split('/').all(|name| name != ".."), "{relative}");
                assert!(path.ends_with(relative));
            }
        }
    }
}

/// A `T` that was read from a file can be serialized and read again.
fn survives<T>(text: &str)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    if let Ok(value) = serde_json::from_str::<T>(text) {
        let written = serde_json::to_string(&value).expect("it can be serialized");
        let again = serde_json::from_str::<T>(&written);
        assert_eq!(again.ok().as_ref(), Some(&value), "{written}");
    }
}
