//! The image: requests as system calls, which block.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc::{iovec, off_t};
use nix::sys::uio::pwritev;

use super::bounce::{self, Bounce, zeroes};
use super::error::is;
use super::{Cache, Doing, RawError};
use crate::block::lock::release;
use crate::block::threads::Serve;
use crate::block::{Info, Operation};
use crate::memory::{Readable, Writable};
use crate::sys::lock;

/// Zero buffers of one pwritev(2), which then writes at most 1 MiB.
const MAX_ZEROES: usize = 16;

/// An open image.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// What does not change.
    fixed: Info,
    /// Bytes of the disk, which may be resized.
    pub(super) size: AtomicU64,
    cache: Cache,
    /// What addresses and lengths of buffers must be multiples of; 1 without direct I/O.
    unit: usize,
    /// A flush has failed.
    failed: AtomicBool,
    /// Held during fdatasync(2): the kernel reports lost writes to the first caller alone, and the next one
    /// must know.
    flushing: Mutex<()>,
    #[cfg(test)]
    pub(super) faults: super::tests::Faults,
}

impl Drop for Image {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that is being started has it until its program runs.
        release(self.file.as_fd());
    }
}

/// A system call, for tests that make it fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Write,
    Punch,
    ZeroRange,
    Sync,
    Truncate,
}

impl Image {
    pub(super) fn new(file: File, path: PathBuf, info: Info, cache: Cache, unit: usize) -> Self {
        Self {
            file,
            path,
            fixed: info,
            size: AtomicU64::new(info.size),
            cache,
            unit,
            failed: AtomicBool::new(false),
            flushing: Mutex::new(()),
            #[cfg(test)]
            faults: Default::default(),
        }
    }

    /// What the disk is now.
    pub(super) fn info(&self) -> Info {
        Info {
            size: self.size(),
            ..self.fixed
        }
    }

    /// Bytes of the disk.
    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn run(&self, operation: &mut Operation, bounce: &mut Bounce) -> Result<(), RawError> {
        match operation {
            Operation::Read { offset, to } => self.read(*offset, to, bounce),
            Operation::Write { offset, from } => {
                self.change(Doing::Write, *offset, from.len(), || {
                    self.write(*offset, from, bounce)
                })
            }
            Operation::Flush => self.flush(),
            Operation::Discard { offset, len } => {
                self.change(Doing::Discard, *offset, *len, || {
                    self.discard(*offset, *len)
                })
            }
            Operation::WriteZeroes { offset, len, unmap } => {
                self.change(Doing::Zero, *offset, *len, || {
                    self.write_zeroes(*offset, *len, *unmap)
                })
            }
        }
    }

    /// Refuses what is not of the disk; a write would make the file longer.
    fn check(&self, offset: u64, len: u64) -> Result<(), RawError> {
        let end = offset.checked_add(len);
        let block = self.fixed.logical_block.into();
        let whole = offset.is_multiple_of(block) && len.is_multiple_of(block);
        match whole && end.is_some_and(|end| end <= self.size()) {
            true => Ok(()),
            false => Err(RawError::Outside {
                path: self.path.clone(),
                offset,
                len,
            }),
        }
    }

    fn read(&self, offset: u64, to: &mut Writable, bounce: &mut Bounce) -> Result<(), RawError> {
        let len = to.len();
        self.check(offset, len)?;
        let result = match self.takes(to.iovecs()) {
            true => to.read_from(self.file.as_fd(), offset),
            false => self.read_by(bounce.bytes(), offset, to),
        };
        match result {
            Ok(done) if done == len => Ok(()),
            Ok(_) => Err(self.truncated()),
            // Direct I/O beyond the end of a file whose last block is not whole.
            Err(_) if self.is_truncated() => Err(self.truncated()),
            Err(source) => Err(RawError::request(self.path.clone(), Doing::Read, source)),
        }
    }

    fn truncated(&self) -> RawError {
        RawError::Truncated {
            path: self.path.clone(),
            size: self.size(),
        }
    }

    fn is_truncated(&self) -> bool {
        let metadata = self.file.metadata();
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() < self.size())
    }

    /// Whether the kernel takes these buffers as they are.
    fn takes(&self, iovecs: &[iovec]) -> bool {
        let fits = |number: usize| number.is_multiple_of(self.unit);
        iovecs
            .iter()
            .all(|vec| fits(vec.iov_base.addr()) && fits(vec.iov_len))
    }

    /// Reads by `buffer`. Returns how many bytes there were; fewer at the file's end.
    fn read_by(&self, buffer: &mut [u8], offset: u64, to: &mut Writable) -> io::Result<u64> {
        let len = to.len();
        for done in (0..len).step_by(bounce::LEN) {
            let piece = piece(buffer, len - done);
            match self.file.read_exact_at(piece, offset + done) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(done),
                result => result?,
            }
            to.copy_from(done, piece).map_err(io::Error::other)?;
        }
        // The pages of the copies are marked.
        to.complete(0);
        Ok(len)
    }

    /// Runs a request that changes the image.
    fn change(
        &self,
        doing: Doing,
        offset: u64,
        len: u64,
        run: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), RawError> {
        let path = || self.path.clone();
        if self.fixed.read_only {
            return Err(RawError::ReadOnly {
                path: path(),
                doing,
            });
        }
        self.check(offset, len)?;
        self.usable()?;
        if len > 0 {
            run().map_err(|source| RawError::request(path(), doing, source))?;
        }
        match self.cache {
            Cache::Writethrough => self.sync(),
            Cache::None | Cache::Writeback | Cache::Unsafe => Ok(()),
        }
    }

    fn write(&self, offset: u64, from: &Readable, bounce: &mut Bounce) -> io::Result<()> {
        self.before(Call::Write)?;
        if self.takes(from.iovecs()) {
            let done = from.write_to(self.file.as_fd(), offset)?;
            return match done == from.len() {
                true => Ok(()),
                false => Err(io::ErrorKind::WriteZero.into()),
            };
        }
        let (buffer, len) = (bounce.bytes(), from.len());
        for done in (0..len).step_by(bounce::LEN) {
            let piece = piece(buffer, len - done);
            from.copy_to(done, piece).map_err(io::Error::other)?;
            self.file.write_all_at(piece, offset + done)?;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.fixed.discard {
            self.punch(offset, len)?;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if unmap && self.fixed.discard && self.punch(offset, len)? {
            return Ok(());
        }
        let zeroed = self.allocate(
            Call::ZeroRange,
            FallocateFlags::FALLOC_FL_ZERO_RANGE,
            offset,
            len,
        );
        if zeroed? {
            return Ok(());
        }
        self.write_zero_buffers(offset, len)
    }

    /// Makes a hole, which reads as zeroes. `false`: the file system has none.
    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE;
        self.allocate(Call::Punch, mode, offset, len)
    }

    /// fallocate(2) with `mode` that keeps the file's size. `false`: the file system does not have it, and
    /// nothing was done.
    fn allocate(
        &self,
        call: Call,
        mode: FallocateFlags,
        offset: u64,
        len: u64,
    ) -> io::Result<bool> {
        let mode = mode | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let run = || {
            self.before(call)?;
            fallocate(&self.file, mode, at(offset), at(len))
        };
        match uninterrupted(run) {
            Ok(()) => Ok(true),
            // EINVAL: not whole blocks of a block device.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn write_zero_buffers(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let mut left = usize::try_from(len - done).unwrap_or(usize::MAX);
            let buffers: [_; MAX_ZEROES] = std::array::from_fn(|_| {
                let count = left.min(zeroes().len());
                left -= count;
                IoSlice::new(&zeroes()[..count])
            });
            match uninterrupted(|| pwritev(&self.file, &buffers, at(offset + done)))? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => done += written as u64,
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), RawError> {
        self.usable()?;
        match self.writes_back() {
            true => self.sync(),
            false => Ok(()),
        }
    }

    /// Whether there may be something to flush, and someone who wants it.
    pub(super) fn writes_back(&self) -> bool {
        !self.fixed.read_only && self.cache != Cache::Unsafe
    }

    pub(super) fn usable(&self) -> Result<(), RawError> {
        match self.failed.load(Ordering::Acquire) {
            false => Ok(()),
            true => Err(RawError::Failed {
                path: self.path.clone(),
            }),
        }
    }

    /// Whether a flush has failed, so that data may be lost.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// All that was written reaches the disk.
    pub(super) fn sync(&self) -> Result<(), RawError> {
        let _flushing = lock(&self.flushing);
        self.usable()?;
        let run = || {
            self.before(Call::Sync)?;
            nix::unistd::fdatasync(&self.file)
        };
        uninterrupted(run).map_err(|errno| {
            // Pages that could not be written count as clean now.
            self.failed.store(true, Ordering::Release);
            RawError::Flush {
                path: self.path.clone(),
                source: errno.into(),
            }
        })
    }

    /// Fails if a test wants `call` to.
    #[cfg(test)]
    pub(super) fn before(&self, call: Call) -> Result<(), Errno> {
        self.faults.take(call)
    }

    #[cfg(not(test))]
    pub(super) fn before(&self, _call: Call) -> Result<(), Errno> {
        Ok(())
    }
}

impl Serve for Image {
    type Scratch = Bounce;

    fn serve(&self, operation: &mut Operation, bounce: &mut Bounce) -> io::Result<()> {
        Ok(self.run(operation, bounce)?)
    }
}

/// The part of `buffer` for the next of `left` bytes.
fn piece(buffer: &mut [u8], left: u64) -> &mut [u8] {
    let len = usize::try_from(left).unwrap_or(usize::MAX);
    let len = len.min(buffer.len());
    &mut buffer[..len]
}

/// For the kernel. What is within a file is less than 2^63 (`MAX_LFS_FILESIZE`).
fn at(offset: u64) -> off_t {
    offset.cast_signed()
}

pub(super) fn uninterrupted<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// What buffers for direct I/O of blocks of `block` bytes must be aligned to, by the file's first block: 512
/// or 4096 bytes. None: the file takes no I/O of such blocks.
///
/// # Errors
/// What pread(2) fails with.
pub(super) fn direct_unit(file: &File, block: u32) -> io::Result<Option<usize>> {
    let sector = 512_usize;
    let mut bounce = Bounce::default();
    // Single sectors at 512 bytes behind a page's start, and at one; where there are none, pages.
    let all = [(sector, sector, sector), (4096, 0, sector), (4096, 0, 4096)];
    let blocks = if block < 4096 { &all[..2] } else { &all };
    for &(unit, start, len) in blocks {
        let buffer = &mut bounce.bytes()[start..start + len];
        match file.read_exact_at(buffer, 0) {
            Ok(()) => return Ok(Some(unit)),
            Err(e) if is(&e, Errno::EINVAL) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}
