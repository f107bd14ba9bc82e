//! The mounts of the control group hierarchies, and the groups of a process (`proc_pid_mountinfo(5)`,
//! `cgroups(7)`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The mounts of control groups and of resctrl.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts {
    /// The unified hierarchy, version 2.
    pub unified: Option<Mount>,
    /// The hierarchies of version 1, by controller. Several controllers may share one.
    pub controllers: BTreeMap<String, Mount>,
    /// The mount point of resctrl.
    pub resctrl: Option<PathBuf>,
}

/// One mount of a hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The control group that is visible at `point`; `/` outside of containers.
    root: String,
    /// The mount point.
    pub point: PathBuf,
}

/// The control groups of a process or thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The group in the unified hierarchy.
    pub unified: Option<String>,
    /// The groups of version 1, by controller; systemd's own is `name=systemd`.
    pub controllers: BTreeMap<String, String>,
}

impl Mounts {
    /// Reads the text of `/proc/self/mountinfo`. It uses the first of several mounts of one hierarchy.
    pub fn parse(mountinfo: &str) -> Self {
        let mut mounts = Self::default();
        for line in mountinfo.lines() {
            let Some((mount, source)) = line.split_once(" - ") else {
                continue;
            };
            let mut fields = mount.split(' ').skip(3).map(unescape);
            let (Some(root), Some(point)) = (fields.next(), fields.next()) else {
                continue;
            };
            let point = PathBuf::from(point);
            let mut source = source.split(' ');
            match source.next() {
                Some("cgroup2") => {
                    mounts.unified.get_or_insert(Mount { root, point });
                }
                Some("cgroup") => {
                    let options = source.next_back().unwrap_or_default();
                    for controller in options.split(',') {
                        let mount = Mount {
                            root: root.clone(),
                            point: point.clone(),
                        };
                        mounts
                            .controllers
                            .entry(controller.to_owned())
                            .or_insert(mount);
                    }
                }
                Some("resctrl") => {
                    mounts.resctrl.get_or_insert(point);
                }
                _ => {}
            }
        }
        mounts
    }

    /// Returns whether hierarchies of version 1 control CPUs. An empty unified hierarchy may exist beside them
    /// ("hybrid").
    pub fn are_v1(&self) -> bool {
        ["cpu", "cpuset"]
            .iter()
            .any(|controller| self.controllers.contains_key(*controller))
    }
}

impl Mount {
    /// Returns the directory of control group `path` relative to the mount point, if it is visible there.
    pub fn relative<'a>(&self, path: &'a str) -> Option<&'a str> {
        let below = path.strip_prefix(self.root.trim_end_matches('/'))?;
        let whole = below.is_empty() || below.starts_with('/');
        let inside = !below.split('/').any(|name| name == "..");
        (whole && inside).then(|| below.trim_start_matches('/'))
    }

    /// Returns whether this is the mount at `point`.
    pub fn is_at(&self, point: &Path) -> bool {
        self.point == point
    }
}

impl Membership {
    /// Reads the text of `/proc/PID/cgroup`.
    pub fn parse(text: &str) -> Self {
        let mut membership = Self::default();
        for line in text.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let path = path.strip_suffix(" (deleted)").unwrap_or(path).to_owned();
            if controllers.is_empty() {
                membership.unified = Some(path);
                continue;
            }
            for controller in controllers.split(',') {
                let controllers = &mut membership.controllers;
                controllers.insert(controller.to_owned(), path.clone());
            }
        }
        membership
    }

    /// Returns the control group of `controller`: in its hierarchy of version 1, or in that of version 2.
    pub fn of(&self, controller: &str) -> Option<&str> {
        let path = self.controllers.get(controller);
        path.or(self.unified.as_ref()).map(String::as_str)
    }

    /// Returns the control group that limits CPU time.
    pub fn of_cpu(&self) -> Option<&str> {
        let controllers = &self.controllers;
        let path = controllers.get("cpu").or_else(|| controllers.get("cpuset"));
        path.or(self.unified.as_ref()).map(String::as_str)
    }

    /// Returns whether the process is in the control group `unit` of systemd, or in a group below.
    pub fn is_in(&self, unit: &str) -> bool {
        let unit = unit.trim_end_matches('/');
        let is_in = |path: &str| {
            let below = path.strip_prefix(unit);
            below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
        };
        // vcpud moves threads in the others itself.
        match self.controllers.get("name=systemd") {
            Some(path) => is_in(path),
            None => self.paths().any(is_in),
        }
    }

    /// Returns all control groups of the process.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        let unified = self.unified.iter();
        unified.chain(self.controllers.values()).map(String::as_str)
    }
}

/// Resolves the octal escapes of spaces, tabs, newlines and backslashes.
fn unescape(field: &str) -> String {
    let mut text = String::new();
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        let code = after
            .get(..3)
            .and_then(|code| u8::from_str_radix(code, 8).ok());
        match code {
            Some(code) => text.push(code.into()),
            None => text.push('\\'),
        }
        rest = if code.is_some() { &after[3..] } else { after };
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_hierarchies() {
        let unified = Mounts::parse(
            "25 20 0:23 / /sys rw shared:2 - sysfs sysfs rw\n\
             29 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n\
             30 25 0:27 / /sys/fs/resctrl rw - resctrl resctrl rw\n",
        );
        assert!(!unified.are_v1());
        assert!(unified.unified.unwrap().is_at(Path::new("/sys/fs/cgroup")));
        assert_eq!(unified.resctrl.unwrap(), Path::new("/sys/fs/resctrl"));

        let hybrid = Mounts::parse(
            "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
             32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             34 31 0:31 / /sys/fs/cgroup/cpu\\040set rw opt:1 opt:2 - cgroup cgroup rw,cpuset\n\
             35 31 0:31 / /other rw - cgroup cgroup rw,cpuset\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             nonsense\n",
        );
        assert!(hybrid.are_v1());
        let point = |name| hybrid.controllers[name].point.to_str().unwrap();
        assert_eq!(point("cpu"), "/sys/fs/cgroup/cpu,cpuacct");
        assert_eq!(point("cpuacct"), "/sys/fs/cgroup/cpu,cpuacct");
        assert_eq!(point("cpuset"), "/sys/fs/cgroup/cpu set");
        assert_eq!(point("name=systemd"), "/sys/fs/cgroup/systemd");
    }

    #[test]
    fn finds_a_group_below_its_mount() {
        let mount = |root: &str| Mount {
            root: root.to_owned(),
            point: "/sys/fs/cgroup".into(),
        };
        assert_eq!(mount("/").relative("/a.slice/b"), Some("a.slice/b"));
        assert_eq!(mount("/").relative("/"), Some(""));
        assert_eq!(mount("/box").relative("/box/b"), Some("b"));
        assert_eq!(mount("/box").relative("/boxes/b"), None);
        assert_eq!(mount("/box").relative("/b"), None);
        assert_eq!(mount("/").relative("/../b"), None);
        assert_eq!(mount("/").relative("/a/../../b"), None);
    }

    #[test]
    fn reads_memberships() {
        let v1 = Membership::parse(
            "9:name=systemd:/x.scope\n3:cpuset:/c:d\n1:cpu,cpuacct:/x.scope/e (deleted)\n0::/u\n",
        );
        assert_eq!(v1.of_cpu(), Some("/x.scope/e"));
        assert_eq!(v1.controllers["cpuset"], "/c:d");
        assert_eq!(v1.controllers["name=systemd"], "/x.scope");
        assert_eq!(v1.unified.as_deref(), Some("/u"));
        assert!(v1.is_in("/x.scope") && !v1.is_in("/u") && !v1.is_in("/c:d"));
        let v2 = Membership::parse("0::/machine.slice/x.scope/vcpud/emulator\n");
        assert_eq!(v2.of_cpu(), Some("/machine.slice/x.scope/vcpud/emulator"));
        for (unit, is_in) in [
            ("/machine.slice/x.scope", true),
            ("/machine.slice", true),
            ("/", true),
            ("/machine.slice/x.scope/vcpud/emulator", true),
            ("/machine.slice/x.s", false),
            ("/system.slice", false),
        ] {
            assert_eq!(v2.is_in(unit), is_in, "{unit}");
        }
    }
}
