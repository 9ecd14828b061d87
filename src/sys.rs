//! System calls that neither std nor nix offers without unsafe code.

#![allow(
    unsafe_code,
    reason = "descriptors given by number on the command line"
)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// A duplicate of the descriptor numbered `fd`, which this process inherited. It is closed on exec.
///
/// # Errors
/// If there is no such descriptor, or no more can be had.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes and returns numbers, whatever is behind them.
    let new = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if new < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_open_cannot_be_duplicated() {
        let e = duplicate(1 << 20).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EBADF));
        duplicate(0).unwrap();
    }
}
