//! An open directory of a kernel file system. Files below it are opened relative to it, one name at a time
//! and without following links.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{
    AtFlags, CWD, Dir as Entries, FileType, Mode, OFlags, XattrFlags, fchmod, fgetxattr,
    fremovexattr, fsetxattr, mkdirat, openat, statat, unlinkat,
};

/// The maximum size of a file that is read, in bytes. No file of the kernel is larger.
const READ_LIMIT: u64 = 4 << 20;
/// The maximum length of an extended attribute that is read, in bytes.
const ATTRIBUTE_LIMIT: usize = 64;
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOFOLLOW);
/// The mode of directories that all users may read.
const PUBLIC: Mode = Mode::from_raw_mode(0o755);

/// An open directory.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens the directory at `path`. The last part of the path must not be a link.
    ///
    /// # Errors
    ///
    /// Fails if it is a link or not a directory, or if the kernel refuses.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_owned();
        let fd = openat(CWD, &path, DIRECTORY, Mode::empty())?;
        Ok(Self { fd, path })
    }

    /// Returns the path by which it was opened, for messages only.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of `name` in it, for messages only.
    pub fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens the directory `name` in it.
    ///
    /// # Errors
    ///
    /// Fails if the name is not plain, if it is a link, or if the kernel refuses.
    pub fn child(&self, name: &str) -> io::Result<Self> {
        let fd = openat(&self.fd, plain(name)?, DIRECTORY, Mode::empty())?;
        let path = self.at(name);
        Ok(Self { fd, path })
    }

    /// Opens the directory `name` in it, and creates the directory first if it does not exist.
    /// All users may read a new directory, whatever the umask. Returns whether the directory is new.
    ///
    /// # Errors
    ///
    /// Fails if the name is not plain, or if the kernel refuses to create or to open it.
    pub fn make(&self, name: &str) -> io::Result<(Self, bool)> {
        let name = plain(name)?;
        let created = match mkdirat(&self.fd, name, PUBLIC) {
            Ok(()) => true,
            Err(rustix::io::Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        let directory = self.child(name)?;
        if created {
            fchmod(&directory.fd, PUBLIC)?;
        }
        Ok((directory, created))
    }

    /// Opens the directory at `path` below it. The path must consist of plain names.
    ///
    /// # Errors
    ///
    /// Fails as [`Dir::child`] does.
    pub fn descend(&self, path: &str) -> io::Result<Self> {
        let mut dir = Self {
            fd: self.fd.try_clone()?,
            path: self.path.clone(),
        };
        for name in path.split('/').filter(|name| !name.is_empty()) {
            dir = dir.child(name)?;
        }
        Ok(dir)
    }

    /// Removes the empty directory `name` in it, if it exists.
    ///
    /// # Errors
    ///
    /// Fails if the name is not plain, if the directory is not empty, or if the kernel refuses.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.fd, plain(name)?, AtFlags::REMOVEDIR) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the names of the directories in it.
    ///
    /// # Errors
    ///
    /// Fails if the kernel refuses.
    pub fn children(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Entries::read_from(&self.fd)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type() == FileType::Directory && name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Returns whether it has a file `name`.
    pub fn has(&self, name: &str) -> bool {
        plain(name).is_ok_and(|name| statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok())
    }

    /// Returns the inode number of the directory at `path`. The last part of the path must not be a link.
    ///
    /// # Errors
    ///
    /// Fails if it does not exist.
    pub fn inode(path: impl AsRef<Path>) -> io::Result<u64> {
        let stat = statat(CWD, path.as_ref(), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(stat.st_ino)
    }

    /// Returns its extended attribute `name` (`xattr(7)`), if it has a short text.
    pub fn attribute(&self, name: &str) -> Option<String> {
        let mut value = vec![0; ATTRIBUTE_LIMIT];
        let length = fgetxattr(&self.fd, name, value.as_mut_slice()).ok()?;
        value.truncate(length);
        String::from_utf8(value).ok()
    }

    /// Sets its extended attribute `name`.
    ///
    /// # Errors
    ///
    /// Fails if the file system does not support it: control groups do since Linux 5.7.
    pub fn set_attribute(&self, name: &str, value: &str) -> io::Result<()> {
        Ok(fsetxattr(
            &self.fd,
            name,
            value.as_bytes(),
            XattrFlags::empty(),
        )?)
    }

    /// Removes its extended attribute `name`.
    ///
    /// # Errors
    ///
    /// Fails if it has no such attribute.
    pub fn remove_attribute(&self, name: &str) -> io::Result<()> {
        Ok(fremovexattr(&self.fd, name)?)
    }

    /// Returns the text of the file `name`, without the newline at its end.
    ///
    /// # Errors
    ///
    /// Fails if the name is not plain, if it is a link, if the text is not UTF-8, or if the kernel refuses.
    pub fn read(&self, name: &str) -> io::Result<String> {
        // With this capacity, the kernel is asked twice for most of its files, and not up to eight times.
        let mut text = String::with_capacity(1024);
        let file = self.file(name, OFlags::RDONLY)?;
        file.take(READ_LIMIT).read_to_string(&mut text)?;
        Ok(text.trim_end_matches('\n').to_owned())
    }

    /// Writes `text` to the existing file `name`, in one system call.
    ///
    /// # Errors
    ///
    /// Fails if the name is not plain, if it is a link, or if the kernel refuses the text or takes only a part.
    pub fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let mut file = self.file(name, OFlags::WRONLY | OFlags::TRUNC)?;
        match file.write(text.as_bytes())? {
            written if written == text.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Returns the numbers in the file `name`, which has one in each line. Other lines are ignored.
    ///
    /// # Errors
    ///
    /// Fails as [`Dir::read`] does.
    pub fn numbers<T: FromStr>(&self, name: &str) -> io::Result<Vec<T>> {
        let text = self.read(name)?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    fn file(&self, name: &str, access: OFlags) -> io::Result<File> {
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY;
        let fd = openat(&self.fd, plain(name)?, flags, Mode::empty())?;
        Ok(fd.into())
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Returns `name` if it is plain: the name of one file in the same directory.
fn plain(name: &str) -> io::Result<&str> {
    match name {
        "" | "." | ".." => Err(io::ErrorKind::InvalidInput.into()),
        name if name.contains('/') => Err(io::ErrorKind::InvalidInput.into()),
        name => Ok(name),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn no_path_leads_out_of_a_directory() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tree.path().join("inside/deep")).unwrap();
        std::fs::create_dir(tree.path().join("outside")).unwrap();
        std::fs::write(tree.path().join("outside/file"), "x").unwrap();
        symlink("../outside", tree.path().join("inside/link")).unwrap();
        symlink("../outside/file", tree.path().join("inside/file")).unwrap();

        let dir = Dir::open(tree.path().join("inside")).unwrap();
        assert!(dir.descend("deep").is_ok());
        for path in ["..", "link", "deep/../../outside", "."] {
            assert!(dir.descend(path).is_err(), "{path}");
        }
        assert!(dir.read("file").is_err());
        assert!(dir.write("file", "y").is_err());
        assert!(dir.read("link/file").is_err());
        assert!(dir.make("link").is_err());
        assert_eq!(dir.children().unwrap(), ["deep"]);
        assert!(Dir::open(tree.path().join("inside/link")).is_err());
    }
}
