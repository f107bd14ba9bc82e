//! The real vcpud-exporter, with a socket as systemd passes it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use command_fds::{CommandFdExt, FdMapping};
use tokio::net::TcpStream;

use super::http::{Answer, request};
use super::process::{Process, command_of_nobody};
use super::program::copy_program;
use super::wait::within;
use super::world::World;

/// The socket of the exporter, which outlives it.
pub(crate) struct ExporterSocket(TcpListener);

impl ExporterSocket {
    /// Listens on a free port of the loopback interface.
    pub(crate) fn listen() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        Self(listener.expect("a port is free"))
    }

    /// Its address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("it is bound")
    }

    /// Starts the exporter as the user `nobody`, on the bus of `world`.
    pub(crate) fn start(&self, world: &World, arguments: &[&str]) -> Process {
        // The user `nobody` cannot enter the directory of the program, but can run a copy of it.
        let copy = world.bus.directory().join("vcpud-exporter");
        if !copy.exists() {
            copy_program(env!("CARGO_BIN_EXE_vcpud-exporter"), &copy);
        }
        // As that of the system bus, the address has no id of the bus, which changes with a restart.
        let address = world.bus.address().split(',').next().expect("an address");
        let mut command = command_of_nobody("sh");
        command
            .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""])
            .arg(copy)
            .args(arguments)
            .env("LISTEN_FDS", "1")
            .env("DBUS_SYSTEM_BUS_ADDRESS", address);
        let socket = self.0.try_clone().expect("a descriptor is left");
        let mapping = FdMapping {
            parent_fd: OwnedFd::from(socket),
            child_fd: 3,
        };
        let mapped = command.fd_mappings(vec![mapping]);
        mapped.expect("it has its number");
        Process::spawn("vcpud-exporter", &mut command)
    }

    /// Connects to it.
    pub(crate) async fn connect(&self) -> TcpStream {
        let connected = TcpStream::connect(self.address());
        within("a connection", connected).await.expect("it listens")
    }

    /// Returns how many connections the exporter has accepted and not closed.
    pub(crate) fn accepted(&self) -> usize {
        const LISTENS: &str = "0A";
        let sockets = fs::read_to_string("/proc/net/tcp").expect("Linux has it");
        let port = format!(":{:04X}", self.address().port());
        let is_accepted = |line: &&str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (local, state, inode) = (fields[1], fields[3], fields[9]);
            // A connection in the queue of the socket has no file.
            local.ends_with(&port) && state != LISTENS && inode != "0"
        };
        sockets.lines().skip(1).filter(is_accepted).count()
    }

    /// Requests a page.
    pub(crate) async fn request(&self, method: &str, path: &str) -> Answer {
        request(self.address(), method, path).await
    }

    /// Returns the metrics.
    pub(crate) async fn metrics(&self) -> String {
        let answer = self.request("GET", "/metrics").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }
}
