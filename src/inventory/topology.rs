//! The position of a slot in the machine, as QEMU reports it.

use super::props::Props;

/// A level of the CPU topology, from the outermost to the innermost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Level {
    Drawer,
    Book,
    Socket,
    Die,
    Cluster,
    Module,
    Core,
    Thread,
}

impl Level {
    /// All levels, in the order by which vCPUs are numbered.
    pub const ALL: [Self; 8] = [
        Self::Drawer,
        Self::Book,
        Self::Socket,
        Self::Die,
        Self::Cluster,
        Self::Module,
        Self::Core,
        Self::Thread,
    ];

    /// Returns QEMU's name of the level (`CpuInstanceProperties` in `qapi/machine.json`).
    pub fn qemu_name(self) -> &'static str {
        match self {
            Self::Drawer => "drawer-id",
            Self::Book => "book-id",
            Self::Socket => "socket-id",
            Self::Die => "die-id",
            Self::Cluster => "cluster-id",
            Self::Module => "module-id",
            Self::Core => "core-id",
            Self::Thread => "thread-id",
        }
    }

    /// Returns the name on D-Bus, where `thread-id` is the host's thread.
    pub fn dbus_name(self) -> &'static str {
        match self {
            Self::Thread => "thread-id-in-core",
            other => other.qemu_name(),
        }
    }
}

/// The position of a slot: its number on each level that QEMU reports, and its NUMA node.
///
/// The NUMA node is not a level: the administrator chooses it, and vCPU numbers do not depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    levels: [Option<i64>; Level::ALL.len()],
    node: Option<i64>,
}

impl Topology {
    /// Returns the position in `props`. Members that are not integers are ignored.
    pub fn of(props: &Props) -> Self {
        Self {
            levels: Level::ALL.map(|level| props.number(level.qemu_name())),
            node: props.number("node-id"),
        }
    }

    /// Returns the key by which vCPUs are numbered: the levels, outermost first, without the NUMA node.
    pub(super) fn rank(&self) -> impl Ord + use<> {
        self.levels
    }

    /// Returns the NUMA node.
    pub fn node(&self) -> Option<i64> {
        self.node
    }

    /// Returns the levels that QEMU reports, outermost first.
    pub fn levels(&self) -> impl Iterator<Item = (Level, i64)> {
        Level::ALL
            .into_iter()
            .zip(self.levels)
            .filter_map(|(level, number)| Some((level, number?)))
    }
}
