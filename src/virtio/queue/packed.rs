//! Packed rings (virtio 1.2, 2.8): one ring of descriptors, which the driver makes available, and the device
//! overwrites with those that are used, in the order in which requests end.
//!
//! So a request's descriptors may be overwritten while it is under way. They are therefore copied into a
//! table when the request is taken, and a request has the number of its first descriptor there.

use std::sync::atomic::{Ordering, fence};

use super::chain::{self, DESCRIPTOR, Descriptor, INDIRECT, NEXT, WRITE};
use super::{Addresses, Chain, MAX_SIZE, RingError, RingFeatures, check_part};
use crate::memory::Dma;
use crate::state::{Decoder, Encoder, StateError};
use crate::units::Gpa;

/// Bytes of an event suppression structure (2.8.10.1).
const EVENT: u64 = 4;

// Descriptor flags (2.8.1): in an available descriptor one of them is the driver's wrap counter and the other
// its inverse, in a used one both are the device's.
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;

// Flags of event suppression (2.8.10); 3 is reserved.
const EVENT_FLAGS: u32 = 3;
const ENABLE: u32 = 0;
const DISABLE: u32 = 1;
const AT_DESCRIPTOR: u32 = 2;
/// The wrap counter beside the offset of event suppression (2.8.14).
const WRAP: u16 = 1 << 15;

/// See [`Ring`](super::Ring).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PackedRing {
    size: u16,
    at: Addresses,
    features: RingFeatures,
    /// Places in two laps, see [`PackedRing::offset`]. Between them are as many descriptors as were taken and
    /// not returned.
    next_available: u16,
    next_used: u16,
    /// How many descriptors were used since it was last decided whether to interrupt.
    unsignalled: u32,
    /// The descriptors that were taken and not returned. Those that are free are linked from `free` on.
    table: Box<[Entry]>,
    free: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    descriptor: Descriptor,
    /// The next of the same request, or the next that is free.
    next: u16,
    /// How many descriptors the request has that begins here; 0: none does.
    len: u16,
}

impl PackedRing {
    pub(super) fn new(size: u16, at: Addresses, features: RingFeatures) -> Result<Self, RingError> {
        if size == 0 || size > MAX_SIZE {
            return Err(RingError::Size(size));
        }
        let ring = DESCRIPTOR * u64::from(size);
        check_part("descriptor ring", at.descriptors, 16, ring)?;
        check_part("driver event suppression", at.available, 4, EVENT)?;
        check_part("device event suppression", at.used, 4, EVENT)?;
        let entry = |next| Entry {
            next,
            ..Entry::default()
        };
        Ok(Self {
            size,
            at,
            features,
            next_available: 0,
            next_used: 0,
            unsignalled: 0,
            table: (1..=size).map(entry).collect(),
            free: 0,
        })
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// The descriptor at a place. Places go through the ring twice: first the wrap counter is 1, then 0.
    fn offset(&self, place: u16) -> u16 {
        match self.wrap(place) {
            true => place,
            false => place - self.size,
        }
    }

    fn wrap(&self, place: u16) -> bool {
        place < self.size
    }

    fn address(&self, place: u16) -> u64 {
        self.at.descriptors + DESCRIPTOR * u64::from(self.offset(place))
    }

    /// All places.
    fn laps(&self) -> u32 {
        2 * u32::from(self.size)
    }

    /// The place `count` places after one.
    fn after(&self, place: u16, count: u16) -> u16 {
        self.place(u32::from(place) + u32::from(count))
    }

    /// The place `count` places before one.
    fn before(&self, place: u16, count: u16) -> u16 {
        self.place(u32::from(place) + self.laps() - u32::from(count))
    }

    /// How many places are from one on to another.
    fn between(&self, from: u16, to: u16) -> u16 {
        self.before(to, from)
    }

    /// A number that is less than four laps as one that is less than two.
    fn place(&self, number: u32) -> u16 {
        let less = number.checked_sub(self.laps()).unwrap_or(number);
        u16::try_from(less).unwrap_or(0)
    }

    /// Whether the descriptor at `next_available` is available, by its flags.
    fn is_available(&self, flags: u16) -> bool {
        let wrap = self.wrap(self.next_available);
        (flags & AVAILABLE != 0) == wrap && (flags & USED != 0) != wrap
    }

    pub(super) fn pop(&mut self, dma: &Dma, chain: &mut Chain) -> Result<bool, RingError> {
        let access = dma.begin()?;
        let (mut entry, mut place) = (self.free, self.next_available);
        let mut len = 0;
        // That of the request is in its last descriptor (2.8.6).
        let id = loop {
            let at = self.address(place);
            // Acquire: what is read below was written before the flags.
            let end = access.load_u64(Gpa(at + 8), Ordering::Acquire)?;
            let mut descriptor = parse([0, end]);
            if len == 0 && !self.is_available(descriptor.flags) {
                return Ok(false);
            }
            let Some(copy) = self.table.get_mut(usize::from(entry)) else {
                return Err(RingError::TooManyDescriptors { size: self.size });
            };
            descriptor.address = access.load_u64(Gpa(at), Ordering::Relaxed)?;
            copy.descriptor = descriptor;
            entry = copy.next;
            place = self.after(place, 1);
            len += 1;
            if !descriptor.has(NEXT) {
                break descriptor.number;
            }
        };
        self.describe(dma, self.free, len, chain)?;
        let first = &mut self.table[usize::from(self.free)];
        first.len = len;
        first.descriptor.number = id;
        self.free = entry;
        self.next_available = place;
        Ok(true)
    }

    /// The number of descriptors of the request `head`, and its id.
    fn request(&self, head: u16) -> Result<(u16, u16), RingError> {
        match self.table.get(usize::from(head)) {
            Some(&Entry {
                len, descriptor, ..
            }) if len > 0 => Ok((len, descriptor.number)),
            _ => Err(RingError::NoDescriptor {
                index: head,
                len: self.size.into(),
            }),
        }
    }

    /// Frees the descriptors of the request `head`, and returns how many they are.
    fn release(&mut self, head: u16) -> u16 {
        let Ok((len, _)) = self.request(head) else {
            return 0;
        };
        let mut last = head;
        for _ in 1..len {
            last = self.table[usize::from(last)].next;
        }
        self.table[usize::from(head)].len = 0;
        self.table[usize::from(last)].next = self.free;
        self.free = head;
        len
    }

    pub(super) fn undo_pops(&mut self, heads: impl IntoIterator<Item = u16>) {
        for head in heads {
            let len = self.release(head);
            self.next_available = self.before(self.next_available, len);
        }
    }

    pub(super) fn read_chain(
        &self,
        dma: &Dma,
        head: u16,
        chain: &mut Chain,
    ) -> Result<(), RingError> {
        let (len, _) = self.request(head)?;
        self.describe(dma, head, len, chain)
    }

    /// Reads the request with these descriptors of the table.
    fn describe(&self, dma: &Dma, head: u16, len: u16, chain: &mut Chain) -> Result<(), RingError> {
        chain.begin(head);
        let mut next = head;
        for _ in 0..len {
            let entry = &self.table[usize::from(next)];
            next = entry.next;
            if !entry.descriptor.has(INDIRECT) {
                chain.add(&entry.descriptor)?;
                continue;
            }
            // A list is of one kind (2.8.5), and indirect ones are not linked (2.8.19).
            if !self.features.indirect || len > 1 {
                return Err(RingError::IndirectNotAllowed);
            }
            let table = entry.descriptor.segment()?.gpa;
            // Of the flags there, only that of writable ones counts (2.8.7).
            for index in 0..entry.descriptor.indirect_len()? {
                chain.add(&parse(chain::read(dma, table, index)?))?;
            }
        }
        Ok(())
    }

    pub(super) fn push_all(
        &mut self,
        dma: &Dma,
        requests: impl Iterator<Item = (u16, u32)> + Clone,
    ) -> Result<(), RingError> {
        // A used descriptor that is written in part would spoil the request, if that is made again.
        let access = dma.begin()?;
        let mut place = self.next_used;
        let mut first = None;
        for (head, written) in requests.clone() {
            let (len, id) = self.request(head)?;
            let at = Gpa(self.address(place) + 8);
            let used = used(id, written, self.wrap(place));
            match first {
                None => first = Some((at, used)),
                Some(_) => access.store_u64(at, used, Ordering::Relaxed)?,
            }
            place = self.after(place, len);
        }
        if let Some((at, used)) = first {
            // Release: the driver looks at this one first (2.8.9), and then finds the others and the data.
            access.store_u64(at, used, Ordering::Release)?;
        }
        for (head, _) in requests {
            let len = self.release(head);
            self.unsignalled = self.unsignalled.saturating_add(len.into());
        }
        self.next_used = place;
        Ok(())
    }

    pub(super) fn wants_interrupt(&mut self, dma: &Dma) -> Result<bool, RingError> {
        if self.unsignalled == 0 {
            return Ok(false);
        }
        // Between our write of used descriptors and our read of what the driver wants; the driver has the
        // same between its writes.
        fence(Ordering::SeqCst);
        let event = dma.load_u32(Gpa(self.at.available), Ordering::Relaxed)?;
        let [a, b, ..] = event.to_le_bytes();
        let wants = match event >> 16 & EVENT_FLAGS {
            DISABLE => false,
            AT_DESCRIPTOR if self.features.event_index => {
                self.passes(u16::from_le_bytes([a, b]), self.unsignalled)
            }
            _ => true,
        };
        self.unsignalled = 0;
        Ok(wants)
    }

    /// Whether the last `count` descriptors that were used contain the one of `event`: an offset and a wrap
    /// counter.
    fn passes(&self, event: u16, count: u32) -> bool {
        let offset = event & !WRAP;
        if offset >= self.size {
            // There is no such descriptor, and an interrupt too many does no harm.
            return true;
        }
        let place = match event & WRAP {
            0 => offset + self.size,
            _ => offset,
        };
        let since = self.between(self.after(place, 1), self.next_used);
        u32::from(since) < count
    }

    pub(super) fn rearm(&mut self, dma: &Dma) -> Result<bool, RingError> {
        let place = self.next_available;
        let event = match self.features.event_index {
            true => {
                let wrap = if self.wrap(place) { WRAP } else { 0 };
                AT_DESCRIPTOR << 16 | u32::from(self.offset(place) | wrap)
            }
            false => ENABLE << 16,
        };
        dma.store_u32(Gpa(self.at.used), event, Ordering::Relaxed)?;
        // Between our write of what we want and our read of the flags (2.8.21.2).
        fence(Ordering::SeqCst);
        let flags = Gpa(self.address(place) + 14);
        Ok(self.is_available(dma.load_u16(flags, Ordering::Relaxed)?))
    }

    pub(super) fn save(&self, to: &mut Encoder) {
        to.u16(self.next_available);
        to.u16(self.next_used);
        to.u32(self.unsignalled);
        let requests = || (0..).zip(&self.table).filter(|(_, entry)| entry.len > 0);
        to.u64(requests().count() as u64);
        for (head, first) in requests() {
            to.u16(head);
            to.u16(first.len);
            let mut next = head;
            for _ in 0..first.len {
                let entry = &self.table[usize::from(next)];
                next = entry.next;
                to.u64(entry.descriptor.address);
                to.u32(entry.descriptor.len);
                to.u16(entry.descriptor.flags);
                to.u16(entry.descriptor.number);
            }
        }
    }

    pub(super) fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        const REQUESTS: &str = "requests of a ring";
        for (place, item) in [
            (&mut self.next_available, "next available"),
            (&mut self.next_used, "next used"),
        ] {
            *place = from.u16(item)?;
            if u32::from(*place) >= 2 * u32::from(self.size) {
                return Err(from.invalid(item, format!("{place} in a ring of {}", self.size)));
            }
        }
        self.unsignalled = from.u32("descriptors without an interrupt")?;
        let count = from.count(REQUESTS, 4 + 16)?;
        self.table.fill(Entry::default());
        let mut copies = Vec::new();
        let mut heads = Vec::new();
        for _ in 0..count {
            let (head, len) = (from.u16("head")?, from.u16("descriptors of a request")?);
            match self.table.get_mut(usize::from(head)) {
                Some(entry) if entry.len == 0 && len > 0 => entry.len = len,
                _ => return Err(from.invalid(REQUESTS, format!("{len} descriptors at {head}"))),
            }
            heads.push(head);
            for _ in 0..len {
                copies.push(Descriptor {
                    address: from.u64("address")?,
                    len: from.u32("length")?,
                    flags: from.u16("flags")?,
                    number: from.u16("id")?,
                });
            }
        }
        let taken = self.between(self.next_used, self.next_available);
        if copies.len() != usize::from(taken) || taken > self.size {
            let why = format!(
                "they have {} descriptors, and {taken} of {} were taken",
                copies.len(),
                self.size
            );
            return Err(from.invalid(REQUESTS, why));
        }
        self.link(&heads, &copies);
        Ok(())
    }

    /// Puts `copies` of the descriptors of the requests `heads`, whose lengths are known, into the table. It
    /// has room for all of them.
    fn link(&mut self, heads: &[u16], copies: &[Descriptor]) {
        let others = (0..self.size).filter(|n| self.table[usize::from(*n)].len == 0);
        let others: Vec<_> = others.collect();
        let mut others = others.into_iter();
        let mut copies = copies.iter();
        for &head in heads {
            let mut at = usize::from(head);
            for n in (0..self.table[at].len).rev() {
                let entry = &mut self.table[at];
                entry.descriptor = copies.next().copied().unwrap_or_default();
                entry.next = match n {
                    0 => self.size,
                    _ => others.next().expect("the table has room for all"),
                };
                at = entry.next.into();
            }
        }
        self.free = self.size;
        for n in others.rev() {
            self.table[usize::from(n)].next = self.free;
            self.free = n;
        }
    }
}

fn parse([start, end]: [u64; 2]) -> Descriptor {
    let [a, b, c, d, e, f, g, h] = end.to_le_bytes();
    Descriptor {
        address: start,
        len: u32::from_le_bytes([a, b, c, d]),
        number: u16::from_le_bytes([e, f]),
        flags: u16::from_le_bytes([g, h]),
    }
}

/// The second half of a used descriptor.
fn used(id: u16, written: u32, wrap: bool) -> u64 {
    let flags = if wrap { AVAILABLE | USED } else { 0 };
    // The length holds only with it (2.8.4).
    let write = if written > 0 { WRITE } else { 0 };
    u64::from(written) | u64::from(id) << 32 | u64::from(flags | write) << 48
}

#[cfg(test)]
mod tests;
