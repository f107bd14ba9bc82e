//! Connecting to a Unix socket file without being led astray.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

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
    /// Nobody listens on it.
    #[error("nobody listens on the socket")]
    Refused,
    /// Anything else.
    #[error("the socket cannot be connected to: {0}")]
    Io(#[source] io::Error),
}

/// Connects to the socket file at `path`, which must not be a symbolic link.
///
/// The file is opened first and then connected to by its descriptor, so what was looked at is
/// what is used; this also takes paths longer than the 108 bytes of `sockaddr_un`.
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
    UnixStream::connect(by_descriptor)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => ConnectError::Refused,
            _ => ConnectError::Io(error),
        })
}
