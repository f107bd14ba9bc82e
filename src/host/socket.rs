//! Connecting to a Unix socket file without being led astray.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sys::socket::{SockType, UnixAddr, getpeername, getsockopt, sockopt};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use tokio::net::UnixStream;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is no such file.
    #[error("the socket is gone")]
    Missing,
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
/// The file is opened first and then connected to by its descriptor, so what was looked at is
/// what is used; this also takes paths longer than the 108 bytes of `sockaddr_un`. Who listens
/// must be root or the owner of the file, unless that is root's.
pub async fn connect(path: &Path) -> Result<UnixStream, ConnectError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::empty()).map_err(|errno| match errno {
        rustix::io::Errno::NOENT => ConnectError::Missing,
        other => ConnectError::Io(other.into()),
    })?;
    let stat = fstat(&file).map_err(|errno| ConnectError::Io(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(ConnectError::NotASocket);
    }
    let by_descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
    let stream = UnixStream::connect(by_descriptor).await;
    let stream = stream.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => ConnectError::Refused,
        _ => ConnectError::Io(error),
    })?;
    let owner = stat.st_uid;
    match peer_user(&stream).map_err(ConnectError::Io)? {
        listener if [listener, owner].contains(&0) || listener == owner => Ok(stream),
        listener => Err(ConnectError::NotTheOwner { owner, listener }),
    }
}

#[cfg(test)]
mod tests {
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
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
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
}
