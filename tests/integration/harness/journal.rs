//! A journal that records the entries of programs (`systemd.journal-fields(7)`), in place of journald.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;

use tokio::net::UnixDatagram;
use tokio::process::Command;

use super::bus::Bus;
use super::process::command;
use super::wait::within;

/// In a mount namespace of its own, a program finds our socket where journald has its own.
const SCRIPT: &str = r#"
    mount -t tmpfs tmpfs /run &&
    mkdir -p /run/systemd/journal &&
    mount --bind "$1" /run/systemd/journal &&
    exec "$2"
"#;

/// The fields of an entry, and their values.
pub(crate) type Entry = BTreeMap<String, String>;

/// A scripted journald.
pub(crate) struct Journal {
    directory: PathBuf,
    socket: UnixDatagram,
    /// The entries so far.
    pub(crate) entries: Vec<Entry>,
}

impl Journal {
    /// Starts one with its socket in the directory of `bus`.
    pub(crate) fn start(bus: &Bus) -> Self {
        let directory = bus.directory().join("journal");
        std::fs::create_dir(&directory).expect("the directory is writable");
        let socket = UnixDatagram::bind(directory.join("socket"));
        Self {
            directory,
            socket: socket.expect("the directory is writable"),
            entries: Vec::new(),
        }
    }

    /// Returns a command that runs `program` as systemd does, with this journal.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = command("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT])
            .arg("sh")
            .arg(&self.directory)
            .arg(program)
            .env("JOURNAL_STREAM", "1:1");
        command
    }

    /// Waits for an entry whose message contains `text`.
    pub(crate) async fn has(&mut self, text: &str) -> Entry {
        let entry = async {
            loop {
                let mut bytes = vec![0; 1 << 16];
                let length = self.socket.recv(&mut bytes).await.expect("it is bound");
                bytes.truncate(length);
                // The library begins with an empty datagram, which journald ignores.
                if bytes.is_empty() {
                    continue;
                }
                let entry = parse(&bytes);
                self.entries.push(entry.clone());
                if entry["MESSAGE"].contains(text) {
                    return entry;
                }
            }
        };
        within(format!("{text:?} in the journal"), entry).await
    }
}

/// Returns the fields of a datagram: lines `KEY=VALUE`, and `KEY`, a length of 64 bits and the value.
fn parse(mut bytes: &[u8]) -> Entry {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let mut entry = Entry::new();
    while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        if let Some(equals) = line.iter().position(|byte| *byte == b'=') {
            entry.insert(text(&line[..equals]), text(&line[equals + 1..]));
            bytes = rest;
        } else {
            let (length, rest) = rest.split_at(8);
            let length = u64::from_le_bytes(length.try_into().expect("8 bytes"));
            let (value, rest) = rest.split_at(length as usize);
            entry.insert(text(line), text(value));
            bytes = &rest[1..];
        }
    }
    entry
}
