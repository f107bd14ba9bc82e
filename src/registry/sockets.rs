//! The directory of QMP sockets. It is watched with `inotify(7)`, and the mounts with `poll(2)`: inotify does
//! not report a file system that is mounted over the directory.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use inotify::{Event, EventMask, EventStream, Inotify, WatchMask};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::warn;

use super::error::SupervisorError;
use crate::blocking::blocking;
use crate::names::MachineName;

/// The mounts that the service sees.
const MOUNTS: &str = "/proc/self/mountinfo";

/// An event in the directory.
#[derive(Debug)]
pub(super) enum SocketEvent {
    /// A socket appeared. It may replace another one.
    Appeared(MachineName),
    /// A socket disappeared.
    Removed(MachineName),
    /// Events were lost, so the directory must be listed again.
    Overflow,
    /// Another directory is at the path, because a file system was mounted or unmounted. It is watched, and
    /// must be listed.
    Replaced,
}

/// A notification of the kernel.
#[derive(Debug)]
pub(super) enum Notification {
    /// An event in the directory.
    Event(Event<OsString>),
    /// A file system was mounted or unmounted anywhere.
    Mounts,
}

/// The watched directory.
pub(super) struct Sockets {
    directory: PathBuf,
    /// Events that do not fit in the buffer wait in the kernel.
    events: EventStream<[u8; 4096]>,
    /// The device and the inode of the directory that is watched.
    identity: (u64, u64),
    /// The list of mounts, which has a priority event after each change (`proc_pid_mountinfo(5)`).
    mounts: AsyncFd<File>,
}

impl Sockets {
    /// Watches `directory`. Creates it if it does not exist, so that every user can read it.
    ///
    /// # Errors
    /// Fails if the directory cannot be created or watched.
    pub(super) async fn watch(directory: PathBuf) -> io::Result<Self> {
        // First, so that no change of the mounts after it is lost.
        let mounts = blocking(|| File::open(MOUNTS)).await?;
        #[expect(deprecated, reason = "sound here: a File owns its one descriptor")]
        let mounts = AsyncFd::with_interest(mounts, Interest::PRIORITY)?;
        let watched = directory.clone();
        let (inotify, identity) = blocking(move || start_watch(&watched)).await?;
        let events = inotify.into_event_stream([0; 4096])?;
        Ok(Self {
            directory,
            events,
            identity,
            mounts,
        })
    }

    /// Returns the directory.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the error for a directory that cannot be watched or listed because of `source`.
    pub(super) fn lost(&self, source: io::Error) -> SupervisorError {
        let directory = self.directory.clone();
        SupervisorError::Watch { directory, source }
    }

    /// Waits for the next notification. None is lost if the call is cancelled.
    ///
    /// # Errors
    /// Fails if the directory cannot be watched any more.
    pub(super) async fn next(&mut self) -> io::Result<Notification> {
        let event = tokio::select! {
            event = self.events.next() => event,
            changed = self.mounts.ready(Interest::PRIORITY) => {
                changed?.clear_ready();
                return Ok(Notification::Mounts);
            }
        };
        let event = event.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))?;
        Ok(Notification::Event(event))
    }

    /// Returns the meaning of `notification`, or `None` if it does not concern the socket of a machine.
    ///
    /// # Errors
    /// Fails if the directory was removed, or if another one is at the path, and cannot be watched.
    pub(super) async fn interpret(
        &mut self,
        notification: Notification,
    ) -> io::Result<Option<SocketEvent>> {
        let event = match notification {
            Notification::Event(event) => event,
            Notification::Mounts => {
                return match self.identity_at_path().await {
                    Ok(identity) if identity != self.identity => self.watch_again().await.map(Some),
                    // If a mount hides the directory, it can come back.
                    _ => Ok(None),
                };
            }
        };
        let is_gone = EventMask::DELETE_SELF | EventMask::MOVE_SELF;
        if event.mask.intersects(is_gone) {
            // The directory may have been in a file system that is not mounted any more.
            return match self.identity_at_path().await? {
                identity if identity == self.identity => Err(io::ErrorKind::NotFound.into()),
                _ => self.watch_again().await.map(Some),
            };
        }
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            return Ok(Some(SocketEvent::Overflow));
        }
        // The kernel sends no other event after these.
        let has_ended = EventMask::UNMOUNT | EventMask::IGNORED;
        if event.mask.intersects(has_ended) {
            return self.watch_again().await.map(Some);
        }
        Ok(self.interpret_file(event).await)
    }

    /// Returns the identity of the directory that is at the path now.
    async fn identity_at_path(&self) -> io::Result<(u64, u64)> {
        let directory = self.directory.clone();
        blocking(move || identity_of(&directory)).await
    }

    /// Watches the directory that is at the path now.
    async fn watch_again(&mut self) -> io::Result<SocketEvent> {
        *self = Self::watch(self.directory.clone()).await?;
        Ok(SocketEvent::Replaced)
    }

    /// Returns the meaning of an event of a file, or `None` if it does not concern the socket of a machine.
    async fn interpret_file(&self, event: Event<OsString>) -> Option<SocketEvent> {
        let file = event.name?;
        let appeared = event
            .mask
            .intersects(EventMask::CREATE | EventMask::MOVED_TO);
        let path = self.directory.join(&file);
        let is_socket = appeared && is_socket(path.clone()).await;
        match machine_name(&file) {
            // A rename may replace a socket by a file of another type.
            Some(name) if is_socket => Some(SocketEvent::Appeared(name)),
            Some(name) => Some(SocketEvent::Removed(name)),
            None => {
                if is_socket {
                    warn_of(&path);
                }
                None
            }
        }
    }

    /// Returns the names of the machines whose sockets are in the directory.
    ///
    /// # Errors
    /// Fails if the directory cannot be read.
    pub(super) async fn list(&self) -> io::Result<BTreeSet<MachineName>> {
        let directory = self.directory.clone();
        blocking(move || list(&directory)).await
    }
}

/// Creates `directory` if it does not exist, and starts to watch it. Returns its identity too.
fn start_watch(directory: &Path) -> io::Result<(Inotify, (u64, u64))> {
    create_public(directory)?;
    let inotify = Inotify::init().map_err(explain)?;
    let mask = WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR;
    let identity = identity_of(directory)?;
    inotify.watches().add(directory, mask)?;
    Ok((inotify, identity))
}

/// Returns the device and the inode of the directory at `path`.
fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Returns the error with its cause, which the text of `EMFILE` does not name (`inotify_init(2)`).
fn explain(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EMFILE) => io::Error::new(
            error.kind(),
            "no inotify instance or descriptor is left; raise fs.inotify.max_user_instances",
        ),
        _ => error,
    }
}

/// Lists the machines whose sockets are in `directory`.
fn list(directory: &Path) -> io::Result<BTreeSet<MachineName>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        match machine_name(&entry.file_name()) {
            _ if !is_socket_now(&entry.path()) => {}
            Some(name) => {
                names.insert(name);
            }
            None => warn_of(&entry.path()),
        }
    }
    Ok(names)
}

/// Returns whether `path` is a socket, and not a link to one.
async fn is_socket(path: PathBuf) -> bool {
    blocking(move || is_socket_now(&path)).await
}

fn is_socket_now(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// Returns whether `directory` exists and is empty.
pub async fn is_empty(directory: PathBuf) -> bool {
    let is_empty = |mut files: fs::ReadDir| files.next().is_none();
    blocking(move || fs::read_dir(directory).is_ok_and(is_empty)).await
}

/// Creates `directory` with the mode 0755, independently of the umask, unless it exists.
fn create_public(directory: &Path) -> io::Result<()> {
    if let Some(parent) = directory.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)?;
    }
    match fs::create_dir(directory) {
        Ok(()) => fs::set_permissions(directory, Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Logs that `socket` is not a machine. The name of the file may contain any byte.
fn warn_of(socket: &Path) {
    let name: String = socket.to_string_lossy().chars().take(256).collect();
    warn!("ignored the socket {name:?}: the file name is not NAME.sock with the name of a machine");
}

/// Returns NAME of `NAME.sock`, if it is the name of a machine.
fn machine_name(file: &OsStr) -> Option<MachineName> {
    file.to_str()?.strip_suffix(".sock")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use rustix::fs::Mode;
    use rustix::process::umask;

    use super::*;

    /// Returns the next event in the directory. Other tests mount file systems.
    async fn next_event(sockets: &mut Sockets) -> Event<OsString> {
        loop {
            if let Notification::Event(event) = sockets.next().await.unwrap() {
                return event;
            }
        }
    }

    /// A test cannot mount without privileges, so another directory is moved to the path.
    #[tokio::test]
    async fn another_directory_is_watched_after_a_change_of_the_mounts() {
        let parent = tempfile::tempdir().unwrap();
        let path = |name: &str| parent.path().join(name);
        let mut sockets = Sockets::watch(path("qmp")).await.unwrap();
        let meaning = sockets.interpret(Notification::Mounts).await.unwrap();
        assert!(meaning.is_none(), "{meaning:?}");
        fs::rename(path("qmp"), path("former")).unwrap();
        let meaning = sockets.interpret(Notification::Mounts).await.unwrap();
        assert!(meaning.is_none(), "{meaning:?}: it may come back");
        fs::create_dir(path("qmp")).unwrap();
        let meaning = sockets.interpret(Notification::Mounts).await.unwrap();
        assert!(matches!(meaning, Some(SocketEvent::Replaced)));
        fs::write(path("qmp/file"), "").unwrap();
        assert_eq!(next_event(&mut sockets).await.name.unwrap(), "file");
    }

    /// A test cannot unmount without privileges, so another directory is moved to the path, and the event of
    /// the kernel is made from another one.
    #[tokio::test]
    async fn the_directory_at_the_path_is_watched_after_an_unmount() {
        let parent = tempfile::tempdir().unwrap();
        let path = |name: &str| parent.path().join(name);
        let ends = [
            EventMask::UNMOUNT | EventMask::ISDIR,
            EventMask::IGNORED,
            EventMask::DELETE_SELF,
        ];
        for end in ends {
            let mut sockets = Sockets::watch(path("qmp")).await.unwrap();
            fs::write(path("qmp/file"), "").unwrap();
            let mut event = next_event(&mut sockets).await;
            fs::rename(path("qmp"), path("former")).unwrap();
            fs::create_dir(path("qmp")).unwrap();
            (event.mask, event.name) = (end, None);
            let ended = Notification::Event(event);
            let meaning = sockets.interpret(ended).await.unwrap();
            assert!(matches!(meaning, Some(SocketEvent::Replaced)), "{end:?}");
            let _socket = std::os::unix::net::UnixListener::bind(path("qmp/web.sock")).unwrap();
            let event = Notification::Event(next_event(&mut sockets).await);
            let meaning = sockets.interpret(event).await.unwrap();
            assert!(
                matches!(&meaning, Some(SocketEvent::Appeared(name)) if name.as_str() == "web"),
                "{meaning:?}"
            );
            assert_eq!(sockets.list().await.unwrap().len(), 1);
            fs::remove_dir_all(path("qmp")).unwrap();
            fs::remove_dir_all(path("former")).unwrap();
        }
    }

    #[test]
    fn every_user_can_read_the_directory_whatever_the_umask() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("qmp");
        let former = umask(Mode::from_raw_mode(0o077));
        let created = create_public(&directory);
        umask(former);
        created.unwrap();
        let mode = fs::metadata(&directory).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        fs::set_permissions(&directory, Permissions::from_mode(0o770)).unwrap();
        create_public(&directory).unwrap();
        let mode = fs::metadata(&directory).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o770, "the administrator's mode stays");
    }
}
