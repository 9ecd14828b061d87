//! A small file of a VM's own that is written in order: the variables of its firmware.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::lock::{self, Access, Conflict, LockError};

/// What cannot be done with the file.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The system refuses.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process has it.
    #[error("another process has {} {conflict}", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
        /// For what.
        conflict: Conflict,
    },
    /// A directory, a device, a pipe.
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// It is not what it should be.
    #[error("{} has {found} bytes, and {expected} are needed: it belongs to something else, or to other \
        firmware", .path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// What it should be.
        expected: u64,
    },
}

/// The file, open.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: File,
}

impl Store {
    /// Opens the file at `path`. If there is none, it is made with the content `initial`; it is there as a
    /// whole or not at all.
    ///
    /// # Errors
    /// If it cannot be opened or made.
    pub fn open(path: &Path, initial: &[u8]) -> Result<Self, StoreError> {
        let failed = |doing, source| StoreError::Io {
            doing,
            path: path.to_owned(),
            source,
        };
        // Looked at before it is opened: opening a FIFO would wait for a writer.
        match fs::metadata(path) {
            Ok(found) if !found.is_file() => return Err(StoreError::NotAFile(path.to_owned())),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                make(path, initial).map_err(|e| failed("make", e))?;
            }
            Err(e) => return Err(failed("open", e)),
        }
        let file = OpenOptions::new().read(true).write(true).open(path);
        Ok(Self {
            path: path.to_owned(),
            file: file.map_err(|e| failed("open", e))?,
        })
    }

    /// What it contains: `len` bytes.
    ///
    /// # Errors
    /// If it has another length, or cannot be read.
    pub fn read(&self, len: usize) -> Result<Vec<u8>, StoreError> {
        let failed = |source| self.failed("read", source);
        self.expect_len(len, self.file.metadata().map_err(failed)?.len())?;
        let mut content = vec![0; len];
        self.file.read_exact_at(&mut content, 0).map_err(failed)?;
        Ok(content)
    }

    /// Puts `content` in the place of all that it contains, on stable storage.
    ///
    /// # Errors
    /// If it has another length and is not empty, or cannot be written.
    pub fn replace(&self, content: &[u8]) -> Result<(), StoreError> {
        let failed = |source| self.failed("write", source);
        match self.file.metadata().map_err(failed)?.len() {
            0 => {}
            found => self.expect_len(content.len(), found)?,
        }
        self.file.write_all_at(content, 0).map_err(failed)?;
        self.sync()
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.file.write_all_at(bytes, offset);
        written.map_err(|source| self.failed("write", source))
    }

    /// What was written reaches stable storage.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn sync(&self) -> Result<(), StoreError> {
        let synced = self.file.sync_data();
        synced.map_err(|source| self.failed("flush", source))
    }

    /// Locks it against other VMs, until [`Store::unlock`].
    ///
    /// # Errors
    /// If another process uses it, or the file system has no locks.
    pub fn lock(&self) -> Result<(), StoreError> {
        lock::take(self.file.as_fd(), Access::Write).map_err(|error| match error {
            LockError::Conflict(conflict) => StoreError::InUse {
                path: self.path.clone(),
                conflict,
            },
            LockError::Kernel(source) => self.failed("lock", source),
        })
    }

    /// Lets others have it.
    pub fn unlock(&self) {
        lock::release(self.file.as_fd());
    }

    fn expect_len(&self, expected: usize, found: u64) -> Result<(), StoreError> {
        let expected = expected as u64;
        match found == expected {
            true => Ok(()),
            false => Err(StoreError::Size {
                path: self.path.clone(),
                found,
                expected,
            }),
        }
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> StoreError {
        StoreError::Io {
            doing,
            path: self.path.clone(),
            source,
        }
    }
}

/// Makes the file at `path`, which another process may make at the same time: the first one stays.
fn make(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = PathBuf::from(name);
    let made = (|| {
        let mut file = File::create_new(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        match fs::hard_link(&new, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // A file system without links.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => fs::rename(&new, path),
            linked => linked,
        }
    })();
    // It is not there after a rename, or if it was not made.
    let _removed = fs::remove_file(&new);
    made?;
    let directory = path.parent().filter(|parent| *parent != Path::new(""));
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    #[test]
    fn it_is_made_once_and_keeps_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vars");
        let store = Store::open(&path, b"abcd").unwrap();
        store.write(1, b"X").unwrap();
        store.sync().unwrap();
        let again = Store::open(&path, b"other").unwrap();
        assert_eq!(again.read(4).unwrap(), b"aXcd");
        again.replace(b"1234").unwrap();
        assert_eq!(store.read(4).unwrap(), b"1234");
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn what_belongs_to_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, "a disk").unwrap();
        let store = Store::open(&path, b"abcd").unwrap();
        for error in [
            store.read(4).unwrap_err(),
            store.replace(b"abcd").unwrap_err(),
        ] {
            assert!(matches!(
                error,
                StoreError::Size {
                    found: 6,
                    expected: 4,
                    ..
                }
            ));
        }
        assert_eq!(fs::read(&path).unwrap(), b"a disk");
        let error = Store::open(dir.path(), b"").unwrap_err();
        assert!(matches!(error, StoreError::NotAFile(_)));
        let error = Store::open(&dir.path().join("no/vars"), b"").unwrap_err();
        assert!(chain(&error).contains("cannot make"), "{}", chain(&error));
        // What a restored VM has, into a file that was just made.
        let empty = Store::open(&dir.path().join("empty"), b"").unwrap();
        empty.replace(b"abcd").unwrap();
        assert_eq!(empty.read(4).unwrap(), b"abcd");
    }

    #[test]
    fn one_process_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vars");
        let [one, two] = [(); 2].map(|()| Store::open(&path, b"abcd").unwrap());
        one.lock().unwrap();
        let error = two.lock().unwrap_err().to_string();
        assert!(
            error.contains("vars") && error.contains("writing"),
            "{error}"
        );
        one.unlock();
        two.lock().unwrap();
    }
}
