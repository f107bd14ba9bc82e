//! Connections to Unix socket files, safe against links and replaced files.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{SockType, UnixAddr, getpeername, getsockopt, sockopt};
use rustix::fs::{FileType, Mode, OFlags, fstat, open, openat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::blocking::blocking;
use crate::ids::Uid;

/// The maximum number of paths of unprivileged users that are opened at a time, and of sockets of
/// guest agents.
const MAX_OPENING: usize = 4;
/// The maximum time that a caller waits for the file system of such a path.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// The reason why a connection cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The file does not exist.
    #[error("the socket does not exist")]
    Missing,
    /// The path that an unprivileged user chose contains a symbolic link.
    #[error("the path contains a symbolic link; only root can register such a path")]
    Link,
    /// The file is a symbolic link or not a socket.
    #[error("the file is not a socket")]
    NotASocket,
    /// The descriptor is not a connected Unix stream socket.
    #[error("the file descriptor is not a connected Unix stream socket")]
    NotAConnection,
    /// A process of another user listens on it.
    #[error(
        "the socket file belongs to uid {owner}, and a process of uid {listener} listens on it"
    )]
    NotTheOwner {
        /// The owner of the file.
        owner: Uid,
        /// The user of the process that listens.
        listener: Uid,
    },
    /// No process listens on it.
    #[error("no process listens on the socket")]
    Refused,
    /// The kernel refuses for another reason.
    #[error("cannot connect to the socket: {0}")]
    Io(#[source] io::Error),
}

impl From<Errno> for SocketError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT => Self::Missing,
            other => Self::Io(other.into()),
        }
    }
}

/// Adopts a connection that a caller passed.
///
/// # Errors
///
/// Fails if the descriptor is not a connected Unix stream socket.
pub fn adopt(connection: OwnedFd) -> Result<UnixStream, SocketError> {
    // Fails without access to the file, which may be on a file system that never answers.
    let kind = getsockopt(&connection, sockopt::SockType);
    let is_stream = kind.is_ok_and(|kind| kind == SockType::Stream);
    // Fails where it is of another family, or not connected.
    let has_peer = getpeername::<UnixAddr>(connection.as_raw_fd()).is_ok();
    if !is_stream || !has_peer {
        return Err(SocketError::NotAConnection);
    }
    let stream = StdUnixStream::from(connection);
    let stream = stream.set_nonblocking(true).map(|()| stream);
    stream
        .and_then(UnixStream::from_std)
        .map_err(SocketError::Io)
}

/// Returns the user of the process on the other side when it began to listen.
///
/// # Errors
///
/// Fails if the kernel does not know the process.
pub fn peer_user(connection: &UnixStream) -> io::Result<Uid> {
    Ok(Uid(connection.peer_cred()?.uid()))
}

/// Connects to the socket of a guest agent at `path`, which must not be a symbolic link.
///
/// The process that listens must belong to root or to the owner of the file, unless the owner is
/// root. The file is opened first and then connected to by its descriptor, so that it cannot be
/// replaced in between; this also takes paths longer than the 108 bytes of `sockaddr_un`.
///
/// # Errors
///
/// Fails if the socket does not exist, if no process listens on it, if the listener is not trusted, or
/// if the file system does not answer in time.
pub async fn connect_to_agent(path: &Path) -> Result<UnixStream, SocketError> {
    let mut socket = SocketFile {
        chooser: Chooser::Agent,
        ..SocketFile::chosen_by_root(path.to_owned())
    };
    socket.connect().await
}

/// A socket file to connect to, and the trust in its path.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    chooser: Chooser,
    opened: Option<Opened>,
}

/// The origin of a path.
#[derive(Clone, Copy, Debug)]
enum Chooser {
    /// Root, or the administrator.
    Root,
    /// An unprivileged user.
    User,
    /// Any user that chose the socket of a guest agent. The process that listens is checked.
    Agent,
}

/// Opens a file only to read its owner and to connect to it.
const HANDLE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens the file at `path`, which is absolute, name by name and without symbolic links.
///
/// `openat2()` would do so at once, but the filter of `RestrictSUIDSGID=` in systemd forbids it.
fn open_without_links(path: &Path) -> Result<OwnedFd, SocketError> {
    let mut file = open("/", HANDLE, Mode::empty())?;
    for name in path.components().skip(1) {
        file = openat(&file, name.as_os_str(), HANDLE, Mode::empty())?;
        if FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::Symlink {
            return Err(SocketError::Link);
        }
    }
    Ok(file)
}

/// An open socket file.
#[derive(Debug)]
struct Opened {
    file: OwnedFd,
    owner: Uid,
}

impl SocketFile {
    /// Returns the socket file at `path`, which root or the administrator chose. Its directories may be symbolic
    /// links.
    pub fn chosen_by_root(path: PathBuf) -> Self {
        Self {
            path,
            chooser: Chooser::Root,
            opened: None,
        }
    }

    /// Returns the socket file at `path`, which an unprivileged user chose. No part of the path may be a symbolic
    /// link, and the process that listens must belong to the owner of the file.
    pub fn chosen_by_user(path: PathBuf) -> Self {
        Self {
            chooser: Chooser::User,
            ..Self::chosen_by_root(path)
        }
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the owner of the file, if it is open.
    pub fn owner(&self) -> Option<Uid> {
        self.opened.as_ref().map(|opened| opened.owner)
    }

    /// Opens the socket file at `path`, which an unprivileged user chose, without connecting to it. The
    /// first connection is made to this file, whatever the path leads to at that time.
    ///
    /// # Errors
    ///
    /// Fails if the socket does not exist, if the path is not trusted, or if the file system does not
    /// answer in time.
    pub async fn open_for_user(path: PathBuf) -> Result<Self, SocketError> {
        let mut socket = Self::chosen_by_user(path);
        let path = socket.path.clone();
        let opened = socket.chooser.access(move || Opened::new(&path, true));
        socket.opened = Some(opened.await?);
        Ok(socket)
    }

    /// Connects to the open file, or else opens it first.
    ///
    /// # Errors
    ///
    /// Fails as [`connect_to_agent`] does, and if the file system of a user does not answer in time.
    pub async fn connect(&mut self) -> Result<UnixStream, SocketError> {
        let is_users = matches!(self.chooser, Chooser::User);
        let (opened, path) = (self.opened.take(), self.path.clone());
        let connect = move || {
            let opened = match opened {
                Some(opened) => opened,
                None => Opened::new(&path, is_users)?,
            };
            Ok((opened.connect()?, opened.owner))
        };
        let (stream, owner) = self.chooser.access(connect).await?;
        let stream = UnixStream::from_std(stream).map_err(SocketError::Io)?;
        let listener = peer_user(&stream).map_err(SocketError::Io)?;
        let is_roots = !is_users && (listener.is_root() || owner.is_root());
        if !is_roots && listener != owner {
            return Err(SocketError::NotTheOwner { owner, listener });
        }
        Ok(stream)
    }
}

impl Chooser {
    /// Accesses a file system on the blocking pool. A file system of a user may never answer. Then it keeps one
    /// of a few threads busy, and the caller waits for two seconds.
    async fn access<T: Send + 'static>(
        self,
        work: impl FnOnce() -> Result<T, SocketError> + Send + 'static,
    ) -> Result<T, SocketError> {
        static OF_USERS: Semaphore = Semaphore::const_new(MAX_OPENING);
        static OF_AGENTS: Semaphore = Semaphore::const_new(MAX_OPENING);
        let places = match self {
            Self::Root => return blocking(work).await,
            Self::User => &OF_USERS,
            Self::Agent => &OF_AGENTS,
        };
        let limited = async {
            let place = places.acquire().await;
            blocking(move || {
                let _place = place;
                work()
            })
            .await
        };
        let late = || Err(SocketError::Io(io::ErrorKind::TimedOut.into()));
        timeout(OPEN_TIMEOUT, limited)
            .await
            .unwrap_or_else(|_| late())
    }
}

impl Opened {
    /// Opens the file at `path`. Blocks until the file system answers.
    fn new(path: &Path, is_users: bool) -> Result<Self, SocketError> {
        let file = if is_users {
            open_without_links(path)?
        } else {
            open(path, HANDLE, Mode::empty())?
        };
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(SocketError::NotASocket);
        }
        let owner = Uid(stat.st_uid);
        Ok(Self { file, owner })
    }

    /// Connects to the file. Fails if the listener has no room for another connection.
    fn connect(&self) -> Result<StdUnixStream, SocketError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let address = SocketAddrUnix::new(path)?;
        rustix::net::connect(&socket, &address).map_err(|errno| match errno {
            Errno::CONNREFUSED => SocketError::Refused,
            other => SocketError::Io(other.into()),
        })?;
        Ok(socket.into())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn adopts_connections_only() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let adopted = adopt(one.into()).unwrap();
        let own = Uid(rustix::process::geteuid().as_raw());
        assert_eq!(peer_user(&adopted).unwrap(), own);
        drop(other);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let datagrams = std::os::unix::net::UnixDatagram::pair().unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let far = std::net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        for no in [
            OwnedFd::from(listener),
            datagrams.0.into(),
            far.into(),
            file.into(),
        ] {
            assert!(matches!(adopt(no), Err(SocketError::NotAConnection)));
        }
    }

    #[tokio::test]
    async fn connects_to_the_opened_file() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let first = UnixListener::bind(at("qmp")).unwrap();
        let mut socket = SocketFile::open_for_user(at("qmp")).await.unwrap();
        let own = Uid(rustix::process::geteuid().as_raw());
        assert_eq!(socket.owner(), Some(own));
        std::fs::rename(at("qmp"), at("moved")).unwrap();
        let second = UnixListener::bind(at("qmp")).unwrap();
        socket.connect().await.unwrap();
        first.set_nonblocking(true).unwrap();
        second.set_nonblocking(true).unwrap();
        assert!(first.accept().is_ok());
        assert!(second.accept().is_err());
        // A later connection is made to the path.
        socket.connect().await.unwrap();
        assert!(second.accept().is_ok());
    }

    /// Uses a scripted access. A file system that never answers would have to be in user space.
    #[tokio::test(start_paused = true)]
    async fn a_file_system_that_never_answers_delays_callers_for_two_seconds() {
        for chooser in [Chooser::User, Chooser::Agent] {
            let (answer, never) = std::sync::mpsc::channel::<()>();
            let access = chooser.access(move || {
                let _ = never.recv();
                Ok(())
            });
            // The clock does not advance by itself while work is on the blocking pool.
            let (result, ()) = tokio::join!(access, tokio::time::advance(OPEN_TIMEOUT));
            let error = result.unwrap_err();
            let is_late = |error: &io::Error| error.kind() == io::ErrorKind::TimedOut;
            assert!(
                matches!(&error, SocketError::Io(error) if is_late(error)),
                "{error}"
            );
            drop(answer);
        }
    }

    #[tokio::test]
    async fn refuses_links_in_a_path_that_a_user_chose() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir(at("real")).unwrap();
        std::os::unix::fs::symlink("real", at("link")).unwrap();
        let _listener = UnixListener::bind(at("real/qmp")).unwrap();
        for (mut socket, is_taken) in [
            (SocketFile::chosen_by_user(at("real/qmp")), true),
            (SocketFile::chosen_by_user(at("link/qmp")), false),
            (SocketFile::chosen_by_root(at("link/qmp")), true),
        ] {
            match socket.connect().await {
                Ok(_) => assert!(is_taken, "{socket:?}"),
                Err(error) => assert!(!is_taken && matches!(error, SocketError::Link), "{error}"),
            }
        }
    }
}
