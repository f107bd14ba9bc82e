//! The connection to the bus daemon that the edge runs over.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream as StdStream};
use std::sync::Arc;

use tokio::net::UnixStream;
use zbus::Address;
use zbus::address::Transport;
use zbus::address::transport::UnixSocket;
use zbus::connection::socket::{BoxedSplit, Split};

use super::gate::Gate;
use super::reader::Reader;
use super::writer::Writer;

/// Connects to the system bus.
///
/// # Errors
///
/// The socket's own errors, and [`zbus::Error::Unsupported`] for an address that is not that of a
/// Unix socket: a service is on the host of its bus.
pub(in crate::bus) fn connect(gate: Arc<Gate>) -> zbus::Result<BoxedSplit> {
    let address = Address::system()?;
    let address = match address.transport() {
        Transport::Unix(unix) => match unix.path() {
            UnixSocket::File(path) => SocketAddr::from_pathname(path)?,
            UnixSocket::Abstract(name) => SocketAddr::from_abstract_name(name.as_encoded_bytes())?,
            _ => return Err(zbus::Error::Unsupported),
        },
        _ => return Err(zbus::Error::Unsupported),
    };
    let socket = StdStream::connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    let socket = Arc::new(UnixStream::from_std(socket)?);
    let reader = Reader::new(socket.clone(), gate.clone());
    Ok(Split::new(
        Box::new(reader),
        Box::new(Writer::new(socket, gate)),
    ))
}
