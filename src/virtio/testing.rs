//! A driver's side of a split ring, and of a packed one, for tests.

mod packed;

use std::ops::Deref;

use crate::memory::{Dma, GuestRam, MemoryConfig};
use crate::units::Gpa;

use super::queue::{Addresses, Ring, RingFeatures, Segment};
pub(crate) use packed::PackedDriver;

/// Where the driver has its ring, an indirect table, and buffers.
pub(crate) const RING: Addresses = Addresses {
    descriptors: 0x1000,
    available: 0x2000,
    used: 0x3000,
};
pub(crate) const TABLE: u64 = 0x4000;
pub(crate) const BUFFERS: u64 = 0x8000;
pub(crate) const RAM: u64 = 0x2_0000;

// Descriptor flags.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// The memory of the guest that a driver is in.
pub(crate) struct Memory {
    pub(crate) ram: GuestRam,
}

impl Memory {
    fn new() -> Self {
        let config = MemoryConfig::of(RAM);
        let ram = GuestRam::new(&config, &[(Gpa(0), RAM)]).unwrap();
        Self { ram }
    }

    /// Of a bus master.
    pub(crate) fn dma(&self) -> Dma {
        let dma = Dma::new(self.ram.clone());
        dma.gate().set(true);
        dma
    }

    pub(crate) fn put(&self, gpa: u64, data: &[u8]) {
        self.ram.write(Gpa(gpa), data).unwrap();
    }

    pub(crate) fn get<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut data = [0; N];
        self.ram.read(Gpa(gpa), &mut data).unwrap();
        data
    }
}

/// Addresses and lengths.
pub(crate) fn segments(chain: &[Segment]) -> Vec<(u64, u32)> {
    chain.iter().map(|s| (s.gpa.0, s.len)).collect()
}

/// A driver with one split ring.
pub(crate) struct Driver {
    memory: Memory,
    size: u16,
    available: u16,
    seen: u16,
}

impl Deref for Driver {
    type Target = Memory;

    fn deref(&self) -> &Memory {
        &self.memory
    }
}

impl Driver {
    pub(crate) fn new(size: u16) -> Self {
        Self {
            memory: Memory::new(),
            size,
            available: 0,
            seen: 0,
        }
    }

    /// Begins again, as after a reset of the device.
    pub(crate) fn rewind(&mut self) {
        self.seen = 0;
        self.put(RING.used + 2, &[0; 2]);
        self.set_available(0);
    }

    pub(crate) fn ring(&self, features: RingFeatures) -> Ring {
        Ring::new(self.size, RING, features).unwrap()
    }

    fn u16(&self, gpa: u64) -> u16 {
        u16::from_le_bytes(self.get(gpa))
    }

    /// Writes descriptor `index` of the table at `table`.
    pub(crate) fn describe(
        &self,
        table: u64,
        index: u16,
        (gpa, len, flags, next): (u64, u32, u16, u16),
    ) {
        let at = table + u64::from(index) * 16;
        self.put(at, &gpa.to_le_bytes());
        self.put(at + 8, &len.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    /// Makes the chain that begins with descriptor `head` available.
    pub(crate) fn offer(&mut self, head: u16) {
        let place = u64::from(self.available % self.size);
        self.put(RING.available + 4 + 2 * place, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
    }

    pub(crate) fn set_available(&mut self, index: u16) {
        self.available = index;
        self.put(RING.available + 2, &index.to_le_bytes());
    }

    pub(crate) fn set_flags(&self, flags: u16) {
        self.put(RING.available, &flags.to_le_bytes());
    }

    /// The driver wants an interrupt once the used index passes `index`.
    pub(crate) fn set_used_event(&self, index: u16) {
        self.put(
            RING.available + 4 + 2 * u64::from(self.size),
            &index.to_le_bytes(),
        );
    }

    pub(crate) fn available_event(&self) -> u16 {
        self.u16(RING.used + 4 + 8 * u64::from(self.size))
    }

    /// The next request that came back: (head, written).
    pub(crate) fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.u16(RING.used + 2) == self.seen {
            return None;
        }
        let at = RING.used + 4 + 8 * u64::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        Some((
            u32::from_le_bytes(self.get(at)),
            u32::from_le_bytes(self.get(at + 4)),
        ))
    }
}
