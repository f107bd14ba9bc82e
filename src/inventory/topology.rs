//! The position of a slot in the machine, as far as QEMU says.

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
    /// All levels, in the order that vCPUs are numbered by.
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

    /// QEMU's name of the level (`CpuInstanceProperties` in `qapi/machine.json`).
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

    /// The name on D-Bus, where `thread-id` is the host's thread.
    pub fn dbus_name(self) -> &'static str {
        match self {
            Self::Thread => "thread-id-in-core",
            other => other.qemu_name(),
        }
    }
}

/// The position of a slot: its number on each level that QEMU names, and its NUMA node.
///
/// The NUMA node is no level: it is a property that the administrator gives, and vCPU numbers
/// do not depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    levels: [Option<i64>; Level::ALL.len()],
    node: Option<i64>,
}

impl Topology {
    /// Takes the known members of `props` that are integers.
    pub fn of(props: &Props) -> Self {
        Self {
            levels: Level::ALL.map(|level| props.number(level.qemu_name())),
            node: props.number("node-id"),
        }
    }

    /// What vCPUs are numbered by: the levels, outermost first, without the NUMA node.
    pub(super) fn rank(&self) -> impl Ord + use<> {
        self.levels
    }

    /// The NUMA node.
    pub fn node(&self) -> Option<i64> {
        self.node
    }

    /// The levels that QEMU names, outermost first.
    pub fn levels(&self) -> impl Iterator<Item = (Level, i64)> {
        Level::ALL
            .into_iter()
            .zip(self.levels)
            .filter_map(|(level, number)| Some((level, number?)))
    }
}
