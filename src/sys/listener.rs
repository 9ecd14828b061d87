//! A Unix socket to listen on: a stale file is replaced, another program's is left alone, the own one is
//! removed at the end.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::fatal::OnDeath;
use super::private;

/// Why a path cannot be listened at.
#[derive(Debug, Error)]
pub(crate) enum ListenError {
    /// A system call.
    #[error("{action} {} failed", path.display())]
    Path {
        /// The attempted operation.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The path is occupied by something that must not be removed.
    #[error("{} {obstacle}; give another path or remove it", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
        /// The obstacle.
        obstacle: &'static str,
    },
}

/// A listening socket and its file.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the created file, so that a successor's file is not removed.
    identity: Option<(u64, u64)>,
    on_death: Option<OnDeath>,
}

impl Listener {
    /// Listens at `path`, to which only this user can connect.
    ///
    /// # Errors
    /// If something else is there, or the host refuses.
    pub(crate) fn bind(path: &Path) -> Result<Self, ListenError> {
        let failed = |action, source| ListenError::Path {
            action,
            path: path.to_owned(),
            source,
        };
        let in_use = |obstacle| ListenError::InUse {
            path: path.to_owned(),
            obstacle,
        };
        match fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => return Err(in_use("is not a socket")),
            Ok(_) => match UnixStream::connect(path) {
                Ok(_) => return Err(in_use("is in use by a running program")),
                // Refused: no process listens; a former run left it behind.
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(|e| failed("removing the stale socket", e))?;
                }
                Err(e) => return Err(failed("trying the existing socket", e)),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed("looking at", e)),
        }
        let socket = private::listen(path).map_err(|e| failed("listening on", e))?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            identity: identity(path),
            on_death: OnDeath::remove_file(path),
        })
    }

    /// The next client, if one is waiting.
    pub(crate) fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.socket.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// What rings when one waits.
    pub(crate) fn socket(&self) -> &UnixListener {
        &self.socket
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // From the next line on the path may belong to another process.
        self.on_death = None;
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // It may have been removed already.
            let _gone = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_taken_over_and_the_own_one_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("com1");
        // std leaves the file behind when a listener is dropped: a stale socket.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::bind(&path).unwrap();
        drop(UnixStream::connect(&path).unwrap());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_in_use_or_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("com1");
        let first = Listener::bind(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert!(
            error.to_string().contains("is in use by a running program"),
            "{error}"
        );
        drop(first);

        fs::write(&path, "precious").unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert!(error.to_string().contains("is not a socket"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_successors_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("com1");
        let first = Listener::bind(&path).unwrap();
        fs::rename(&path, dir.path().join("moved")).unwrap();
        let _second = Listener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }
}
