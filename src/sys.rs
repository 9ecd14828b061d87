//! System calls that neither std nor nix offers without unsafe code.

#![allow(
    unsafe_code,
    reason = "descriptors given by number on the command line, what happens between fork and exec, ioctls"
)]

pub(crate) mod affinity;
mod bell;
pub(crate) mod fatal;
pub(crate) mod listener;
pub(crate) mod private;
mod thread;
pub(crate) mod tun;
mod wait;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::Signal;

pub(crate) use bell::{Bell, Readiness};
pub(crate) use thread::{Role, spawn, spawn_scoped};
pub(crate) use wait::wait;

/// A descriptor that this process was started with: its number, and the device and inode of what is behind
/// it. The number alone would not do, since it may have been closed and given to something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Inherited {
    fd: RawFd,
    device: u64,
    inode: u64,
}

/// /dev/net/tun, of which each open file is another interface (Documentation/admin-guide/devices.txt).
const TUN: u64 = libc::makedev(10, 200);

static INHERITED: Mutex<Vec<Inherited>> = Mutex::new(Vec::new());

fn recorded() -> MutexGuard<'static, Vec<Inherited>> {
    lock(&INHERITED)
}

/// Locks a mutex, even a poisoned one: the panic has been reported and ends the VM, and until then a
/// half-finished update does less harm than a second panic.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new eventfd whose reads do not block.
///
/// # Errors
/// If the process has no descriptors left.
pub(crate) fn eventfd() -> io::Result<EventFd> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    Ok(EventFd::from_flags(flags)?)
}

// tty_ioctl(4).
nix::ioctl_read_bad!(get_window_size, libc::TIOCGWINSZ, libc::winsize);

/// How many characters a terminal shows in a row, and how many rows. None: it is no terminal, or does not
/// know.
pub(crate) fn terminal_size(fd: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel writes a winsize, which outlives the call.
    unsafe { get_window_size(fd.as_raw_fd(), &raw mut size) }.ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Records the sockets, pipes and tap devices that this process was started with: [`inherited`] duplicates no
/// others. To be called before the program opens anything.
pub(crate) fn record_inherited() {
    // Without /proc there are none to be named.
    let entries = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.for_each(record);
}

/// Records descriptor `fd`, if it is one of these.
pub(crate) fn record(fd: RawFd) {
    if let Some(found) = duplicate(fd).ok().and_then(|own| identity(fd, &own)) {
        recorded().push(found);
    }
}

/// What is behind `own`, a duplicate of `fd`, if that is a socket, a pipe or a tap device.
fn identity(fd: RawFd, own: &OwnedFd) -> Option<Inherited> {
    let metadata = File::from(own.try_clone().ok()?).metadata().ok()?;
    let kind = metadata.file_type();
    let is_tap = kind.is_char_device() && metadata.rdev() == TUN;
    (kind.is_socket() || kind.is_fifo() || is_tap).then(|| Inherited {
        fd,
        device: metadata.dev(),
        inode: metadata.ino(),
    })
}

/// A duplicate of the socket, pipe or tap device numbered `fd`, which this process was started with.
///
/// # Errors
/// If it was started with none of this number: no user can name its other descriptors, such as
/// guest memory and KVM.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    let own = duplicate(fd)?;
    match identity(fd, &own) {
        Some(found) if recorded().contains(&found) => Ok(own),
        _ => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "descriptor {fd} is no socket, pipe or tap device that this process was started with"
            ),
        )),
    }
}

/// Has the kernel kill the process that `command` starts when this thread ends, in whatever way: a VM is not
/// left behind by a program that was killed. To be started by a thread that lives as long as the VM is to.
pub fn end_with_parent(command: &mut Command) {
    let parent = nix::unistd::getpid();
    let before_exec = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        match nix::unistd::getppid() == parent {
            true => Ok(()),
            // The parent ended before the kernel was asked.
            false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    };
    // SAFETY: the closure makes two system calls (prctl, getppid), allocates nothing and takes no lock.
    unsafe { command.pre_exec(before_exec) };
}

/// Reads and writes of `fd`, and of all descriptors of the same open file, do not block.
///
/// # Errors
/// What fcntl(2) fails with.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Gives `fd` to the process that `command` starts, under the number that is returned. It stays open here
/// until `command` is dropped.
pub(crate) fn hand_on(command: &mut Command, fd: OwnedFd) -> RawFd {
    let number = fd.as_raw_fd();
    let before_exec = move || {
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(())
    };
    // SAFETY: the closure makes one system call (fcntl), allocates nothing and takes no lock.
    unsafe { command.pre_exec(before_exec) };
    number
}

/// A duplicate of the descriptor numbered `fd`. It is closed on exec.
///
/// # Errors
/// If there is no such descriptor, or no more can be had.
fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
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

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        use std::os::unix::process::ExitStatusExt;

        let mut child = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            end_with_parent(command.arg("600"));
            command.spawn().unwrap()
        })
        .join()
        .unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn only_sockets_and_pipes_from_the_start_are_given_away() {
        use std::os::fd::AsRawFd;

        let (before, _other_end) = std::io::pipe().unwrap();
        record_inherited();
        record(File::open("/dev/null").unwrap().as_raw_fd());
        inherited(before.as_raw_fd()).unwrap();
        let (after, _other_end) = std::io::pipe().unwrap();
        let file = File::open("/proc/self/exe").unwrap();
        for fd in [after.as_raw_fd(), file.as_raw_fd()] {
            let e = inherited(fd).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::PermissionDenied);
        }
        let e = inherited(1 << 20).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EBADF));
        // The number goes to another pipe.
        let number = before.as_raw_fd();
        drop(before);
        let mut later = Vec::new();
        for _ in 0..64 {
            let (reader, writer) = std::io::pipe().unwrap();
            later.push((reader, writer));
        }
        assert!(inherited(number).is_err());
    }
}
