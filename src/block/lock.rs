//! Locks on images, which QEMU and its tools understand: shared locks on single bytes that belong to the open
//! file description (`F_OFD_SETLK`, fcntl(2)), so that closing another descriptor of the file keeps them.
//!
//! Byte 100 + n says "I use permission n", byte 200 + n "others must not use it" (QEMU block/file-posix.c,
//! `RAW_LOCK_PERM_BASE` and `RAW_LOCK_SHARED_BASE`). Nothing is ever locked exclusively: who wants the image
//! takes its own locks, and then asks who holds those that contradict them. So of two that come at the same
//! time both may fail, and never both succeed.

use std::io;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_RDLCK, F_UNLCK, F_WRLCK, SEEK_SET, c_int, flock, off_t};
use thiserror::Error;

/// "I use" for permission 0.
const USED: off_t = 100;
/// "Others must not use" for permission 0.
const UNSHARED: off_t = 200;
/// Permission to read data that are consistent (`BLK_PERM_CONSISTENT_READ`).
const READ: off_t = 0;
/// Permission to write (`BLK_PERM_WRITE`).
const WRITE: off_t = 1;

/// Permission to change the size (`BLK_PERM_RESIZE`).
const RESIZE: off_t = 3;

/// What an image is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// It is read, and must not change.
    Read,
    /// It is read and written, by nobody else.
    Write,
}

impl Access {
    /// The bytes that say so.
    fn own(self) -> &'static [off_t] {
        match self {
            Self::Read => &[USED + READ, UNSHARED + WRITE],
            Self::Write => &[USED + READ, USED + WRITE, UNSHARED + WRITE],
        }
    }

    /// The bytes that contradict them when others have locked them.
    fn opposed(self) -> &'static [(off_t, Conflict)] {
        const WRITTEN: (off_t, Conflict) = (USED + WRITE, Conflict::Written);
        const HIDDEN: (off_t, Conflict) = (UNSHARED + READ, Conflict::Exclusive);
        match self {
            Self::Read => &[WRITTEN, HIDDEN],
            Self::Write => &[WRITTEN, (UNSHARED + WRITE, Conflict::InUse), HIDDEN],
        }
    }
}

/// What another process does with an image.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Conflict {
    /// It writes to it.
    #[error("open for writing")]
    Written,
    /// It reads it, and does not let others write.
    #[error("open, and does not let others write to it")]
    InUse,
    /// It does not let others read.
    #[error("locked, and does not let others use it")]
    Exclusive,
    /// It relies on its size, or changes it.
    #[error("open, and does not let others change its size")]
    Sized,
}

/// Why an image was not locked.
#[derive(Debug, Error)]
pub(super) enum LockError {
    /// Another process uses it.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(io::Error),
}

impl From<Errno> for LockError {
    fn from(errno: Errno) -> Self {
        Self::Kernel(errno.into())
    }
}

/// Locks an image. The file must be open for reading.
///
/// # Errors
/// If another process uses it in a way that contradicts `access`, or the file system has no locks. It is not
/// locked then.
pub(super) fn take(file: BorrowedFd<'_>, access: Access) -> Result<(), LockError> {
    let taken = try_take(file, access);
    if taken.is_err() {
        release(file);
    }
    taken
}

fn try_take(file: BorrowedFd<'_>, access: Access) -> Result<(), LockError> {
    for &byte in access.own() {
        match set(file, F_RDLCK, byte) {
            // Somebody has an exclusive lock on it, which QEMU never takes.
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(Conflict::Exclusive.into()),
            result => result?,
        }
    }
    for &(byte, conflict) in access.opposed() {
        if is_locked_by_others(file, byte)? {
            return Err(conflict.into());
        }
    }
    Ok(())
}

/// Takes back all locks of [`take`].
pub(super) fn release(file: BorrowedFd<'_>) {
    for &byte in Access::Write.own() {
        // Unlocking what is locked, or is not, does not fail where locking did not.
        let _unlocked = set(file, F_UNLCK, byte);
    }
}

/// The right to change an image's size, until it is dropped.
#[derive(Debug)]
pub(super) struct Resizing<'a>(BorrowedFd<'a>);

impl<'a> Resizing<'a> {
    const OWN: [off_t; 2] = [USED + RESIZE, UNSHARED + RESIZE];

    /// Takes it for an image that was locked by [`take`].
    ///
    /// # Errors
    /// If another process relies on the size or changes it, or the kernel refuses.
    pub(super) fn begin(file: BorrowedFd<'a>) -> Result<Self, LockError> {
        let resizing = Self(file);
        for byte in Self::OWN {
            match set(file, F_RDLCK, byte) {
                Err(Errno::EAGAIN | Errno::EACCES) => return Err(Conflict::Sized.into()),
                result => result?,
            }
        }
        for byte in Self::OWN {
            if is_locked_by_others(file, byte)? {
                return Err(Conflict::Sized.into());
            }
        }
        Ok(resizing)
    }
}

impl Drop for Resizing<'_> {
    fn drop(&mut self) {
        for byte in Self::OWN {
            // As in `release`.
            let _unlocked = set(self.0, F_UNLCK, byte);
        }
    }
}

fn set(file: BorrowedFd<'_>, kind: c_int, byte: off_t) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&of_byte(kind, byte))).map(drop)
}

/// Whether another open file description has a lock of any kind on `byte`: whether an exclusive one of ours
/// would fail.
fn is_locked_by_others(file: BorrowedFd<'_>, byte: off_t) -> Result<bool, Errno> {
    let mut lock = of_byte(F_WRLCK, byte);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(c_int::from(lock.l_type) != F_UNLCK)
}

fn of_byte(kind: c_int, byte: off_t) -> flock {
    flock {
        l_type: i16::try_from(kind).expect("F_RDLCK, F_WRLCK and F_UNLCK are 0 to 2"),
        l_whence: i16::try_from(SEEK_SET).expect("SEEK_SET is 0"),
        l_start: byte,
        l_len: 1,
        // Zero for locks of open file descriptions.
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::{BufRead, BufReader, Write};
    use std::os::fd::AsFd;
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    fn open(path: &Path) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true).open(path).unwrap()
    }

    /// The bytes of `path` that anyone has locked.
    fn locked(path: &Path) -> Vec<off_t> {
        let file = open(path);
        let is_locked = |byte: &off_t| is_locked_by_others(file.as_fd(), *byte).unwrap();
        (0..300).filter(is_locked).collect()
    }

    fn conflict(result: Result<(), LockError>) -> Option<Conflict> {
        match result {
            Ok(()) => None,
            Err(LockError::Conflict(conflict)) => Some(conflict),
            Err(e) => panic!("{e}"),
        }
    }

    #[test]
    fn the_bytes_are_those_of_qemu() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let file = open(image.path());
        for (access, bytes) in [
            (Access::Read, &[100, 201][..]),
            (Access::Write, &[100, 101, 201]),
        ] {
            take(file.as_fd(), access).unwrap();
            assert_eq!(locked(image.path()), bytes);
            // Again, and by a descriptor that is closed.
            take(file.try_clone().unwrap().as_fd(), access).unwrap();
            drop(open(image.path()));
            assert_eq!(locked(image.path()), bytes);
            release(file.as_fd());
            assert!(locked(image.path()).is_empty());
        }
        take(file.as_fd(), Access::Write).unwrap();
        drop(file);
        // A process that another test starts has the file until it runs its program.
        while !locked(image.path()).is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_writer_is_alone_and_readers_are_not() {
        use Access::{Read, Write};
        let image = tempfile::NamedTempFile::new().unwrap();
        for (first, second, refused) in [
            (Read, Read, None),
            (Read, Write, Some(Conflict::InUse)),
            (Write, Read, Some(Conflict::Written)),
            (Write, Write, Some(Conflict::Written)),
        ] {
            let (one, other) = (open(image.path()), open(image.path()));
            take(one.as_fd(), first).unwrap();
            let before = locked(image.path());
            let result = take(other.as_fd(), second);
            assert_eq!(conflict(result), refused, "{first:?} {second:?}");
            if refused.is_some() {
                // Nothing is left of what was refused: the first can do without the second.
                assert_eq!(locked(image.path()), before);
                assert!(!is_locked_by_others(one.as_fd(), 100).unwrap());
                release(one.as_fd());
                take(other.as_fd(), second).unwrap();
            }
        }
    }

    /// Each byte that another program may have locked, in either way.
    #[test]
    fn bytes_of_others_are_understood() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let other = open(image.path());
        let own = open(image.path());
        for (kind, byte, reads, writes) in [
            (F_RDLCK, 100, None, None),
            (
                F_RDLCK,
                101,
                Some(Conflict::Written),
                Some(Conflict::Written),
            ),
            (F_RDLCK, 102, None, None),
            (F_RDLCK, 103, None, None),
            (
                F_RDLCK,
                200,
                Some(Conflict::Exclusive),
                Some(Conflict::Exclusive),
            ),
            (F_RDLCK, 201, None, Some(Conflict::InUse)),
            (F_RDLCK, 202, None, None),
            (F_RDLCK, 203, None, None),
            (
                F_WRLCK,
                100,
                Some(Conflict::Exclusive),
                Some(Conflict::Exclusive),
            ),
            (F_WRLCK, 0, None, None),
        ] {
            set(other.as_fd(), kind, byte).unwrap();
            for (access, expected) in [(Access::Read, reads), (Access::Write, writes)] {
                let result = take(own.as_fd(), access);
                assert_eq!(conflict(result), expected, "{kind} {byte} {access:?}");
                release(own.as_fd());
            }
            set(other.as_fd(), F_UNLCK, byte).unwrap();
        }
    }

    #[test]
    fn the_size_is_changed_by_one_and_by_nobody_who_is_not_let() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let (own, other) = (open(image.path()), open(image.path()));
        take(own.as_fd(), Access::Write).unwrap();
        let before = locked(image.path());
        let resizing = Resizing::begin(own.as_fd()).unwrap();
        assert_eq!(locked(image.path()), [100, 101, 103, 201, 203]);
        drop(resizing);
        assert_eq!(locked(image.path()), before);
        for (kind, byte) in [(F_RDLCK, 103), (F_RDLCK, 203), (F_WRLCK, 203)] {
            set(other.as_fd(), kind, byte).unwrap();
            let refused = Resizing::begin(own.as_fd()).unwrap_err();
            assert!(
                matches!(refused, LockError::Conflict(Conflict::Sized)),
                "{kind} {byte}"
            );
            set(other.as_fd(), F_UNLCK, byte).unwrap();
            assert_eq!(locked(image.path()), before);
        }
        set(other.as_fd(), F_RDLCK, 102).unwrap();
        Resizing::begin(own.as_fd()).unwrap();
    }

    #[test]
    fn of_two_at_the_same_time_at_most_one_writes() {
        let image = tempfile::NamedTempFile::new().unwrap();
        for _ in 0..200 {
            let files = [open(image.path()), open(image.path())];
            let taken = std::thread::scope(|scope| {
                let threads = files.each_ref().map(|file| {
                    scope.spawn(|| usize::from(take(file.as_fd(), Access::Write).is_ok()))
                });
                threads.map(|thread| thread.join().unwrap())
            });
            assert!(taken.iter().sum::<usize>() <= 1);
        }
    }

    fn qemu(program: &str, image: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).arg(image);
        command
    }

    /// Only where qemu-img and qemu-io are installed.
    #[test]
    fn qemu_respects_the_locks() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 16).unwrap();
        let copy = tempfile::NamedTempFile::new().unwrap();
        // `qemu-img compare` and `qemu-io -r` would share the image with a writer.
        let convert = ["convert", "-f", "raw", "-O", "raw"];
        let mut reads = qemu("qemu-img", image.path(), &convert);
        reads.arg(copy.path());
        let mut writes = qemu("qemu-io", image.path(), &["-f", "raw", "-c", "write 0 512"]);
        if reads.output().is_err() || writes.output().is_err() {
            return;
        }
        let file = open(image.path());
        for (own, qemu_reads, qemu_writes) in [
            (None, true, true),
            (Some(Access::Read), true, false),
            (Some(Access::Write), false, false),
        ] {
            if let Some(access) = own {
                take(file.as_fd(), access).unwrap();
            }
            for (command, allowed) in [(&mut reads, qemu_reads), (&mut writes, qemu_writes)] {
                let output = command.output().unwrap();
                assert_eq!(output.status.success(), allowed, "{own:?} {output:?}");
            }
            release(file.as_fd());
        }
    }

    #[test]
    fn the_locks_of_qemu_are_respected() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 16).unwrap();
        let mut command = qemu("qemu-io", image.path(), &["-f", "raw"]);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let Ok(mut writer) = command.spawn() else {
            return;
        };
        let mut stdin = writer.stdin.take().unwrap();
        stdin.write_all(b"write 0 512\n").unwrap();
        let output = BufReader::new(writer.stdout.take().unwrap());
        let mut lines = output.lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("wrote 512/512")));
        let file = open(image.path());
        for access in [Access::Read, Access::Write] {
            let result = take(file.as_fd(), access);
            assert_eq!(conflict(result), Some(Conflict::Written));
        }
        drop(stdin);
        assert!(writer.wait().unwrap().success());
        take(file.as_fd(), Access::Write).unwrap();
    }
}
