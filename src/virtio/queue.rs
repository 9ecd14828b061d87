//! Rings of requests, as the device sees them: split (virtio 1.2, 2.7) or packed (2.8), as the driver has
//! chosen. A device does not know which.
//!
//! The driver writes the rings while we read them, and is hostile: each descriptor, index and ring entry is
//! read once and the copy is checked. A ring that breaks a rule is broken until the driver resets the device
//! ([`RingError`]).

mod chain;
mod packed;
mod split;

use thiserror::Error;

use crate::memory::{Dma, DmaError};
use crate::state::{Decoder, Encoder, StateError};
use crate::units::Gpa;

pub use chain::{Chain, MAX_INDIRECT, Segment, parts, total};
use packed::PackedRing;
use split::SplitRing;

/// The most descriptors that a ring may have (2.7 and 2.8).
pub const MAX_SIZE: u16 = 1 << 15;

/// What makes a ring unusable.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RingError {
    /// The rings, an indirect table or a buffer are not in guest memory; or the function is no bus master any
    /// more.
    #[error(transparent)]
    Memory(#[from] DmaError),
    /// Parts of a ring lie at addresses that they may not have.
    #[error("the {part} is at {gpa}, which is not a multiple of {align}")]
    Misaligned {
        /// Which.
        part: &'static str,
        /// Where it is.
        gpa: Gpa,
        /// What its address must be a multiple of.
        align: u64,
    },
    /// The number of descriptors is none that a ring of its form may have.
    #[error("a ring of {0} descriptors")]
    Size(u16),
    /// An address wraps around.
    #[error("{len:#x} bytes at {gpa} do not fit into the address space")]
    Wraps {
        /// The first address.
        gpa: Gpa,
        /// How many bytes.
        len: u64,
    },
    /// More buffers are available than there are descriptors.
    #[error("{waiting} buffers are available in a ring of {size}")]
    TooManyAvailable {
        /// So many.
        waiting: u16,
        /// Descriptors.
        size: u16,
    },
    /// A descriptor's number is beyond its table, or no request has it.
    #[error("descriptor {index} of a table of {len}")]
    NoDescriptor {
        /// Its number.
        index: u16,
        /// How many there are.
        len: u32,
    },
    /// More descriptors of a packed ring are available and not returned than it has.
    #[error("more descriptors are in use than the {size} of the ring")]
    TooManyDescriptors {
        /// Descriptors.
        size: u16,
    },
    /// A chain is longer than its table: it has a loop.
    #[error("a chain of descriptors has a loop")]
    Loop,
    /// An indirect table is referred to without the feature, from another indirect table, or along with a
    /// next descriptor.
    #[error("an indirect table where none may be")]
    IndirectNotAllowed,
    /// An indirect table of no, half or too many descriptors.
    #[error("an indirect table of {0:#x} bytes")]
    IndirectLength(u32),
    /// What the device reads must come before what it writes.
    #[error("a readable descriptor after a writable one")]
    ReadableAfterWritable,
    /// A request is not what its device takes.
    #[error("{what}")]
    Request {
        /// The problem.
        what: &'static str,
    },
    /// A request's buffers have 4 GiB or more in total.
    #[error("a request of {0:#x} bytes")]
    TooLong(u64),
}

impl RingError {
    /// Whether the function may not access memory now, which is no fault of the ring.
    pub fn is_gate_closed(&self) -> bool {
        matches!(self, Self::Memory(DmaError::NotBusMaster))
    }
}

/// Where the parts of a ring are: the descriptor area, the driver area and the device area (2.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The descriptor table, or the packed ring.
    pub descriptors: u64,
    /// The available ring, which the driver writes; of a packed ring its event suppression.
    pub available: u64,
    /// The used ring, which the device writes; of a packed ring its event suppression.
    pub used: u64,
}

/// What was negotiated about rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// Rings are packed (2.8), and not split (2.7).
    pub packed: bool,
    /// Indirect tables may be used (2.7.5.3 and 2.8.7).
    pub indirect: bool,
    /// Places in the ring say when to notify, instead of flags alone (2.7.7.2, 2.7.10 and 2.8.10).
    pub event_index: bool,
}

/// A ring in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring(Form);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    Split(SplitRing),
    Packed(PackedRing),
}

/// Calls the method of either form.
macro_rules! either {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            Ring(Form::Split(ring)) => ring.$method($($argument),*),
            Ring(Form::Packed(ring)) => ring.$method($($argument),*),
        }
    };
}

impl Ring {
    /// A ring of `size` descriptors from which nothing was taken yet.
    ///
    /// # Errors
    /// If `size` or an address is none that a ring of this form may have (2.7 and 2.8.10.1).
    pub fn new(size: u16, at: Addresses, features: RingFeatures) -> Result<Self, RingError> {
        Ok(Self(match features.packed {
            false => Form::Split(SplitRing::new(size, at, features)?),
            true => Form::Packed(PackedRing::new(size, at, features)?),
        }))
    }

    /// How many descriptors it has.
    pub fn size(&self) -> u16 {
        either!(self.size())
    }

    /// Takes the next request into `chain`; `false` if there is none.
    ///
    /// # Errors
    /// If the ring is broken. Nothing is taken then.
    pub fn pop(&mut self, dma: &Dma, chain: &mut Chain) -> Result<bool, RingError> {
        either!(self.pop(dma, chain))
    }

    /// Gives back the request `head`, which was taken last: it is taken again next.
    pub fn undo_pop(&mut self, head: u16) {
        self.undo_pops([head]);
    }

    /// Gives back the requests `heads`, which were taken last.
    pub fn undo_pops(&mut self, heads: impl IntoIterator<Item = u16>) {
        either!(self.undo_pops(heads));
    }

    /// Reads the request `head`, which was taken and not returned, into `chain` again.
    ///
    /// # Errors
    /// If the ring is broken.
    pub fn read_chain(&self, dma: &Dma, head: u16, chain: &mut Chain) -> Result<(), RingError> {
        either!(self.read_chain(dma, head, chain))
    }

    /// Returns the request `head` to the driver; the device has written the first `written` bytes of its
    /// writable part.
    ///
    /// # Errors
    /// If the ring is not in memory. The request is not returned then.
    pub fn push(&mut self, dma: &Dma, head: u16, written: u32) -> Result<(), RingError> {
        self.push_all(dma, [(head, written)])
    }

    /// Returns several requests, which the driver sees at once.
    ///
    /// # Errors
    /// If the ring is not in memory. None is returned then.
    pub fn push_all<I>(&mut self, dma: &Dma, requests: I) -> Result<(), RingError>
    where
        I: IntoIterator<Item = (u16, u32)>,
        I::IntoIter: Clone,
    {
        either!(self.push_all(dma, requests.into_iter()))
    }

    /// Whether the driver wants an interrupt for what was returned since this was last asked (2.7.7 and
    /// 2.8.10).
    ///
    /// # Errors
    /// If the driver area is not in memory.
    pub fn wants_interrupt(&mut self, dma: &Dma) -> Result<bool, RingError> {
        either!(self.wants_interrupt(dma))
    }

    /// Asks the driver to notify of the next request. `true`: there is one already, of which it may not have
    /// notified.
    ///
    /// # Errors
    /// If the ring is not in memory.
    pub fn rearm(&mut self, dma: &Dma) -> Result<bool, RingError> {
        either!(self.rearm(dma))
    }

    /// Saves its position, and what is needed to read again what was taken and not returned. The device saves
    /// which requests these are.
    pub fn save(&self, to: &mut Encoder) {
        either!(self.save(to));
    }

    /// Takes over how far it was.
    ///
    /// # Errors
    /// If that is cut off, or cannot be.
    pub fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        either!(self.load(from))
    }
}

/// Checks where a part of a ring is.
fn check_part(part: &'static str, at: u64, align: u64, len: u64) -> Result<(), RingError> {
    let gpa = Gpa(at);
    if !at.is_multiple_of(align) {
        return Err(RingError::Misaligned { part, gpa, align });
    }
    match at.checked_add(len) {
        Some(_) => Ok(()),
        None => Err(RingError::Wraps { gpa, len }),
    }
}

#[cfg(test)]
mod model_tests;
