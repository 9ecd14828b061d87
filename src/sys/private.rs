//! Files and sockets that hold what a guest says or does: mode 0600, whatever the umask of the process is.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen as listen_on, socket,
};
use nix::sys::stat::{Mode, fchmod};

/// Read and write for the owner.
const OWNER_ONLY: u32 = 0o600;

/// What happens to the content of a file that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// It is discarded.
    Truncate,
    /// Writes go to its end.
    Append,
}

/// Opens `path` for writing. A new file gets mode 0600; one that exists keeps the mode that its owner gave
/// it, and need not be a regular file.
///
/// # Errors
/// What the kernel reports.
pub(crate) fn create(path: &Path, existing: Existing) -> io::Result<File> {
    let options = || {
        let mut options = OpenOptions::new();
        options
            .write(true)
            .append(existing == Existing::Append)
            .mode(OWNER_ONLY);
        options
    };
    match options().create_new(true).open(path) {
        Ok(file) => {
            // A umask may have taken bits from the owner, too.
            file.set_permissions(Permissions::from_mode(OWNER_ONLY))?;
            Ok(file)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => options()
            .create(true)
            .truncate(existing == Existing::Truncate)
            .open(path),
        Err(e) => Err(e),
    }
}

/// A non-blocking Unix socket that listens at `path`, to which only this user can connect from the moment it
/// is there.
///
/// # Errors
/// What the kernel reports, e.g. that there is a file at `path`.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    let fd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    // The mode of the socket becomes that of its file (unix_bind_bsd in net/unix/af_unix.c).
    fchmod(&fd, Mode::from_bits_truncate(OWNER_ONLY))?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen_on(&fd, Backlog::MAXCONN)?;
    Ok(UnixListener::from(fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn new_files_are_the_owners_and_existing_ones_keep_their_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        for existing in [Existing::Truncate, Existing::Append] {
            create(&path, existing).unwrap();
            assert_eq!(mode(&path), 0o600);
            std::fs::remove_file(&path).unwrap();
        }
        std::fs::write(&path, "before").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        create(&path, Existing::Append).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"before");
        create(&path, Existing::Truncate).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        assert_eq!(mode(&path), 0o640);
        create(Path::new("/dev/null"), Existing::Truncate).unwrap();
    }

    #[test]
    fn a_dangling_link_creates_its_target() {
        let dir = tempfile::tempdir().unwrap();
        let (link, target) = (dir.path().join("link"), dir.path().join("target"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        create(&link, Existing::Truncate).unwrap();
        assert!(target.is_file());
    }

    #[test]
    fn sockets_are_the_owners() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = listen(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        let taken = listen(&path).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }
}
