//! Requests, as their descriptors describe them. A descriptor has 16 bytes in both forms of rings.

use crate::memory::Dma;
use crate::units::Gpa;

use super::RingError;

/// The longest indirect table that is taken. The specification allows a chain no more descriptors than its
/// queue has (2.7.5.3.1 and 2.8.17), which Linux does not keep to; QEMU takes as many as this.
pub const MAX_INDIRECT: u32 = 1024;

/// Bytes of a descriptor (2.7.5 and 2.8.13).
pub(super) const DESCRIPTOR: u64 = 16;

// Descriptor flags (2.7.5 and 2.8.13).
pub(super) const NEXT: u16 = 1 << 0;
pub(super) const WRITE: u16 = 1 << 1;
pub(super) const INDIRECT: u16 = 1 << 2;

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
    len: u64,
}

impl Chain {
    /// Its number, by which the ring knows it until it is returned.
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

    /// Copies to `data` from byte `skip` of what the device reads; how many bytes there were.
    ///
    /// # Errors
    /// If they are not in memory.
    pub fn read(&self, dma: &Dma, skip: u64, data: &mut [u8]) -> Result<usize, RingError> {
        let mut done = 0;
        for (gpa, len) in parts(self.readable(), skip, data.len() as u64) {
            let end = done + usize::try_from(len).unwrap_or(0);
            dma.read(gpa, &mut data[done..end])?;
            done = end;
        }
        Ok(done)
    }

    /// Copies `data` to what the device writes, as far as there is room; how many bytes.
    ///
    /// # Errors
    /// If the room is not in memory.
    pub fn write(&self, dma: &Dma, data: &[u8]) -> Result<usize, RingError> {
        let mut done = 0;
        for (gpa, len) in parts(self.writable(), 0, data.len() as u64) {
            let end = done + usize::try_from(len).unwrap_or(0);
            dma.write(gpa, &data[done..end])?;
            done = end;
        }
        Ok(done)
    }

    /// Becomes the request `head`, of which nothing is known yet.
    pub(super) fn begin(&mut self, head: u16) {
        self.head = head;
        self.segments.clear();
        self.readable = 0;
        self.len = 0;
    }

    /// Adds what `descriptor` describes.
    pub(super) fn add(&mut self, descriptor: &Descriptor) -> Result<(), RingError> {
        let segment = descriptor.segment()?;
        if descriptor.has(WRITE) {
            self.segments.push(segment);
        } else if self.readable == self.segments.len() {
            self.segments.push(segment);
            self.readable += 1;
        } else {
            return Err(RingError::ReadableAfterWritable);
        }
        self.len += u64::from(segment.len);
        match self.len {
            ..=0xffff_ffff => Ok(()),
            len => Err(RingError::TooLong(len)),
        }
    }
}

/// How many bytes `segments` have.
pub fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// The parts of `segments` with the `len` bytes from byte `skip` on.
pub fn parts(segments: &[Segment], skip: u64, len: u64) -> impl Iterator<Item = (Gpa, u64)> {
    let (mut skip, mut left) = (skip, len);
    segments.iter().filter_map(move |segment| {
        let before = skip.min(segment.len.into());
        skip -= before;
        let part = left.min(u64::from(segment.len) - before);
        left -= part;
        (part > 0).then_some((Gpa(segment.gpa.0 + before), part))
    })
}

/// A copy of a descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    /// In a split ring the next one's number, in a packed ring the buffer's id.
    pub(super) number: u16,
}

impl Descriptor {
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn segment(&self) -> Result<Segment, RingError> {
        let (gpa, len) = (Gpa(self.address), self.len);
        match self.address.checked_add(len.into()) {
            Some(_) => Ok(Segment { gpa, len }),
            None => Err(RingError::Wraps {
                gpa,
                len: len.into(),
            }),
        }
    }

    /// How many descriptors the indirect table has that this one refers to.
    pub(super) fn indirect_len(&self) -> Result<u32, RingError> {
        let descriptors = self.len / 16;
        match self.len.is_multiple_of(16) && (1..=MAX_INDIRECT).contains(&descriptors) {
            true => Ok(descriptors),
            false => Err(RingError::IndirectLength(self.len)),
        }
    }
}

/// Reads the two halves of descriptor `index` of the table at `table`.
pub(super) fn read(dma: &Dma, table: Gpa, index: u32) -> Result<[u64; 2], RingError> {
    let at = table.0.checked_add(DESCRIPTOR * u64::from(index));
    let at = at.ok_or(RingError::Wraps {
        gpa: table,
        len: DESCRIPTOR,
    })?;
    let halves: [u64; 2] = dma.read_obj(Gpa(at))?;
    Ok(halves.map(u64::from_le))
}
