//! Disks: what keeps a guest's blocks. Controllers of any kind lead to a [`Backend`], which knows none.
//!
//! ```text
//!   controller ── submit(Request) ──► Backend ── threads ──► the image
//!   controller ◄─ completed() ◄── bell (eventfd) ◄──┘
//! ```
//!
//! Requests complete in any order. One that is to come after others is submitted when those have completed: a
//! flush covers the writes that had completed before it was submitted, as in all controllers' rules.

mod control;
mod counters;
mod lock;
pub mod raw;
pub mod scratch;
pub mod store;
#[cfg(test)]
pub(crate) mod testing;
mod threads;
pub mod throttle;

use std::io;
use std::sync::Arc;

use nix::sys::eventfd::EventFd;

use crate::memory::{Readable, Writable};

pub use control::{DiskReport, DiskRequest, Resize, ThrottleChange, ThrottleReport};
pub use counters::{Counted, DiskCounters};

/// The unit of addresses and sizes of a disk, in bytes.
pub const SECTOR: u64 = 512;

/// What a controller tells its guest about a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Bytes, a multiple of `logical_block`.
    pub size: u64,
    /// Writes, discards and write zeroes fail.
    pub read_only: bool,
    /// A write has reached the disk when it completes, without a flush.
    pub write_through: bool,
    /// Discarded blocks are given back to the host.
    pub discard: bool,
    /// Bytes of the smallest request; a power of two, and at least [`SECTOR`].
    pub logical_block: u32,
    /// Bytes of the smallest write that needs no read before; a power of two, and at least [`SECTOR`].
    pub physical_block: u32,
}

/// What is done to a disk. Offsets and lengths are in bytes, multiples of the logical block, and within the
/// disk.
#[derive(Debug)]
pub enum Operation {
    /// Fills memory with the disk's data.
    Read {
        /// Where on the disk.
        offset: u64,
        /// Where to.
        to: Writable,
    },
    /// Writes memory to the disk.
    Write {
        /// Where on the disk.
        offset: u64,
        /// Where from.
        from: Readable,
    },
    /// All writes that have completed reach stable storage.
    Flush,
    /// The guest no longer needs these blocks; what they read as is not defined.
    Discard {
        /// Where on the disk.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// These blocks read as zeroes.
    WriteZeroes {
        /// Where on the disk.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// Whether the blocks may be given back to the host.
        unmap: bool,
    },
}

impl Operation {
    /// How many bytes of the disk it is about.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Read { to, .. } => to.len(),
            Self::Write { from, .. } => from.len(),
            Self::Flush => 0,
            Self::Discard { len, .. } | Self::WriteZeroes { len, .. } => *len,
        }
    }
}

/// An operation under the controller's number.
#[derive(Debug)]
pub struct Request {
    /// The controller's.
    pub tag: usize,
    /// What to do.
    pub operation: Operation,
}

/// The end of a request.
#[derive(Debug)]
pub struct Completion {
    /// That of the request.
    pub tag: usize,
    /// The request's, with its buffers.
    pub operation: Operation,
    /// Its success. After an error, part of it may have been done.
    pub result: io::Result<()>,
}

/// See [`Backend::syncer`].
pub type Syncer = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// What keeps the blocks of a disk.
pub trait Backend: Send {
    /// What it is.
    fn info(&self) -> Info;

    /// Is signalled after each completion.
    fn bell(&self) -> &Arc<EventFd>;

    /// Begins a request. It does not block.
    fn submit(&mut self, request: Request);

    /// Takes the next completion, if there is one.
    fn completed(&mut self) -> Option<Completion>;

    /// Becomes a disk of `size` bytes, to be that of a saved VM; only a disk without an image can, or one
    /// whose image has been given this size since it was opened.
    fn set_size(&mut self, size: u64) -> bool {
        let _unused = size;
        false
    }

    /// Becomes a disk of another size while it is used. No request is under way that could reach beyond it.
    ///
    /// # Errors
    /// If it cannot. It keeps its size then.
    fn resize(&mut self, resize: Resize) -> io::Result<()> {
        let _unused = resize;
        let why = "its size cannot be changed";
        Err(io::Error::new(io::ErrorKind::Unsupported, why))
    }

    /// Takes back a request that has not begun, if there is one.
    fn cancel(&mut self) -> Option<Request> {
        None
    }

    /// Why the guest may have lost data that it has flushed, if so. Every flush then fails.
    fn failure(&self) -> Option<String> {
        None
    }

    /// What puts all completed writes onto stable storage, also those that the guest has not flushed. It
    /// blocks. None: there is nothing to do.
    fn syncer(&self) -> Option<Syncer> {
        None
    }

    /// Lets other processes use the image, before the VM continues in one of them. No request is under way,
    /// and none comes before [`Backend::acquire`].
    fn release(&mut self) {}

    /// Takes the image for this VM alone. A backend is created without it.
    ///
    /// # Errors
    /// If another process uses it.
    fn acquire(&mut self) -> io::Result<()> {
        Ok(())
    }
}
