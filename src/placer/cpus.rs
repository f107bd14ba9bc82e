//! The CPUs and memory nodes of the host (the kernel's `sysfs-devices-system-cpu`).

use std::io;
use std::path::{Path, PathBuf};

use crate::placement::{CpuList, HostCpus, List, NodeList, Numbered};
use crate::process::Dir;

/// Reads the CPUs and memory nodes below `system`, which is `/sys/devices/system` on a real host. A kernel
/// without NUMA has node 0.
///
/// # Errors
///
/// Fails with the path of a file that cannot be read.
pub fn host_cpus(system: &Path) -> Result<HostCpus, (PathBuf, io::Error)> {
    let at = |name: &str| system.join(name);
    let cpu = Dir::open(at("cpu")).map_err(|error| (at("cpu"), error))?;
    let cpus = |name| list(&cpu, name).map_err(|error| (cpu.at(name), error));
    let online: CpuList = cpus("online")?;
    let nodes = match Dir::open(at("node")) {
        Ok(node) => list(&node, "has_memory").map_err(|error| (node.at("has_memory"), error))?,
        Err(_) => NodeList::from_iter([0]),
    };
    Ok(HostCpus {
        possible: cpus("possible").unwrap_or_else(|_| online.clone()),
        isolated: cpus("isolated").unwrap_or_default(),
        online,
        nodes,
    })
}

fn list<K: Numbered>(dir: &Dir, name: &str) -> io::Result<List<K>> {
    let parsed = dir.read(name)?.parse();
    parsed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::ids::Tid;

    /// Uses a directory tree with files as sysfs has them.
    #[test]
    fn reads_the_lists_of_the_kernel() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("cpu")).unwrap();
        let (path, error) = host_cpus(tree.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(path, tree.path().join("cpu/online"));

        let write = |name: &str, text| fs::write(tree.path().join(name), text).unwrap();
        write("cpu/online", "0-5\n");
        let old = host_cpus(tree.path()).unwrap();
        assert_eq!(old.nodes.to_string(), "0");
        assert_eq!(old.possible, old.online);

        write("cpu/possible", "0-7\n");
        write("cpu/isolated", "4-5\n");
        fs::create_dir(tree.path().join("node")).unwrap();
        write("node/has_memory", "0-1\n");
        let host = host_cpus(tree.path()).unwrap();
        assert_eq!(host.default_cpus().to_string(), "0-3");
        assert_eq!(host.possible.to_string(), "0-7");
        assert_eq!(host.nodes.to_string(), "0-1");
    }

    /// Uses the real host. A thread can run on online CPUs only.
    #[test]
    fn a_real_host_has_cpus() {
        let host = host_cpus(Path::new("/sys/devices/system")).unwrap();
        let own = crate::placer::affinity(Tid(std::process::id())).unwrap();
        assert!(own.difference(&host.online).is_empty());
        assert!(!host.default_cpus().is_empty());
    }
}
