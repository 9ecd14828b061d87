//! A driver's side of a packed ring.

use std::collections::BTreeMap;
use std::ops::Deref;

use super::{Memory, NEXT, RING};
use crate::virtio::queue::{Ring, RingFeatures};

// Descriptor flags.
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A place in the ring, with the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) offset: u16,
    pub(crate) wrap: bool,
}

impl Place {
    const START: Self = Self {
        offset: 0,
        wrap: true,
    };

    pub(crate) fn after(self, count: u16, size: u16) -> Self {
        let offset = self.offset + count;
        match offset.checked_sub(size) {
            Some(offset) => Self {
                offset,
                wrap: !self.wrap,
            },
            None => Self { offset, ..self },
        }
    }

    /// As event suppression has it.
    pub(crate) fn event(self) -> u16 {
        self.offset | u16::from(self.wrap) << 15
    }
}

/// A driver with one packed ring at [`RING`].
pub(crate) struct PackedDriver {
    memory: Memory,
    size: u16,
    pub(crate) next: Place,
    pub(crate) used: Place,
    /// How many descriptors the buffers have that are not back.
    under_way: BTreeMap<u16, u16>,
}

impl Deref for PackedDriver {
    type Target = Memory;

    fn deref(&self) -> &Memory {
        &self.memory
    }
}

impl PackedDriver {
    pub(crate) fn new(size: u16) -> Self {
        Self {
            memory: Memory::new(),
            size,
            next: Place::START,
            used: Place::START,
            under_way: BTreeMap::new(),
        }
    }

    pub(crate) fn ring(&self, features: RingFeatures) -> Ring {
        let features = RingFeatures {
            packed: true,
            ..features
        };
        Ring::new(self.size, RING, features).unwrap()
    }

    /// Writes descriptor `index` of the table at `table`.
    pub(crate) fn describe(
        &self,
        table: u64,
        index: u16,
        (gpa, len, id, flags): (u64, u32, u16, u16),
    ) {
        let at = table + u64::from(index) * 16;
        self.put(at, &gpa.to_le_bytes());
        self.put(at + 8, &len.to_le_bytes());
        self.put(at + 12, &id.to_le_bytes());
        self.put(at + 14, &flags.to_le_bytes());
    }

    /// How many descriptors are free.
    pub(crate) fn room(&self) -> usize {
        let taken: u16 = self.under_way.values().sum();
        (self.size - taken).into()
    }

    /// Makes the buffer `id` available, of elements of an address, a length and flags.
    pub(crate) fn offer(&mut self, id: u16, elements: &[(u64, u32, u16)]) {
        let len = u16::try_from(elements.len()).unwrap();
        assert!(elements.len() <= self.room(), "no room");
        assert_eq!(self.under_way.insert(id, len), None, "{id} is not back");
        self.force(id, elements);
    }

    /// As [`Self::offer`], whether it may or not.
    pub(crate) fn force(&mut self, id: u16, elements: &[(u64, u32, u16)]) {
        let mut place = self.next;
        let mut written = Vec::new();
        for (index, (gpa, len, flags)) in elements.iter().enumerate() {
            let last = index + 1 == elements.len();
            let next = if last { 0 } else { NEXT };
            let state = if place.wrap { AVAILABLE } else { USED };
            // The id is read in the last one alone.
            let id = if last { id } else { 0xdead };
            written.push((place.offset, (*gpa, *len, id, flags | next | state)));
            place = place.after(1, self.size);
        }
        for (index, descriptor) in written.into_iter().rev() {
            self.describe(RING.descriptors, index, descriptor);
        }
        self.next = place;
    }

    /// What the driver wants of interrupts: the lowest half is a place, the upper one flags.
    pub(crate) fn set_event(&self, place: u16, flags: u16) {
        self.put(RING.available, &place.to_le_bytes());
        self.put(RING.available + 2, &flags.to_le_bytes());
    }

    /// What the device wants of notifications: a place and flags.
    pub(crate) fn device_event(&self) -> (u16, u16) {
        let [place, flags] = [0, 2].map(|at| u16::from_le_bytes(self.get(RING.used + at)));
        (place, flags)
    }

    /// The flags of the next descriptor that is to be used, and whether it is.
    pub(crate) fn next_used(&self) -> Option<u16> {
        let at = RING.descriptors + u64::from(self.used.offset) * 16;
        let flags = u16::from_le_bytes(self.get(at + 14));
        let [available, used] = [AVAILABLE, USED].map(|flag| flags & flag != 0);
        (available == used && used == self.used.wrap).then_some(flags)
    }

    /// The next buffer that came back: (id, written).
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        self.next_used()?;
        let at = RING.descriptors + u64::from(self.used.offset) * 16;
        let id = u16::from_le_bytes(self.get(at + 12));
        let len = self.under_way.remove(&id);
        let len = len.unwrap_or_else(|| panic!("{id} is not under way"));
        self.used = self.used.after(len, self.size);
        Some((id, u32::from_le_bytes(self.get(at + 8))))
    }
}
