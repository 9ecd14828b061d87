//! Guest memory as devices reach it. Devices never have the [`GuestRam`].
//!
//! Every address and length comes from the guest. What is not RAM (a hole, a register, read-only memory) is
//! an error, as is any access while the gate is closed. A device reads a structure once, and checks its copy:
//! the guest may write at any time.

#![allow(
    unsafe_code,
    reason = "host I/O right into guest memory, by addresses and not by references"
)]

use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, iovec};
use thiserror::Error;
use vm_memory::{AtomicAccess, Bytes, GuestAddress, GuestMemoryBackend};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{GuestRam, NoRam};
use crate::units::Gpa;

/// Most iovecs in one request (`UIO_MAXIOV`).
const MAX_IOVECS: usize = 1024;

/// Why a device's access to guest memory is refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DmaError {
    /// Bus Master Enable is clear.
    #[error("the device is not enabled as a bus master")]
    NotBusMaster,
    /// There is no RAM.
    #[error(transparent)]
    NoRam(#[from] NoRam),
    /// Atomic accesses are aligned.
    #[error("{gpa} is not aligned")]
    Misaligned {
        /// The address.
        gpa: Gpa,
    },
}

/// Whether a function may reach memory: Bus Master Enable of its PCI Command register.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<AtomicBool>);

impl Gate {
    /// Opens or closes it. An access that has begun is completed.
    pub fn set(&self, open: bool) {
        self.0.store(open, Ordering::Release);
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// One function's access to guest memory. Clones share the gate.
#[derive(Clone, Debug)]
pub struct Dma {
    ram: GuestRam,
    gate: Gate,
}

impl Dma {
    /// To `ram`, with a closed gate.
    pub fn new(ram: GuestRam) -> Self {
        Self {
            ram,
            gate: Gate::default(),
        }
    }

    /// What opens and closes it.
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }

    fn ram(&self) -> Result<&GuestRam, DmaError> {
        if self.gate.is_open() {
            Ok(&self.ram)
        } else {
            Err(DmaError::NotBusMaster)
        }
    }

    /// Copies guest memory into `data`.
    ///
    /// # Errors
    /// If any of it cannot be reached; `data` may be partly filled then.
    pub fn read(&self, gpa: Gpa, data: &mut [u8]) -> Result<(), DmaError> {
        Ok(self.ram()?.read(gpa, data)?)
    }

    /// Copies `data` into guest memory.
    ///
    /// # Errors
    /// If any of it cannot be reached; part of it may be written then.
    pub fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), DmaError> {
        Ok(self.ram()?.write(gpa, data)?)
    }

    /// As [`GuestRam::release`].
    ///
    /// # Errors
    /// If the function is no bus master. What the host refuses stays as it is.
    pub fn release(&self, gpa: Gpa, len: u64) -> Result<u64, DmaError> {
        Ok(self.ram()?.release(gpa, len).unwrap_or(0))
    }

    /// Copies one structure out of guest memory.
    ///
    /// # Errors
    /// If any of it cannot be reached.
    pub fn read_obj<T: FromBytes + IntoBytes>(&self, gpa: Gpa) -> Result<T, DmaError> {
        let mut object = T::new_zeroed();
        self.read(gpa, object.as_mut_bytes())?;
        Ok(object)
    }

    /// Copies one structure into guest memory.
    ///
    /// # Errors
    /// If any of it cannot be reached; part of it may be written then.
    pub fn write_obj<T: IntoBytes + Immutable>(
        &self,
        gpa: Gpa,
        object: &T,
    ) -> Result<(), DmaError> {
        self.write(gpa, object.as_bytes())
    }

    /// Begins accesses of which all are made if one is: the gate is looked at now.
    ///
    /// # Errors
    /// If it is closed.
    pub fn begin(&self) -> Result<Access<'_>, DmaError> {
        self.ram().map(Access)
    }

    /// Reads a ring's index at once: with `Acquire`, what the guest wrote before it wrote the index is seen
    /// after this.
    ///
    /// # Errors
    /// If it cannot be reached, or is not aligned.
    pub fn load_u16(&self, gpa: Gpa, order: Ordering) -> Result<u16, DmaError> {
        self.begin()?.load(gpa, order).map(u16::from_le)
    }

    /// Writes a ring's index at once: with `Release`, a guest that sees it sees what was written before this.
    ///
    /// # Errors
    /// If it cannot be reached, or is not aligned.
    pub fn store_u16(&self, gpa: Gpa, value: u16, order: Ordering) -> Result<(), DmaError> {
        self.begin()?.store(gpa, value.to_le(), order)
    }

    /// As [`Dma::load_u16`].
    ///
    /// # Errors
    /// If it cannot be reached, or is not aligned.
    pub fn load_u32(&self, gpa: Gpa, order: Ordering) -> Result<u32, DmaError> {
        self.begin()?.load(gpa, order).map(u32::from_le)
    }

    /// As [`Dma::store_u16`].
    ///
    /// # Errors
    /// If it cannot be reached, or is not aligned.
    pub fn store_u32(&self, gpa: Gpa, value: u32, order: Ordering) -> Result<(), DmaError> {
        self.begin()?.store(gpa, value.to_le(), order)
    }

    /// Guest memory that the host's I/O reads from, such as the data of a guest's write to a disk.
    ///
    /// # Errors
    /// If any of it cannot be reached.
    pub fn readable(&self, gpa: Gpa, len: u64) -> Result<Readable, DmaError> {
        Ok(Readable(IoVecs::of(self, gpa, len)?))
    }

    /// Guest memory that the host's I/O writes to. Its pages count as written when that is done.
    ///
    /// # Errors
    /// If any of it cannot be reached.
    pub fn writable(&self, gpa: Gpa, len: u64) -> Result<Writable, DmaError> {
        Ok(Writable(IoVecs::of(self, gpa, len)?))
    }
}

/// Accesses that have begun, see [`Dma::begin`].
#[derive(Clone, Copy, Debug)]
pub struct Access<'a>(&'a GuestRam);

impl Access<'_> {
    /// As [`Dma::load_u16`].
    ///
    /// # Errors
    /// If it cannot be reached, or is not aligned.
    pub fn load_u64(&self, gpa: Gpa, order: Ordering) -> Result<u64, DmaError> {
        self.load(gpa, order).map(u64::from_le)
    }

    /// As [`Dma::store_u16`].
    ///
    /// # Errors
    /// If it cannot be reached, or is not aligned.
    pub fn store_u64(&self, gpa: Gpa, value: u64, order: Ordering) -> Result<(), DmaError> {
        self.store(gpa, value.to_le(), order)
    }

    #[inline]
    fn load<T: AtomicAccess>(&self, gpa: Gpa, order: Ordering) -> Result<T, DmaError> {
        let len = Self::aligned::<T>(gpa)?;
        let value = self.0.mmap().load(GuestAddress(gpa.0), order);
        Ok(value.map_err(|_| NoRam { gpa, len })?)
    }

    #[inline]
    fn store<T: AtomicAccess>(&self, gpa: Gpa, value: T, order: Ordering) -> Result<(), DmaError> {
        let len = Self::aligned::<T>(gpa)?;
        let stored = self.0.mmap().store(value, GuestAddress(gpa.0), order);
        stored.map_err(|_| NoRam { gpa, len })?;
        self.0.written().mark(gpa, len as u64);
        Ok(())
    }

    fn aligned<T>(gpa: Gpa) -> Result<usize, DmaError> {
        let len = size_of::<T>();
        match gpa.0.is_multiple_of(len as u64) {
            true => Ok(len),
            false => Err(DmaError::Misaligned { gpa }),
        }
    }
}

/// Ranges of guest memory as addresses of this process, in the order of the data.
pub struct IoVecs {
    dma: Dma,
    vecs: Vec<iovec>,
    /// The same in guest addresses.
    ranges: Vec<(Gpa, u64)>,
    len: u64,
}

// SAFETY: the addresses are of guest RAM, which `dma` keeps mapped, and which any thread may access.
unsafe impl Send for IoVecs {}

impl std::fmt::Debug for IoVecs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.ranges).finish()
    }
}

/// A system call that moves data by iovecs: descriptor, iovecs, how many, offset.
type Transfer = unsafe extern "C" fn(c_int, *const iovec, c_int, i64) -> isize;

impl IoVecs {
    /// One range.
    fn of(dma: &Dma, gpa: Gpa, len: u64) -> Result<Self, DmaError> {
        let mut vecs = Self {
            dma: dma.clone(),
            vecs: Vec::new(),
            ranges: Vec::new(),
            len: 0,
        };
        vecs.push(gpa, len)?;
        Ok(vecs)
    }

    /// Adds a range at the end.
    ///
    /// # Errors
    /// If any of it cannot be reached; nothing is added then.
    pub fn push(&mut self, gpa: Gpa, len: u64) -> Result<(), DmaError> {
        let count = usize::try_from(len).unwrap_or(usize::MAX);
        let missing = NoRam { gpa, len: count };
        let before = self.vecs.len();
        let ram = self.dma.ram()?;
        for slice in ram.mmap().get_slices(GuestAddress(gpa.0), count) {
            let Ok(slice) = slice else {
                self.vecs.truncate(before);
                return Err(missing.into());
            };
            self.vecs.push(iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
        if len > 0 {
            self.ranges.push((gpa, len));
            self.len += len;
        }
        Ok(())
    }

    /// How many bytes there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// For a request to the kernel, as long as this lives and is not changed. [`Writable::complete`] comes
    /// after one that writes to them.
    pub fn iovecs(&self) -> &[iovec] {
        &self.vecs
    }

    fn remove_all(&mut self) {
        self.vecs.clear();
        self.ranges.clear();
        self.len = 0;
    }

    /// Marks the pages of the first `bytes`.
    fn mark(&self, bytes: u64) {
        let mut left = bytes;
        for &(gpa, len) in &self.ranges {
            let part = len.min(left);
            self.dma.ram.written().mark(gpa, part);
            left -= part;
        }
    }

    /// Calls `part` for each guest range of up to `len` bytes of the data from `at` on, with its place in
    /// those bytes. Returns how many there are.
    fn copy(
        &self,
        at: u64,
        len: usize,
        mut part: impl FnMut(Gpa, Range<usize>) -> Result<(), NoRam>,
    ) -> Result<usize, DmaError> {
        let (mut skip, mut done) = (at, 0);
        for &(gpa, range) in &self.ranges {
            let before = skip.min(range);
            skip -= before;
            let left = usize::try_from(range - before).unwrap_or(usize::MAX);
            let count = left.min(len - done);
            if count > 0 {
                part(Gpa(gpa.0 + before), done..done + count)?;
                done += count;
            }
        }
        Ok(done)
    }

    /// Calls `call` until all is transferred, or there is no more; how many bytes were.
    fn transfer(&self, call: Transfer, fd: BorrowedFd<'_>, offset: u64) -> (u64, io::Result<()>) {
        let mut done = 0_u64;
        // The first iovec that is not done, and how much of it is.
        let (mut next, mut skip) = (0, 0);
        while let Some(first) = self.vecs.get(next) {
            let Ok(at) = i64::try_from(offset.saturating_add(done)) else {
                return (done, Err(io::ErrorKind::InvalidInput.into()));
            };
            let rest = iovec {
                iov_base: first.iov_base.wrapping_byte_add(skip),
                iov_len: first.iov_len - skip,
            };
            // A request that stopped within an iovec goes on with the rest of that one alone.
            let (vecs, count) = if skip > 0 {
                (&raw const rest, 1)
            } else {
                let left = &self.vecs[next..];
                (left.as_ptr(), left.len().min(MAX_IOVECS))
            };
            let count = c_int::try_from(count).expect("at most MAX_IOVECS");
            // SAFETY: each iovec is a range of guest RAM, which `dma` keeps mapped and no reference points
            // to; the array outlives the call.
            let moved = unsafe { call(fd.as_raw_fd(), vecs, count, at) };
            match usize::try_from(moved) {
                Ok(0) => return (done, Ok(())),
                Ok(moved) => {
                    done += moved as u64;
                    skip += moved;
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return (done, Err(error));
                    }
                }
            }
            while let Some(vec) = self.vecs.get(next).filter(|vec| vec.iov_len <= skip) {
                skip -= vec.iov_len;
                next += 1;
            }
        }
        (done, Ok(()))
    }
}

/// Guest memory that the host's I/O reads from: a list of ranges, in the order of the data.
#[derive(Debug)]
pub struct Readable(IoVecs);

impl Deref for Readable {
    type Target = IoVecs;

    fn deref(&self) -> &IoVecs {
        &self.0
    }
}

impl DerefMut for Readable {
    fn deref_mut(&mut self) -> &mut IoVecs {
        &mut self.0
    }
}

impl Readable {
    /// Writes all of it to a file from `offset` on. Returns how many bytes it took.
    ///
    /// # Errors
    /// What pwritev(2) fails with; part may have been written then.
    pub fn write_to(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<u64> {
        let (done, result) = self.0.transfer(libc::pwritev, file, offset);
        result.map(|()| done)
    }

    /// Writes all of it at once, as a message of a packet interface.
    ///
    /// # Errors
    /// What writev(2) fails with, or that it took a part. Nothing is written after an error of writev(2),
    /// such as `InvalidInput` for more ranges than it takes.
    pub fn write_message(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let vecs = &self.0.vecs;
        let count = c_int::try_from(vecs.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: each iovec is a range of guest RAM, which `dma` keeps mapped and no reference points to;
        // the array outlives the call.
        let written = unsafe { libc::writev(fd.as_raw_fd(), vecs.as_ptr(), count) };
        match u64::try_from(written) {
            Ok(written) if written == self.0.len => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// Copies its bytes from `at` on into `data`. Returns how many there were; fewer than `data` has at its
    /// end.
    ///
    /// # Errors
    /// If any of it cannot be reached; `data` may be partly filled then.
    pub fn copy_to(&self, at: u64, data: &mut [u8]) -> Result<usize, DmaError> {
        let ram = &self.0.dma.ram;
        let len = data.len();
        let part = |gpa, place: Range<usize>| ram.read(gpa, &mut data[place]);
        self.0.copy(at, len, part)
    }

    /// Removes all ranges, and keeps the allocation for the next request.
    pub fn clear(&mut self) {
        self.0.remove_all();
    }
}

/// Guest memory that the host's I/O writes to: a list of ranges, in the order of the data. Pages of ranges
/// that are still in it when it is dropped count as written, since a request that failed may have written
/// some.
#[derive(Debug)]
pub struct Writable(IoVecs);

impl Deref for Writable {
    type Target = IoVecs;

    fn deref(&self) -> &IoVecs {
        &self.0
    }
}

impl DerefMut for Writable {
    fn deref_mut(&mut self) -> &mut IoVecs {
        &mut self.0
    }
}

impl Writable {
    /// The request is done and has written the first `bytes`: their pages are marked. Removes all ranges, and
    /// keeps the allocation for the next request.
    pub fn complete(&mut self, bytes: u64) {
        self.0.mark(bytes);
        self.0.remove_all();
    }

    /// Fills it from a file from `offset` on, and completes. Returns how many bytes there were; fewer at the
    /// file's end.
    ///
    /// # Errors
    /// What preadv(2) fails with; part may have been read then.
    pub fn read_from(&mut self, file: BorrowedFd<'_>, offset: u64) -> io::Result<u64> {
        let (done, result) = self.0.transfer(libc::preadv, file, offset);
        self.complete(if result.is_ok() { done } else { u64::MAX });
        result.map(|()| done)
    }

    /// Copies `data` over its bytes from `at` on, and marks their pages. Returns how many there were; fewer
    /// than `data` has at its end.
    ///
    /// # Errors
    /// If any of it cannot be reached; part may have been copied then.
    pub fn copy_from(&mut self, at: u64, data: &[u8]) -> Result<usize, DmaError> {
        let ram = &self.0.dma.ram;
        let part = |gpa, place: Range<usize>| ram.write(gpa, &data[place]);
        self.0.copy(at, data.len(), part)
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        self.complete(u64::MAX);
    }
}

#[cfg(test)]
#[path = "dma_tests.rs"]
mod tests;
