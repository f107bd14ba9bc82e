//! The claims to names of machines. Pure.
//!
//! Sockets, configuration files and registrations claim names. A name has one owner, and the first one
//! keeps it. A registration of a name with an owner fails. A socket or file whose name has another owner is
//! shadowed: it is listed as ignored, and becomes the owner when the name is free. If both are shadowed,
//! the file takes precedence.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use super::error::Error;
use crate::config::MachineFile;
use crate::ids::Uid;
use crate::machine::{SecondNames, StopReason};
use crate::names::MachineName;

/// The maximum number of registered machines of each user except root.
const LIMIT_OF_USER: usize = 64;
/// The maximum number of registered machines. systemd keeps two descriptors of each.
const LIMIT: usize = 4096;

/// A change of the machines. The decisions of one call are carried out in their order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The machine ends, for this reason.
    Stop(MachineName, StopReason),
    /// A machine starts at a socket.
    Start(MachineName, PathBuf),
}

/// A claim that is ignored.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    /// The socket or configuration file.
    pub path: PathBuf,
    /// The name that it claims.
    pub name: MachineName,
    /// The reason.
    pub reason: Reason,
}

/// Why a claim is ignored.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The name has this owner.
    Owned(Origin),
    /// The configuration file of the machine has errors.
    Errors(PathBuf),
    /// The QEMU process is this machine.
    Process(MachineName),
}

/// The origin of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A socket in the directory.
    Socket,
    /// A configuration file that names the socket.
    File(PathBuf),
    /// A registration by a user.
    Registration(Uid),
}

/// The owner of a name.
#[derive(Debug)]
struct Owner {
    origin: Origin,
    /// The QMP socket; `None` for a machine that was registered with a connection.
    socket: Option<PathBuf>,
}

/// The content of a configuration file, as far as it concerns the name.
#[derive(Debug)]
enum Content {
    /// The file has errors. No socket and no registration can have its name.
    Errors,
    /// The file has settings for a machine of another origin.
    Settings,
    /// The file claims its name for a machine at this socket.
    Socket(PathBuf),
}

/// All names, their owners, and the sockets and files that claim them.
#[derive(Debug)]
pub(super) struct Claims {
    /// The directory of QMP sockets.
    directory: PathBuf,
    /// The machines whose sockets are in the directory.
    sockets: BTreeSet<MachineName>,
    /// The configuration files of machines.
    files: BTreeMap<MachineName, (PathBuf, Content)>,
    owners: BTreeMap<MachineName, Owner>,
    /// The sockets and files whose machines were unregistered. They claim nothing until they are replaced,
    /// or until the configuration is read again.
    dismissed: BTreeSet<PathBuf>,
}

impl Claims {
    /// Returns claims without any owner. `directory` is the directory of QMP sockets.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            sockets: BTreeSet::new(),
            files: BTreeMap::new(),
            owners: BTreeMap::new(),
            dismissed: BTreeSet::new(),
        }
    }

    /// Returns the number of names with an owner.
    pub(super) fn count(&self) -> usize {
        self.owners.len()
    }

    /// The socket of `name` appeared in the directory. It may replace a previous one: a rename causes no
    /// event for the socket that it replaces.
    pub(super) fn socket_appeared(&mut self, name: &MachineName) -> Vec<Decision> {
        let socket = self.socket(name);
        self.dismissed.remove(&socket);
        self.sockets.insert(name.clone());
        if self.is_owned_by_socket(name) {
            let stop = Decision::Stop(name.clone(), StopReason::SocketReplaced);
            return vec![stop, Decision::Start(name.clone(), socket)];
        }
        self.promote(name).into_iter().collect()
    }

    /// The socket of `name` disappeared from the directory.
    pub(super) fn socket_removed(&mut self, name: &MachineName) -> Vec<Decision> {
        self.dismissed.remove(&self.socket(name));
        self.sockets.remove(name);
        if self.is_owned_by_socket(name) {
            self.stop(name, StopReason::SocketRemoved)
        } else {
            Vec::new()
        }
    }

    /// The directory contains the sockets of exactly these machines.
    pub(super) fn sockets_listed(&mut self, names: &BTreeSet<MachineName>) -> Vec<Decision> {
        let removed: Vec<MachineName> = self.sockets.difference(names).cloned().collect();
        let appeared: Vec<MachineName> = names.difference(&self.sockets).cloned().collect();
        let removed: Vec<Decision> = removed
            .iter()
            .flat_map(|name| self.socket_removed(name))
            .collect();
        let appeared = appeared.iter().flat_map(|name| self.socket_appeared(name));
        removed.into_iter().chain(appeared).collect()
    }

    /// The configuration was read. `files` are the files of all machines. All stops come before the first
    /// start, so a socket can move from one machine to another.
    pub(super) fn configuration_changed(
        &mut self,
        files: &BTreeMap<MachineName, MachineFile>,
    ) -> Vec<Decision> {
        let files = files.iter().map(|(name, file)| {
            let content = match &file.settings {
                None => Content::Errors,
                Some(settings) => match &settings.qmp {
                    None => Content::Settings,
                    Some(socket) => Content::Socket(socket.clone()),
                },
            };
            (name.clone(), (file.path.clone(), content))
        });
        self.files = files.collect();
        self.dismissed.clear();
        let owners = self.owners.iter();
        let moved = owners.filter(|(name, owner)| {
            let is_file = matches!(owner.origin, Origin::File(_));
            is_file && self.configured_socket(name) != owner.socket.as_ref()
        });
        let moved: Vec<MachineName> = moved.map(|(name, _)| name.clone()).collect();
        self.owners.retain(|name, _| !moved.contains(name));
        let claimed: BTreeSet<MachineName> =
            self.files.keys().chain(&self.sockets).cloned().collect();
        let starts = claimed.iter().filter_map(|name| self.promote(name));
        let starts: Vec<Decision> = starts.collect();
        let stops = moved.into_iter();
        let stops = stops.map(|name| Decision::Stop(name, StopReason::Reconfigured));
        stops.chain(starts).collect()
    }

    /// Checks that the user `uid` can register the machine `name`.
    ///
    /// # Errors
    /// Fails if the name has an owner or a file with errors, and at the limits of registrations.
    pub(super) fn check_registration(&self, name: &MachineName, uid: Uid) -> Result<(), Error> {
        if let Some(owner) = self.owners.get(name) {
            return Err(Error::Exists(owner.origin.to_string()));
        }
        if let Some((path, Content::Errors)) = self.files.get(name) {
            return Err(Error::Disabled(path.clone()));
        }
        let registrants = self.owners.values().filter_map(|owner| owner.origin.user());
        let registrants: Vec<Uid> = registrants.collect();
        if registrants.len() >= LIMIT {
            return Err(Error::TooMany(LIMIT));
        }
        let own = registrants.iter().filter(|user| **user == uid).count();
        if !uid.is_root() && own >= LIMIT_OF_USER {
            let limit = LIMIT_OF_USER;
            return Err(Error::TooManyOfUser { uid, limit });
        }
        Ok(())
    }

    /// The user `uid` registered the machine `name`, whose name is free. `socket` is its QMP socket, if the
    /// registration has one.
    pub(super) fn register(&mut self, name: &MachineName, uid: Uid, socket: Option<PathBuf>) {
        let origin = Origin::Registration(uid);
        self.owners.insert(name.clone(), Owner { origin, socket });
    }

    /// A user unregistered the machine `name`, of whatever origin.
    ///
    /// # Errors
    /// Fails if the name has no owner.
    pub(super) fn unregister(&mut self, name: &MachineName) -> Result<Vec<Decision>, Error> {
        let owner = self.owners.get(name).ok_or(Error::NoSuchMachine)?;
        match &owner.origin {
            Origin::Socket => {
                self.dismissed.insert(self.socket(name));
            }
            Origin::File(path) => {
                self.dismissed.insert(path.clone());
            }
            Origin::Registration(_) => {}
        }
        Ok(self.stop(name, StopReason::Unregistered))
    }

    /// The machine `name` ended by itself.
    pub(super) fn machine_ended(&mut self, name: &MachineName) -> Option<Decision> {
        self.owners.remove(name);
        self.promote(name)
    }

    /// Returns the claims that are ignored, sorted by path. `second` are the names whose QEMU process is
    /// another machine.
    pub(super) fn conflicts(&self, second: &SecondNames) -> Vec<Conflict> {
        let sockets = self.sockets.iter();
        let sockets = sockets.filter_map(|name| {
            let owner = self.owners.get(name);
            // Nearly all names: no path is made for them.
            if owner.is_some_and(|owner| matches!(owner.origin, Origin::Socket)) {
                return None;
            }
            let path = self.socket(name);
            let reason = match (owner, self.files.get(name)) {
                (Some(owner), _) if owner.socket.as_ref() == Some(&path) => return None,
                (Some(owner), _) => Reason::Owned(owner.origin.clone()),
                (None, Some((file, Content::Errors))) => Reason::Errors(file.clone()),
                (None, _) => return None,
            };
            Some((path, name, reason))
        });
        let files = self.files.iter();
        let files = files.filter_map(|(name, (path, content))| {
            let origin = &self.owners.get(name)?.origin;
            let is_shadowed =
                matches!(content, Content::Socket(_)) && !matches!(origin, Origin::File(_));
            is_shadowed.then(|| (path.clone(), name, Reason::Owned(origin.clone())))
        });
        let second = second.iter().filter_map(|(name, first)| {
            let path = match &self.owners.get(name)?.origin {
                Origin::Socket => self.socket(name),
                Origin::File(path) => path.clone(),
                Origin::Registration(_) => return None,
            };
            Some((path, name, Reason::Process(first.clone())))
        });
        let all = sockets.chain(files).chain(second);
        let all = all.filter(|(path, ..)| !self.dismissed.contains(path));
        let conflict = |(path, name, reason): (_, &MachineName, _)| Conflict {
            path,
            name: name.clone(),
            reason,
        };
        let mut all: Vec<Conflict> = all.map(conflict).collect();
        all.sort_by(|a, b| a.path.cmp(&b.path));
        all
    }

    /// Stops the machine `name`, and gives the name to a shadowed socket or file.
    fn stop(&mut self, name: &MachineName, reason: StopReason) -> Vec<Decision> {
        self.owners.remove(name);
        let stop = Decision::Stop(name.clone(), reason);
        [stop].into_iter().chain(self.promote(name)).collect()
    }

    /// Gives the name to its file or socket if the name is free.
    fn promote(&mut self, name: &MachineName) -> Option<Decision> {
        if self.owners.contains_key(name) {
            return None;
        }
        let (origin, socket) = self.claimant(name)?;
        let owner = Owner {
            origin,
            socket: Some(socket.clone()),
        };
        self.owners.insert(name.clone(), owner);
        Some(Decision::Start(name.clone(), socket))
    }

    /// Returns the file or socket that gets the free name, with its QMP socket.
    fn claimant(&self, name: &MachineName) -> Option<(Origin, PathBuf)> {
        match self.files.get(name) {
            Some((_, Content::Errors)) => return None,
            Some((file, Content::Socket(socket))) if !self.dismissed.contains(file) => {
                return Some((Origin::File(file.clone()), socket.clone()));
            }
            _ => {}
        }
        let socket = self.socket(name);
        let claims = self.sockets.contains(name) && !self.dismissed.contains(&socket);
        claims.then_some((Origin::Socket, socket))
    }

    fn is_owned_by_socket(&self, name: &MachineName) -> bool {
        let owner = self.owners.get(name);
        owner.is_some_and(|owner| owner.origin == Origin::Socket)
    }

    /// Returns the socket in the file of the machine `name`.
    fn configured_socket(&self, name: &MachineName) -> Option<&PathBuf> {
        match self.files.get(name) {
            Some((_, Content::Socket(socket))) => Some(socket),
            _ => None,
        }
    }

    fn socket(&self, name: &MachineName) -> PathBuf {
        socket_of(&self.directory, name)
    }
}

/// Returns the path of the socket of the machine `name` in `directory`.
pub(super) fn socket_of(directory: &Path, name: &MachineName) -> PathBuf {
    directory.join(format!("{name}.sock"))
}

impl Origin {
    /// Returns the user that registered the machine.
    fn user(&self) -> Option<Uid> {
        match self {
            Self::Registration(uid) => Some(*uid),
            Self::Socket | Self::File(_) => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket => f.write_str("its socket in the directory qmp"),
            Self::File(path) => path.display().fmt(f),
            Self::Registration(uid) => write!(f, "a registration by user {uid}"),
        }
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, name, reason } = self;
        write!(f, "{}: ignored, because ", path.display())?;
        match reason {
            Reason::Owned(origin) => write!(f, "machine {name} already exists, from {origin}"),
            Reason::Errors(file) => write!(f, "{} has errors", file.display()),
            Reason::Process(first) => write!(
                f,
                "the QEMU process of {name} is already the machine {first}; remove the second socket or file"
            ),
        }
    }
}

#[cfg(test)]
mod tests;
