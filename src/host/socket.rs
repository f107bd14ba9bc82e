//! Connecting to a Unix socket file without being led astray.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{SockType, UnixAddr, getpeername, getsockopt, sockopt};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// How many paths of unprivileged users are opened at a time.
const MAX_OPENING: usize = 4;
/// How long a caller waits for the file system of such a path.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is no such file.
    #[error("the socket is gone")]
    Missing,
    /// The path of an unprivileged user has a symbolic link in it.
    #[error("the path contains a symbolic link; only root may register such a path")]
    Link,
    /// The file is a symbolic link or no socket.
    #[error("the file is not a socket")]
    NotASocket,
    /// The descriptor is no connected Unix stream socket.
    #[error("the file descriptor is not a connected Unix stream socket")]
    NotAConnection,
    /// Someone listens on it whose file it is not.
    #[error("the socket is user {owner}'s, and user {listener} listens on it")]
    NotTheOwner {
        /// Whose file it is.
        owner: u32,
        /// Who listens.
        listener: u32,
    },
    /// Nobody listens on it.
    #[error("nobody listens on the socket")]
    Refused,
    /// Anything else.
    #[error("the socket cannot be connected to: {0}")]
    Io(#[source] io::Error),
}

/// Takes over a connection that somebody else made and passed on.
pub fn adopt(connection: OwnedFd) -> Result<UnixStream, ConnectError> {
    let stat = fstat(&connection).map_err(|errno| ConnectError::Io(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(ConnectError::NotAConnection);
    }
    let kind = getsockopt(&connection, sockopt::SockType);
    let is_stream = kind.is_ok_and(|kind| kind == SockType::Stream);
    // Fails where it is of another family, or not connected.
    let has_peer = getpeername::<UnixAddr>(connection.as_raw_fd()).is_ok();
    if !is_stream || !has_peer {
        return Err(ConnectError::NotAConnection);
    }
    let stream = std::os::unix::net::UnixStream::from(connection);
    let stream = stream.set_nonblocking(true).map(|()| stream);
    stream
        .and_then(UnixStream::from_std)
        .map_err(ConnectError::Io)
}

/// The user of the process on the other side, as it was when it listened.
pub fn peer_user(connection: &UnixStream) -> io::Result<u32> {
    Ok(connection.peer_cred()?.uid())
}

/// Connects to the socket file at `path`, which must not be a symbolic link.
///
/// The process that listens must belong to root or to the owner of the file, unless the owner is
/// root. The file is opened first and then connected to by its descriptor, so that it cannot be
/// replaced in between; this also takes paths longer than the 108 bytes of `sockaddr_un`.
///
/// # Errors
///
/// Fails if the socket does not exist, if no process listens on it, or if the listener is not
/// trusted.
pub async fn connect(path: &Path) -> Result<UnixStream, ConnectError> {
    SocketFile::chosen_by_root(path.to_owned()).connect().await
}

/// A socket file to connect to, and how far its path is trusted.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    is_users: bool,
    opened: Option<Opened>,
}

/// An open socket file.
#[derive(Debug)]
struct Opened {
    file: OwnedFd,
    owner: u32,
}

impl SocketFile {
    /// The socket file at `path`, which root or the administrator chose. Its directories may be
    /// symbolic links.
    pub fn chosen_by_root(path: PathBuf) -> Self {
        Self {
            path,
            is_users: false,
            opened: None,
        }
    }

    /// The socket file at `path`, which an unprivileged user chose: no part of the path may be a
    /// symbolic link, and the process that listens must belong to the owner of the file.
    pub fn chosen_by_user(path: PathBuf) -> Self {
        Self {
            is_users: true,
            ..Self::chosen_by_root(path)
        }
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The owner of the file, if it is open.
    pub fn owner(&self) -> Option<u32> {
        self.opened.as_ref().map(|opened| opened.owner)
    }

    /// Opens the socket file at `path`, which an unprivileged user chose, without connecting to it. The
    /// first connection is made to this file, whatever the path leads to at that time.
    ///
    /// The file system may be the user's and never answer: it keeps one of a few threads busy then,
    /// and no caller waits for longer than two seconds.
    ///
    /// # Errors
    ///
    /// Fails if the socket does not exist, if the path is not trusted, or if the file system does not
    /// answer in time.
    pub async fn open_for_user(path: PathBuf) -> Result<Self, ConnectError> {
        static OPENING: Semaphore = Semaphore::const_new(MAX_OPENING);
        let opening = async {
            let permit = OPENING.acquire().await.map_err(io::Error::other)?;
            let open = move || {
                let _permit = permit;
                let mut socket = Self::chosen_by_user(path);
                socket.open().map(|()| socket)
            };
            spawn_blocking(open).await.map_err(io::Error::other)
        };
        match timeout(OPEN_TIMEOUT, opening).await {
            Ok(opened) => opened.map_err(ConnectError::Io)?,
            Err(_) => Err(ConnectError::Io(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Opens the file. Blocks as long as the file system does.
    fn open(&mut self) -> Result<(), ConnectError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (path, mode) = (&self.path, Mode::empty());
        let opened = match self.is_users {
            true => openat2(CWD, path, flags, mode, ResolveFlags::NO_SYMLINKS),
            false => open(path, flags, mode),
        };
        let file = opened.map_err(|errno| match errno {
            rustix::io::Errno::NOENT => ConnectError::Missing,
            rustix::io::Errno::LOOP => ConnectError::Link,
            other => ConnectError::Io(other.into()),
        })?;
        let stat = fstat(&file).map_err(|errno| ConnectError::Io(errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(ConnectError::NotASocket);
        }
        let owner = stat.st_uid;
        self.opened = Some(Opened { file, owner });
        Ok(())
    }

    /// Connects to the open file, or else opens it first.
    ///
    /// # Errors
    ///
    /// Fails as [`connect`] does.
    pub async fn connect(&mut self) -> Result<UnixStream, ConnectError> {
        if self.opened.is_none() {
            self.open()?;
        }
        let Some(Opened { file, owner }) = self.opened.take() else {
            return Err(ConnectError::Missing);
        };
        let by_descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
        let stream = UnixStream::connect(by_descriptor).await;
        let stream = stream.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => ConnectError::Refused,
            _ => ConnectError::Io(error),
        })?;
        let listener = peer_user(&stream).map_err(ConnectError::Io)?;
        let is_roots = !self.is_users && (listener == 0 || owner == 0);
        match is_roots || listener == owner {
            true => Ok(stream),
            false => Err(ConnectError::NotTheOwner { owner, listener }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn only_a_connection_is_taken_over() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let adopted = adopt(one.into()).unwrap();
        let own = rustix::process::geteuid().as_raw();
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
            assert!(matches!(adopt(no), Err(ConnectError::NotAConnection)));
        }
    }

    #[tokio::test]
    async fn connects_to_the_file_that_was_opened() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let first = UnixListener::bind(at("qmp")).unwrap();
        let mut socket = SocketFile::open_for_user(at("qmp")).await.unwrap();
        let own = rustix::process::geteuid().as_raw();
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
                Err(error) => assert!(!is_taken && matches!(error, ConnectError::Link), "{error}"),
            }
        }
    }
}
