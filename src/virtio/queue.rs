//! Split rings (virtio 1.2, 2.7), as the device sees them.
//!
//! The driver writes the rings while we read them, and is hostile: each descriptor, index and ring entry is
//! read once and the copy is checked. A ring that breaks a rule is broken until the driver resets the device
//! ([`RingError`]).

use std::sync::atomic::{Ordering, fence};

use thiserror::Error;

use crate::memory::{Dma, DmaError};
use crate::state::{Decoder, Encoder, StateError};
use crate::units::Gpa;

/// The most descriptors that a split ring may have (2.7).
pub const MAX_SIZE: u16 = 1 << 15;
/// The longest indirect table that is taken. The specification allows a chain no more descriptors than its
/// queue has (2.7.5.3.1), which Linux does not keep to; QEMU takes as many as this.
pub const MAX_INDIRECT: u32 = 1024;

// Bytes of the three parts (2.7): a descriptor; flags and index before the rings; an element of each ring.
const DESCRIPTOR: u64 = 16;
const RING_INDEX: u64 = 2;
const RING_ELEMENTS: u64 = 4;
const AVAILABLE_ELEMENT: u64 = 2;
const USED_ELEMENT: u64 = 8;

// Descriptor flags (2.7.5).
const NEXT: u16 = 1 << 0;
const WRITE: u16 = 1 << 1;
const INDIRECT: u16 = 1 << 2;

/// Flag of the available ring: the driver wants no interrupts (2.7.6).
const NO_INTERRUPT: u16 = 1;

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
    /// The number of descriptors is none that a split ring may have.
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
    /// A descriptor's number is beyond its table.
    #[error("descriptor {index} of a table of {len}")]
    NoDescriptor {
        /// Its number.
        index: u16,
        /// How many there are.
        len: u32,
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

/// Consecutive bytes of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The first.
    pub gpa: Gpa,
    /// How many.
    pub len: u32,
}

/// One request: what the device reads, then what it writes. Reused from one to the next, so that none
/// allocates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    readable: usize,
}

impl Chain {
    /// Its number in the ring: that of its first descriptor.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the device reads.
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable]
    }

    /// What the device writes.
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.readable..]
    }

    fn clear(&mut self, head: u16) {
        self.head = head;
        self.segments.clear();
        self.readable = 0;
    }
}

/// Where the parts of a ring are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring, which the driver writes.
    pub available: u64,
    /// The used ring, which the device writes.
    pub used: u64,
}

/// What was negotiated about rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// Indirect tables may be used (2.7.5.3).
    pub indirect: bool,
    /// Indices say when to notify, instead of flags (2.7.7.2 and 2.7.10).
    pub event_index: bool,
}

/// A ring in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitRing {
    size: u16,
    at: Addresses,
    features: RingFeatures,
    next_available: u16,
    next_used: u16,
    /// `next_used` when it was last decided whether to interrupt.
    signalled: u16,
}

impl SplitRing {
    /// A ring of `size` descriptors from which nothing was taken yet.
    ///
    /// # Errors
    /// If `size` or an address is none that a ring may have (2.7).
    pub fn new(size: u16, at: Addresses, features: RingFeatures) -> Result<Self, RingError> {
        if !size.is_power_of_two() || size > MAX_SIZE {
            return Err(RingError::Size(size));
        }
        let n = u64::from(size);
        // The flags before and the event index after the elements are two bytes each.
        for (part, gpa, align, len) in [
            ("descriptor table", at.descriptors, 16, DESCRIPTOR * n),
            ("available ring", at.available, 2, AVAILABLE_ELEMENT * n + 6),
            ("used ring", at.used, 4, USED_ELEMENT * n + 6),
        ] {
            let gpa = Gpa(gpa);
            if !gpa.0.is_multiple_of(align) {
                return Err(RingError::Misaligned { part, gpa, align });
            }
            if gpa.0.checked_add(len).is_none() {
                return Err(RingError::Wraps { gpa, len });
            }
        }
        Ok(Self {
            size,
            at,
            features,
            next_available: 0,
            next_used: 0,
            signalled: 0,
        })
    }

    /// How many descriptors it has.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Takes the next request into `chain`; `false` if there is none.
    ///
    /// # Errors
    /// If the ring is broken. Nothing is taken then.
    pub fn pop(&mut self, dma: &Dma, chain: &mut Chain) -> Result<bool, RingError> {
        // Acquire: what is read below was written before the index.
        let index = dma.load_u16(Gpa(self.at.available + RING_INDEX), Ordering::Acquire)?;
        let waiting = index.wrapping_sub(self.next_available);
        if waiting == 0 {
            return Ok(false);
        }
        if waiting > self.size {
            let size = self.size;
            return Err(RingError::TooManyAvailable { waiting, size });
        }
        let place = u64::from(self.next_available % self.size);
        let element = self.at.available + RING_ELEMENTS + AVAILABLE_ELEMENT * place;
        let head = dma.load_u16(Gpa(element), Ordering::Relaxed)?;
        self.read_chain(dma, head, chain)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(true)
    }

    /// Gives back the request that was taken last and of which nothing is used yet: it is taken again next.
    pub fn undo_pop(&mut self) {
        self.undo_pops(1);
    }

    /// The same for the last `count`.
    pub fn undo_pops(&mut self, count: u16) {
        self.next_available = self.next_available.wrapping_sub(count);
    }

    /// Reads the request that begins with descriptor `head` into `chain`.
    ///
    /// # Errors
    /// If the ring is broken.
    pub fn read_chain(&self, dma: &Dma, head: u16, chain: &mut Chain) -> Result<(), RingError> {
        chain.clear(head);
        let mut table = self.at.descriptors;
        let mut len = u32::from(self.size);
        let mut indirect = false;
        // A chain without a loop visits no descriptor twice.
        let mut left = len;
        let mut index = head;
        let mut total = 0;
        loop {
            if u32::from(index) >= len {
                return Err(RingError::NoDescriptor { index, len });
            }
            left = left.checked_sub(1).ok_or(RingError::Loop)?;
            let descriptor = Descriptor::read(dma, table, index)?;
            let segment = descriptor.segment()?;
            if descriptor.flags & INDIRECT != 0 {
                if indirect || !self.features.indirect || descriptor.flags & NEXT != 0 {
                    return Err(RingError::IndirectNotAllowed);
                }
                let bytes = segment.len;
                let descriptors = bytes / 16;
                if bytes % 16 != 0 || !(1..=MAX_INDIRECT).contains(&descriptors) {
                    return Err(RingError::IndirectLength(bytes));
                }
                (table, len, left, index) = (segment.gpa.0, descriptors, descriptors, 0);
                indirect = true;
                continue;
            }
            let writable = descriptor.flags & WRITE != 0;
            if !writable && chain.readable < chain.segments.len() {
                return Err(RingError::ReadableAfterWritable);
            }
            total += u64::from(segment.len);
            chain.segments.push(segment);
            if !writable {
                chain.readable += 1;
            }
            if descriptor.flags & NEXT == 0 {
                break;
            }
            index = descriptor.next;
        }
        if total > u64::from(u32::MAX) {
            return Err(RingError::TooLong(total));
        }
        Ok(())
    }

    /// Returns the request of descriptor `head` to the driver; the device has written the first `written`
    /// bytes of its writable part.
    ///
    /// # Errors
    /// If the used ring is not in memory. The request is not returned then.
    pub fn push(&mut self, dma: &Dma, head: u16, written: u32) -> Result<(), RingError> {
        self.push_all(dma, [(head, written)])
    }

    /// Returns several requests, which the driver sees at once.
    ///
    /// # Errors
    /// If the used ring is not in memory. None is returned then.
    pub fn push_all(
        &mut self,
        dma: &Dma,
        requests: impl IntoIterator<Item = (u16, u32)>,
    ) -> Result<(), RingError> {
        let mut next = self.next_used;
        for (head, written) in requests {
            let place = u64::from(next % self.size);
            let mut element = [0; 8];
            element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
            element[4..].copy_from_slice(&written.to_le_bytes());
            let at = self.at.used + RING_ELEMENTS + USED_ELEMENT * place;
            dma.write(Gpa(at), &element)?;
            next = next.wrapping_add(1);
        }
        // Release: the elements were written before the index.
        dma.store_u16(Gpa(self.at.used + RING_INDEX), next, Ordering::Release)?;
        self.next_used = next;
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was returned since this was last asked (2.7.7).
    ///
    /// # Errors
    /// If the available ring is not in memory.
    pub fn wants_interrupt(&mut self, dma: &Dma) -> Result<bool, RingError> {
        let (old, new) = (self.signalled, self.next_used);
        if old == new {
            return Ok(false);
        }
        // Between our write of the used index and our read of what the driver wants; the driver has the same
        // between its writes.
        fence(Ordering::SeqCst);
        let wants = if self.features.event_index {
            let at = self.at.available + RING_ELEMENTS + AVAILABLE_ELEMENT * u64::from(self.size);
            passes(dma.load_u16(Gpa(at), Ordering::Relaxed)?, old, new)
        } else {
            dma.load_u16(Gpa(self.at.available), Ordering::Relaxed)? & NO_INTERRUPT == 0
        };
        self.signalled = new;
        Ok(wants)
    }

    /// Asks the driver to notify of the next request. `true`: there is one already, of which it may not have
    /// notified.
    ///
    /// # Errors
    /// If the rings are not in memory.
    pub fn rearm(&mut self, dma: &Dma) -> Result<bool, RingError> {
        if self.features.event_index {
            let at = self.at.used + RING_ELEMENTS + USED_ELEMENT * u64::from(self.size);
            dma.store_u16(Gpa(at), self.next_available, Ordering::Relaxed)?;
            // Between our write of the event index and our read of the available index (2.7.10).
            fence(Ordering::SeqCst);
        }
        let index = dma.load_u16(Gpa(self.at.available + RING_INDEX), Ordering::Relaxed)?;
        Ok(index != self.next_available)
    }

    /// Saves its position. The device saves which requests it has taken and not returned.
    pub fn save(&self, to: &mut Encoder) {
        to.u16(self.next_available);
        to.u16(self.next_used);
        to.u16(self.signalled);
    }

    /// Takes over how far it was.
    ///
    /// # Errors
    /// If that is cut off.
    pub fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        self.next_available = from.u16("next available")?;
        self.next_used = from.u16("next used")?;
        self.signalled = from.u16("last interrupt")?;
        Ok(())
    }
}

/// Whether going from `old` to `new` passes `event` (2.7.7.2).
fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[derive(Clone, Copy, Debug)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(dma: &Dma, table: u64, index: u16) -> Result<Self, RingError> {
        let len = DESCRIPTOR;
        let at = table.checked_add(DESCRIPTOR * u64::from(index));
        let gpa = Gpa(at.ok_or(RingError::Wraps {
            gpa: Gpa(table),
            len,
        })?);
        let mut bytes = [0; 16];
        dma.read(gpa, &mut bytes)?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Ok(Self {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            len: u32::from_le_bytes([i, j, k, l]),
            flags: u16::from_le_bytes([m, n]),
            next: u16::from_le_bytes([o, p]),
        })
    }

    fn segment(&self) -> Result<Segment, RingError> {
        let (gpa, len) = (Gpa(self.address), self.len);
        match self.address.checked_add(len.into()) {
            Some(_) => Ok(Segment { gpa, len }),
            None => Err(RingError::Wraps {
                gpa,
                len: len.into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests;
