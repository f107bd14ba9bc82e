//! Shares of caches and memory bandwidth (the kernel's `resctrl.rst`).
//!
//! A host has few groups, often 16. So the vCPUs of a machine with the same schemata are in one group. Its name
//! has a hash of the schemata, `vcpud-NAME-HASH`, so that it is found again after a restart.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::ids::Tid;
use crate::placement::{Reason, Schemata, Step, StepError};
use crate::process::Dir;

/// The number of attempts to lock the directory, and the time between them. Any process that can read the
/// directory can hold the lock, so vcpud does not wait without end.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(5);

/// The groups of one machine.
#[derive(Debug)]
pub(super) struct Resctrl {
    root: Dir,
    prefix: String,
    /// The number of attempts to lock the directory: one after a failure, so that many vCPUs do not wait one after
    /// the other.
    attempts: AtomicU32,
}

/// The lock of the directory, which writers must hold (`resctrl.rst`).
struct Lock<'a>(&'a Dir);

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}

/// Moves a thread to another group.
pub(super) type Move<'a> = &'a dyn Fn() -> Result<(), StepError>;

impl Resctrl {
    /// Opens the groups of `machine` in the resctrl file system at `root`.
    pub(super) fn open(root: &Path, machine: &str) -> Result<Self, StepError> {
        let root = Dir::open(root).map_err(|error| Step::Cache.refused(root, &error))?;
        let prefix = format!("vcpud-{machine}-");
        let attempts = AtomicU32::new(TRIES);
        Ok(Self {
            root,
            prefix,
            attempts,
        })
    }

    /// Moves `thread` to the group with `schemata`, and creates the group if it does not exist. `change` calls the
    /// move, with a function that undoes it. Returns whether a value was changed.
    pub(super) fn enter(
        &self,
        thread: Tid,
        schemata: &Schemata,
        change: impl Fn(Move<'_>, &dyn Fn()) -> Result<(), StepError>,
    ) -> Result<bool, StepError> {
        let _lock = self.lock()?;
        let name = self.name(schemata);
        let made = self.root.make(&name);
        let (group, made) = made.map_err(|error| {
            let refused = Step::Cache.refused(self.root.at(&name), &error);
            refused.hint(libc::ENOSPC, "the host has no more groups")
        })?;
        let result = self.fill(&group, thread, schemata, change);
        if result.is_err() && made {
            let _ = self.root.remove(&name);
        }
        result
    }

    fn fill(
        &self,
        group: &Dir,
        thread: Tid,
        schemata: &Schemata,
        change: impl Fn(Move<'_>, &dyn Fn()) -> Result<(), StepError>,
    ) -> Result<bool, StepError> {
        let before = read(group, "schemata")?;
        let mut changed = false;
        if !schemata.is_in(&before) {
            let hint = "the host has no such resource or domain, or does not take the value";
            write(group, "schemata", &schemata.to_string())
                .map_err(|error| error.hint(libc::EINVAL, hint).hint(libc::ENOENT, hint))?;
            // The kernel rounds bandwidths, so it may never show the written value.
            changed = read(group, "schemata")? != before;
        }
        if !threads(group)?.contains(&thread) {
            let number = thread.to_string();
            let enter = || write(group, "tasks", &number);
            let undo = || {
                if threads(group).is_ok_and(|there| there.contains(&thread)) {
                    let _ = write(&self.root, "tasks", &number);
                }
            };
            change(&enter, &undo)?;
            changed = true;
        }
        Ok(changed)
    }

    /// Moves `thread` back to the host's default group, if it is in a group of the machine. Returns whether it was
    /// in one.
    pub(super) fn leave(
        &self,
        thread: Tid,
        change: impl Fn(Move<'_>, &dyn Fn()) -> Result<(), StepError>,
    ) -> Result<bool, StepError> {
        for group in self.groups()? {
            if threads(&group)?.contains(&thread) {
                let leave = || write(&self.root, "tasks", &thread.to_string());
                change(&leave, &|| {})?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes the empty groups of the machine. Returns the number of the others.
    pub(super) fn tidy(&self) -> Result<usize, StepError> {
        let groups = self.groups()?;
        let mut left = groups.len();
        if groups.is_empty() {
            return Ok(left);
        }
        let _lock = self.lock()?;
        for group in groups {
            if let Some(name) = group.path().file_name().and_then(|name| name.to_str())
                && threads(&group)?.is_empty()
            {
                let removed = self.root.remove(name);
                removed.map_err(|error| Step::Cache.refused(group.path(), &error))?;
                left -= 1;
            }
        }
        Ok(left)
    }

    /// Returns the groups of this machine, without those of machines whose name starts with its name.
    fn groups(&self) -> Result<Vec<Dir>, StepError> {
        let children = self.root.children();
        let mut names = children.map_err(|error| Step::Cache.refused(self.root.path(), &error))?;
        names.retain(|name| {
            let hash = name.strip_prefix(&self.prefix);
            hash.is_some_and(|hash| hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()))
        });
        let open = |name: &String| {
            let group = self.root.child(name);
            group.map_err(|error| Step::Cache.refused(self.root.at(name), &error))
        };
        names.iter().map(open).collect()
    }

    fn name(&self, schemata: &Schemata) -> String {
        format!("{}{:016x}", self.prefix, hash(&schemata.to_string()))
    }

    fn lock(&self) -> Result<Lock<'_>, StepError> {
        for attempt in 1.. {
            match flock(&self.root, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK)
                    if attempt < self.attempts.load(Ordering::Relaxed) =>
                {
                    sleep(PAUSE)
                }
                Err(error) => {
                    self.attempts.store(1, Ordering::Relaxed);
                    let refused = Step::Cache.refused(self.root.path(), &error.into());
                    return Err(refused.hint(libc::EWOULDBLOCK, "another program holds its lock"));
                }
            }
        }
        self.attempts.store(TRIES, Ordering::Relaxed);
        Ok(Lock(&self.root))
    }
}

/// Returns the FNV-1a hash, which is the same with all versions of the compiler.
fn hash(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

fn threads(group: &Dir) -> Result<Vec<Tid>, StepError> {
    let tasks = group.numbers("tasks");
    tasks.map_err(|error| Step::Cache.refused(group.at("tasks"), &error))
}

fn read(dir: &Dir, file: &str) -> Result<String, StepError> {
    dir.read(file)
        .map_err(|error| Step::Cache.refused(dir.at(file), &error))
}

fn write(dir: &Dir, file: &str, text: &str) -> Result<(), StepError> {
    dir.write(file, text)
        .map_err(|error| Step::Cache.refused(dir.at(file), &error))
}

/// Returns the error of a host without resctrl.
pub(super) fn unsupported() -> StepError {
    Step::Cache.failed("/sys/fs/resctrl", Reason::NoResctrl)
}

/// Uses a directory tree with files as resctrl has them, because few hosts have resctrl. In a tree, a group with
/// files cannot be removed, so the attempt is visible.
#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const WIDE: &str = "    L3:0=fffff;1=fffff\n";

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            tree.put("schemata", WIDE);
            tree.put("tasks", "");
            tree
        }

        fn resctrl(&self) -> Resctrl {
            Resctrl::open(self.0.path(), "web").unwrap()
        }

        /// Makes a group as the kernel does.
        fn group(&self, name: &str) {
            fs::create_dir(self.0.path().join(name)).unwrap();
            self.put(&format!("{name}/schemata"), WIDE);
            self.put(&format!("{name}/tasks"), "");
        }

        fn put(&self, file: &str, text: &str) {
            fs::write(self.0.path().join(file), text).unwrap();
        }

        fn get(&self, file: &str) -> String {
            fs::read_to_string(self.0.path().join(file)).unwrap()
        }
    }

    /// Moves a thread that does not end.
    fn freely(enter: Move<'_>, _: &dyn Fn()) -> Result<(), StepError> {
        enter()
    }

    #[test]
    fn undoes_the_move_of_another_thread() {
        let tree = Tree::new();
        let resctrl = tree.resctrl();
        let name = resctrl.name(&narrow());
        tree.group(&name);
        let ended = |enter: Move<'_>, undo: &dyn Fn()| {
            enter()?;
            undo();
            Err(Step::Cache.failed("/proc/1/task/42", Reason::Foreign))
        };
        assert!(resctrl.enter(Tid(42), &narrow(), ended).is_err());
        assert_eq!(tree.get("tasks"), "42");
    }

    fn narrow() -> Schemata {
        "L3:0=f;1=f".parse().unwrap()
    }

    #[test]
    fn a_thread_enters_and_leaves_a_group() {
        let tree = Tree::new();
        let resctrl = tree.resctrl();
        let name = resctrl.name(&narrow());
        tree.group(&name);
        assert!(resctrl.enter(Tid(42), &narrow(), freely).unwrap());
        assert_eq!(tree.get(&format!("{name}/schemata")), "L3:0=f;1=f\n");
        assert_eq!(tree.get(&format!("{name}/tasks")), "42");
        assert!(!resctrl.enter(Tid(42), &narrow(), freely).unwrap());

        assert!(resctrl.leave(Tid(42), freely).unwrap());
        assert_eq!(tree.get("tasks"), "42");
        assert!(!resctrl.leave(Tid(43), freely).unwrap());
        // A group with a thread stays. An empty one is removed.
        assert_eq!(resctrl.tidy(), Ok(1));
        tree.put(&format!("{name}/tasks"), "");
        let error = resctrl.tidy().unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOTEMPTY));
        assert_eq!(error.path, tree.0.path().join(name));
    }

    #[test]
    fn removes_a_new_group_that_cannot_be_filled() {
        let tree = Tree::new();
        let resctrl = tree.resctrl();
        // The tree creates no files in a new group.
        let error = resctrl.enter(Tid(42), &narrow(), freely).unwrap_err();
        assert_eq!(
            (error.step, error.errno()),
            (Step::Cache, Some(libc::ENOENT))
        );
        assert!(!tree.0.path().join(resctrl.name(&narrow())).exists());
    }

    #[test]
    fn does_not_move_a_thread_that_fails_the_check() {
        let tree = Tree::new();
        let resctrl = tree.resctrl();
        let name = resctrl.name(&narrow());
        tree.group(&name);
        let foreign =
            |_: Move<'_>, _: &dyn Fn()| Err(Step::Cache.failed("/proc/1/task/42", Reason::Foreign));
        assert!(resctrl.enter(Tid(42), &narrow(), foreign).is_err());
        assert_eq!(tree.get(&format!("{name}/tasks")), "");
        tree.put(&format!("{name}/tasks"), "42\n");
        assert!(resctrl.leave(Tid(42), foreign).is_err());
        assert_eq!(tree.get("tasks"), "");
    }

    #[test]
    fn leaves_groups_of_others_alone() {
        let tree = Tree::new();
        for name in [
            "info",
            "mon_groups",
            "vcpud-web-2-0123456789abcdef",
            "vcpud-webs-0123456789abcdef",
            "vcpud-web-0123456789abcde",
            "vcpud-web-0123456789abcdeg",
        ] {
            tree.group(name);
        }
        assert!(tree.resctrl().groups().unwrap().is_empty());
        assert_eq!(tree.resctrl().tidy(), Ok(0));
        tree.group("vcpud-web-0123456789abcdef");
        assert_eq!(tree.resctrl().groups().unwrap().len(), 1);
    }

    #[test]
    fn does_not_wait_for_the_lock_without_end() {
        let tree = Tree::new();
        let resctrl = tree.resctrl();
        let other = Dir::open(tree.0.path()).unwrap();
        flock(&other, FlockOperation::LockExclusive).unwrap();
        let error = resctrl.enter(Tid(42), &narrow(), freely).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EWOULDBLOCK));
        assert_eq!(resctrl.attempts.load(Ordering::Relaxed), 1);
        flock(&other, FlockOperation::Unlock).unwrap();
        tree.group(&resctrl.name(&narrow()));
        assert!(resctrl.enter(Tid(42), &narrow(), freely).unwrap());
        assert_eq!(resctrl.attempts.load(Ordering::Relaxed), TRIES);
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_ok());
    }
}
