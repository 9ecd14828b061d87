//! Run directories: one per VM, named for it, and nobody else's to write.
//!
//! A VM holds a lock on its `pid` file for as long as it lives, and the kernel drops it when the process dies
//! in whatever way. So a directory whose file is not locked is left over, and is taken.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;

use super::ApiError;
use crate::config::is_name;
use crate::sys::fatal::OnDeath;

/// sun_path of struct sockaddr_un, less its NUL.
const MAX_SOCKET_PATH: usize = 107;
const PID: &str = "pid";
const SOCKET: &str = "control.sock";

/// The directory that holds all run directories of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDirs {
    base: PathBuf,
}

impl RunDirs {
    /// This user's: `$XDG_RUNTIME_DIR/hypernest`; without that variable `/run/user/UID/hypernest` if there is
    /// such a directory, or else `/tmp/hypernest-UID`.
    pub fn of_user() -> Self {
        let uid = Uid::effective();
        let variable = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        Self::choose(variable, uid.as_raw(), Path::is_dir)
    }

    fn choose(variable: Option<PathBuf>, uid: u32, is_dir: impl Fn(&Path) -> bool) -> Self {
        // The XDG specification: a relative path is to be ignored.
        if let Some(dir) = variable.filter(|dir| dir.is_absolute()) {
            return Self::at(dir.join("hypernest"));
        }
        let dir = PathBuf::from(format!("/run/user/{uid}"));
        Self::at(if is_dir(&dir) {
            dir.join("hypernest")
        } else {
            PathBuf::from(format!("/tmp/hypernest-{uid}"))
        })
    }

    /// In this directory.
    pub fn at(base: PathBuf) -> Self {
        Self { base }
    }

    /// The control socket of the VM `name`.
    pub(super) fn socket(&self, name: &str) -> PathBuf {
        self.base.join(name).join(SOCKET)
    }

    /// The names of all VMs that have a directory, running or not.
    pub(super) fn names(&self) -> Result<Vec<String>, ApiError> {
        match self.check(&self.base) {
            Err(ApiError::Directory { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Ok(Vec::new());
            }
            checked => checked?,
        }
        let mut names: Vec<String> = fs::read_dir(&self.base)
            .map_err(|source| failed(&self.base, source))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| is_name(name))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Takes the name `name` for a VM of this process.
    ///
    /// # Errors
    /// If a running VM has it, or the directory cannot be had or trusted.
    pub fn claim(&self, name: &str) -> Result<RunDir, ApiError> {
        let socket = self.socket(name);
        if socket.as_os_str().as_bytes().len() > MAX_SOCKET_PATH {
            return Err(ApiError::TooLong {
                path: socket,
                max: MAX_SOCKET_PATH,
            });
        }
        self.make(&self.base)?;
        let path = self.base.join(name);
        // A VM that is just ending may take the directory away between two of our steps.
        for _ in 0..100 {
            self.make(&path)?;
            match lock(&path.join(PID)) {
                Ok(Some(lock)) => return RunDir::new(path, lock),
                Ok(None) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    return Err(ApiError::NameTaken {
                        name: name.to_owned(),
                        pid: read_pid(&path),
                    });
                }
                Err(e) => return Err(failed(&path, e)),
            }
        }
        Err(failed(&path, ErrorKind::ResourceBusy.into()))
    }

    fn make(&self, dir: &Path) -> Result<(), ApiError> {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(failed(dir, e)),
            _ => self.check(dir),
        }
    }

    /// In a directory that others can write to, they could put a socket of theirs.
    fn check(&self, dir: &Path) -> Result<(), ApiError> {
        let metadata = fs::symlink_metadata(dir).map_err(|e| failed(dir, e))?;
        let why = if !metadata.is_dir() {
            "it is not a directory"
        } else if metadata.uid() != Uid::effective().as_raw() {
            "it belongs to another user"
        } else if metadata.mode() & 0o077 != 0 {
            "other users have access to it; remove it, or take their access away with chmod 700"
        } else {
            return Ok(());
        };
        Err(ApiError::Unsafe {
            path: dir.to_owned(),
            why,
        })
    }
}

fn failed(path: &Path, source: io::Error) -> ApiError {
    ApiError::Directory {
        path: path.to_owned(),
        source,
    }
}

/// The locked file; `None` if it was removed while it was being locked.
fn lock(path: &Path) -> io::Result<Option<Flock<File>>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
        Errno::EWOULDBLOCK => io::Error::from(ErrorKind::WouldBlock),
        e => e.into(),
    })?;
    let locked = lock.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(now) if (now.dev(), now.ino()) == (locked.dev(), locked.ino()) => Ok(Some(lock)),
        Ok(_) => Ok(None),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn read_pid(dir: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(dir.join(PID))
        .ok()?
        .take(16)
        .read_to_string(&mut text)
        .ok()?;
    text.trim().parse().ok()
}

/// A run directory that belongs to a VM of this process. Dropping it removes it.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    lock: Flock<File>,
    on_death: Vec<OnDeath>,
}

impl RunDir {
    fn new(path: PathBuf, lock: Flock<File>) -> Result<Self, ApiError> {
        let on_death = [
            OnDeath::remove_file(&path.join(SOCKET)),
            OnDeath::remove_file(&path.join(PID)),
            OnDeath::remove_directory(&path),
        ];
        let mut dir = Self {
            path,
            lock,
            on_death: on_death.into_iter().flatten().collect(),
        };
        dir.prepare().map_err(|e| failed(&dir.path, e))?;
        Ok(dir)
    }

    fn prepare(&mut self) -> io::Result<()> {
        match fs::remove_file(self.socket()) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        self.lock.set_len(0)?;
        writeln!(self.lock, "{}", std::process::id())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where its control socket is or will be.
    pub(super) fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // From the next line on the name may be another VM's.
        self.on_death.clear();
        // What cannot be removed is left over, unlocked, and the next VM of this name takes it.
        let _socket = fs::remove_file(self.socket());
        let _pid = fs::remove_file(self.path.join(PID));
        let _dir = fs::remove_dir(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_directories_are() {
        let chosen = |variable: Option<&str>, exists: bool| {
            RunDirs::choose(variable.map(PathBuf::from), 7, |_| exists).base
        };
        assert_eq!(chosen(Some("/x"), true), Path::new("/x/hypernest"));
        assert_eq!(chosen(Some("x"), true), Path::new("/run/user/7/hypernest"));
        assert_eq!(chosen(Some(""), false), Path::new("/tmp/hypernest-7"));
        assert_eq!(chosen(None, true), Path::new("/run/user/7/hypernest"));
        assert_eq!(chosen(None, false), Path::new("/tmp/hypernest-7"));
    }
}
