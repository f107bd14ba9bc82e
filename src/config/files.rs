//! Reads the configuration files. The service runs as root, so it does not read a file that other users
//! can write to.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::parse::add_service;
use super::{Configuration, MachineFile, parse_machine};
use crate::names::MachineName;

/// The maximum size of a file, in bytes.
const MAX_SIZE: u64 = 256 << 10;
/// The maximum number of files in a directory.
const MAX_FILES: usize = 16_384;

/// Reads all files below `directory`.
pub(super) fn read(directory: &Path) -> Configuration {
    let mut reader = Reader::default();
    if reader.trusts(directory) {
        reader.read_service(directory);
        reader.read_machines(&directory.join("machines.d"));
    }
    let mut configuration = reader.0;
    configuration.errors.sort();
    configuration
}

/// Reads the files into a configuration.
#[derive(Default)]
struct Reader(Configuration);

impl Reader {
    fn read_service(&mut self, directory: &Path) {
        let mut files = vec![directory.join("vcpud.toml")];
        files.extend(self.list(&directory.join("vcpud.toml.d")));
        for file in files {
            let Configuration {
                service, defaults, ..
            } = &mut self.0;
            let errors = match contents(&file) {
                Ok(Some(text)) => add_service(&text, service, defaults),
                Ok(None) => Vec::new(),
                Err(text) => vec![ConfigError::whole(text)],
            };
            self.note(&file, errors);
        }
        self.0.has_service_errors = !self.0.errors.is_empty();
    }

    fn read_machines(&mut self, directory: &Path) {
        for path in self.list(directory) {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let name: MachineName = match stem.parse() {
                Ok(name) => name,
                Err(error) => {
                    self.note(&path, vec![ConfigError::whole(format!("{error}"))]);
                    continue;
                }
            };
            let settings = match contents(&path) {
                Ok(Some(text)) => parse_machine(&text),
                // The file was removed in the meantime.
                Ok(None) => continue,
                Err(text) => Err(vec![ConfigError::whole(text)]),
            };
            let settings = settings.map_err(|errors| self.note(&path, errors));
            let settings = settings.ok();
            self.0.machines.insert(name, MachineFile { path, settings });
        }
    }

    /// Returns the files `*.toml` of `directory`, sorted by name.
    fn list(&mut self, directory: &Path) -> Vec<PathBuf> {
        if !self.trusts(directory) {
            return Vec::new();
        }
        let list = || -> io::Result<Vec<PathBuf>> {
            let entries = fs::read_dir(directory)?.take(MAX_FILES);
            let entries = entries.map(|entry| Ok(entry?.path()));
            entries.collect()
        };
        match list() {
            Ok(mut files) => {
                files.retain(|file| is_configuration(file));
                files.sort();
                files
            }
            Err(error) => {
                self.note(
                    directory,
                    vec![ConfigError::whole(format!("cannot be listed: {error}"))],
                );
                Vec::new()
            }
        }
    }

    /// Returns whether `directory` exists and only root can create files in it. Notes the error of a
    /// directory that other users can write to.
    fn trusts(&mut self, directory: &Path) -> bool {
        let wrong = match fs::metadata(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
            Err(error) => Some(format!("cannot be read: {error}")),
            Ok(metadata) if !metadata.is_dir() => Some("is not a directory".to_owned()),
            Ok(metadata) => distrust(&metadata),
        };
        let is_trusted = wrong.is_none();
        self.note(
            directory,
            wrong.map(ConfigError::whole).into_iter().collect(),
        );
        is_trusted
    }

    /// Adds the `errors` of `file`.
    fn note(&mut self, file: &Path, errors: Vec<ConfigError>) {
        let errors = errors.into_iter();
        self.0
            .errors
            .extend(errors.map(|error| error.in_file(file)));
    }
}

/// Returns whether a file is `*.toml`, and is not hidden like the temporary files of editors.
fn is_configuration(file: &Path) -> bool {
    let is_hidden = file
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    file.extension() == Some(OsStr::new("toml")) && !is_hidden
}

/// Returns the text of a file; `None` if the file does not exist.
fn contents(path: &Path) -> Result<Option<String>, String> {
    // The open of a pipe would wait for a writer.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot be opened: {error}")),
    };
    let text = bounded(file).map_err(|error| error.to_string())?;
    match String::from_utf8(text) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err("is not UTF-8".to_owned()),
    }
}

fn bounded(file: File) -> io::Result<Vec<u8>> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("is not a file"));
    }
    if let Some(reason) = distrust(&metadata) {
        return Err(io::Error::other(reason));
    }
    let mut text = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_SIZE {
        return Err(io::Error::other(format!("is larger than {MAX_SIZE} bytes")));
    }
    Ok(text)
}

/// Returns why a file or directory with this `metadata` is not read: a user other than root can
/// write to it.
fn distrust(metadata: &Metadata) -> Option<String> {
    let (owner, group) = (metadata.uid(), metadata.gid());
    if metadata.mode() & 0o002 != 0 {
        Some("is not used: all users can write to it (chmod o-w)".to_owned())
    } else if metadata.mode() & 0o020 != 0 && group != 0 {
        Some(format!(
            "is not used: group {group} can write to it (chmod g-w)"
        ))
    } else if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        Some(format!("is not used: it belongs to user {owner}, not root"))
    } else {
        None
    }
}
