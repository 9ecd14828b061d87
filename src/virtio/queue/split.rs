//! Split rings (virtio 1.2, 2.7): a table of descriptors, a ring of those that are available, and one of
//! those that are used. Requests have the numbers of their first descriptors.

use std::sync::atomic::{Ordering, fence};

use super::chain::{self, DESCRIPTOR, Descriptor, INDIRECT, NEXT};
use super::{Addresses, Chain, MAX_SIZE, RingError, RingFeatures, check_part};
use crate::memory::Dma;
use crate::state::{Decoder, Encoder, StateError};
use crate::units::Gpa;

// Bytes (2.7): flags and index before the rings; an element of each ring.
const RING_INDEX: u64 = 2;
const RING_ELEMENTS: u64 = 4;
const AVAILABLE_ELEMENT: u64 = 2;
const USED_ELEMENT: u64 = 8;

/// Flag of the available ring: the driver wants no interrupts (2.7.6).
const NO_INTERRUPT: u16 = 1;

/// See [`Ring`](super::Ring).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SplitRing {
    size: u16,
    at: Addresses,
    features: RingFeatures,
    next_available: u16,
    next_used: u16,
    /// `next_used` when it was last decided whether to interrupt.
    signalled: u16,
}

impl SplitRing {
    pub(super) fn new(size: u16, at: Addresses, features: RingFeatures) -> Result<Self, RingError> {
        if !size.is_power_of_two() || size > MAX_SIZE {
            return Err(RingError::Size(size));
        }
        let n = u64::from(size);
        check_part("descriptor table", at.descriptors, 16, DESCRIPTOR * n)?;
        // The flags before and the event index after the elements are two bytes each.
        let available = AVAILABLE_ELEMENT * n + 6;
        check_part("available ring", at.available, 2, available)?;
        check_part("used ring", at.used, 4, USED_ELEMENT * n + 6)?;
        Ok(Self {
            size,
            at,
            features,
            next_available: 0,
            next_used: 0,
            signalled: 0,
        })
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn pop(&mut self, dma: &Dma, chain: &mut Chain) -> Result<bool, RingError> {
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

    pub(super) fn undo_pops(&mut self, heads: impl IntoIterator<Item = u16>) {
        for _ in heads {
            self.next_available = self.next_available.wrapping_sub(1);
        }
    }

    pub(super) fn read_chain(
        &self,
        dma: &Dma,
        head: u16,
        chain: &mut Chain,
    ) -> Result<(), RingError> {
        chain.begin(head);
        let mut table = Gpa(self.at.descriptors);
        let mut len = u32::from(self.size);
        let mut indirect = false;
        // A chain without a loop visits no descriptor twice.
        let mut left = len;
        let mut index = head;
        loop {
            if u32::from(index) >= len {
                return Err(RingError::NoDescriptor { index, len });
            }
            left = left.checked_sub(1).ok_or(RingError::Loop)?;
            let descriptor = parse(chain::read(dma, table, index.into())?);
            if descriptor.has(INDIRECT) {
                if indirect || !self.features.indirect || descriptor.has(NEXT) {
                    return Err(RingError::IndirectNotAllowed);
                }
                len = descriptor.indirect_len()?;
                (table, left, index) = (descriptor.segment()?.gpa, len, 0);
                indirect = true;
                continue;
            }
            chain.add(&descriptor)?;
            if !descriptor.has(NEXT) {
                return Ok(());
            }
            index = descriptor.number;
        }
    }

    pub(super) fn push_all(
        &mut self,
        dma: &Dma,
        requests: impl Iterator<Item = (u16, u32)>,
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

    pub(super) fn wants_interrupt(&mut self, dma: &Dma) -> Result<bool, RingError> {
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

    pub(super) fn rearm(&mut self, dma: &Dma) -> Result<bool, RingError> {
        if self.features.event_index {
            let at = self.at.used + RING_ELEMENTS + USED_ELEMENT * u64::from(self.size);
            dma.store_u16(Gpa(at), self.next_available, Ordering::Relaxed)?;
            // Between our write of the event index and our read of the available index (2.7.10).
            fence(Ordering::SeqCst);
        }
        let index = dma.load_u16(Gpa(self.at.available + RING_INDEX), Ordering::Relaxed)?;
        Ok(index != self.next_available)
    }

    pub(super) fn save(&self, to: &mut Encoder) {
        to.u16(self.next_available);
        to.u16(self.next_used);
        to.u16(self.signalled);
    }

    pub(super) fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
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

fn parse([start, end]: [u64; 2]) -> Descriptor {
    let [a, b, c, d, e, f, g, h] = end.to_le_bytes();
    Descriptor {
        address: start,
        len: u32::from_le_bytes([a, b, c, d]),
        flags: u16::from_le_bytes([e, f]),
        number: u16::from_le_bytes([g, h]),
    }
}

#[cfg(test)]
mod tests;
