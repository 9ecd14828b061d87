//! Address ranges -> devices, for port I/O and MMIO.
//!
//! The range table is immutable once the machine is built, so a look-up takes no lock; only the device found is locked,
//! by the vCPU that accesses it. A device never calls back into the bus.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use crate::state::{Decoder, Encoder, StateError};

/// A device as the machine sees it: it has a name, can be reset, and answers accesses to the ranges it registered.
pub trait Device: Send {
    /// A short name for messages and statistics, e.g. `serial0`.
    fn name(&self) -> &str;

    /// Returns to the power-on state.
    fn reset(&mut self);

    /// The guest reads `data.len()` (1, 2, 4 or 8; for MMIO any of 1..=8) bytes at absolute address `addr`. `data` comes
    /// filled with 0xff, the value of an empty bus; a device leaves alone what it does not decode.
    fn read(&mut self, addr: u64, data: &mut [u8]);

    /// The guest writes `data` at absolute address `addr`. What the device does not decode is ignored.
    fn write(&mut self, addr: u64, data: &[u8]);

    /// The version of what [`Device::save`] writes. [`Device::load`] takes this one and the one before.
    fn state_version(&self) -> u32 {
        1
    }

    /// Writes down all that the guest could notice, other than the configuration. No vCPU runs.
    fn save(&self, to: &mut Encoder);

    /// Takes over what was saved, and drives its interrupt lines accordingly. `from` is hostile; after an error the device
    /// may be anything that does no harm.
    ///
    /// # Errors
    /// If something is missing, or cannot be.
    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError>;
}

/// A device shared by the vCPUs and whoever feeds it input.
pub type SharedDevice = Arc<Mutex<dyn Device>>;

/// Why a range could not be registered.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// The range overlaps one that is already there.
    #[error(
        "cannot place {name} at {start:#x}..={last:#x} on the {bus} bus: it overlaps {other} at {other_start:#x}..={other_last:#x}"
    )]
    Overlap {
        /// `port` or `MMIO`.
        bus: &'static str,
        /// The device to be placed.
        name: String,
        /// Its first address.
        start: u64,
        /// Its last address.
        last: u64,
        /// The device already there.
        other: String,
        /// The other's first address.
        other_start: u64,
        /// The other's last address.
        other_last: u64,
    },
    /// The range is empty or wraps around.
    #[error("cannot place {name} at {start:#x} with length {len:#x} on the {bus} bus: not a range")]
    NotARange {
        /// `port` or `MMIO`.
        bus: &'static str,
        /// The device to be placed.
        name: String,
        /// First address.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
}

struct Entry {
    start: u64,
    last: u64,
    name: String,
    device: SharedDevice,
}

/// One address space.
pub struct Bus {
    kind: &'static str,
    entries: Vec<Entry>,
}

impl Bus {
    /// An empty port-I/O space (16-bit addresses).
    pub fn ports() -> Self {
        Self {
            kind: "port",
            entries: Vec::new(),
        }
    }

    /// An empty MMIO space (guest-physical addresses).
    pub fn mmio() -> Self {
        Self {
            kind: "MMIO",
            entries: Vec::new(),
        }
    }

    /// Places `device` at `start..start + len`.
    ///
    /// # Errors
    /// If the range is empty, wraps, or overlaps another.
    pub fn register(&mut self, start: u64, len: u64, device: SharedDevice) -> Result<(), BusError> {
        let name = lock(&device).name().to_owned();
        let Some(last) = len.checked_sub(1).and_then(|n| start.checked_add(n)) else {
            return Err(BusError::NotARange {
                bus: self.kind,
                name,
                start,
                len,
            });
        };
        let at = self.entries.partition_point(|e| e.last < start);
        if let Some(other) = self.entries.get(at)
            && other.start <= last
        {
            return Err(BusError::Overlap {
                bus: self.kind,
                name,
                start,
                last,
                other: other.name.clone(),
                other_start: other.start,
                other_last: other.last,
            });
        }
        self.entries.insert(
            at,
            Entry {
                start,
                last,
                name,
                device,
            },
        );
        Ok(())
    }

    /// Reads `data.len()` bytes at `addr`. Without a device there, `data` reads as all ones, and `false` is returned.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        match self.find(addr) {
            Some(device) => {
                lock(device).read(addr, data);
                true
            }
            None => false,
        }
    }

    /// Writes `data` at `addr`; `false` if there is no device.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        match self.find(addr) {
            Some(device) => {
                lock(device).write(addr, data);
                true
            }
            None => false,
        }
    }

    /// Every range with its device's name, in address order: (first, last, name).
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64, &str)> {
        self.entries
            .iter()
            .map(|e| (e.start, e.last, e.name.as_str()))
    }

    fn find(&self, addr: u64) -> Option<&SharedDevice> {
        let at = self.entries.partition_point(|e| e.last < addr);
        self.entries
            .get(at)
            .filter(|e| e.start <= addr)
            .map(|e| &e.device)
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus")
            .field("kind", &self.kind)
            .field("ranges", &self.ranges().collect::<Vec<_>>())
            .finish()
    }
}

/// Locks a device. A poisoned lock is taken over: a device has no state that an unwinding access leaves half-written in a
/// way that matters more than the guest going on.
pub fn lock<T: ?Sized>(device: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Ram(Vec<u8>, u64);
    impl Device for Ram {
        fn name(&self) -> &str {
            "ram"
        }
        fn reset(&mut self) {
            self.0.fill(0);
        }
        fn read(&mut self, addr: u64, data: &mut [u8]) {
            for (d, s) in data.iter_mut().zip((addr - self.1)..) {
                if let Some(b) = usize::try_from(s).ok().and_then(|i| self.0.get(i)) {
                    *d = *b;
                }
            }
        }
        fn write(&mut self, addr: u64, data: &[u8]) {
            for (d, s) in data.iter().zip((addr - self.1)..) {
                if let Some(b) = usize::try_from(s).ok().and_then(|i| self.0.get_mut(i)) {
                    *b = *d;
                }
            }
        }
        fn save(&self, to: &mut Encoder) {
            to.bytes(&self.0);
        }
        fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
            self.0 = from.bytes("content")?.to_vec();
            Ok(())
        }
    }

    fn ram(base: u64) -> SharedDevice {
        Arc::new(Mutex::new(Ram(vec![0; 4], base)))
    }

    #[test]
    fn an_empty_bus_reads_all_ones() {
        let bus = Bus::ports();
        let mut data = [0; 4];
        assert!(!bus.read(0x80, &mut data));
        assert_eq!(data, [0xff; 4]);
        assert!(!bus.write(0x80, &[1]));
    }

    #[test]
    fn accesses_reach_the_device_whose_range_holds_the_address() {
        let mut bus = Bus::mmio();
        bus.register(0x20, 4, ram(0x20)).unwrap();
        bus.register(0x10, 4, ram(0x10)).unwrap();
        assert!(bus.write(0x12, &[7]));
        let mut data = [0];
        assert!(bus.read(0x12, &mut data));
        assert_eq!(data, [7]);
        assert!(bus.read(0x22, &mut data));
        assert_eq!(data, [0]);
        assert!(!bus.read(0x14, &mut data));
        assert!(!bus.read(0x24, &mut data));
    }

    #[test]
    fn an_access_past_the_end_of_a_range_reads_ones_there() {
        let mut bus = Bus::mmio();
        bus.register(0x10, 4, ram(0x10)).unwrap();
        let mut data = [0; 4];
        assert!(bus.read(0x12, &mut data));
        assert_eq!(data, [0, 0, 0xff, 0xff]);
    }

    #[test]
    fn overlaps_and_non_ranges_are_refused() {
        let mut bus = Bus::ports();
        bus.register(0x10, 4, ram(0x10)).unwrap();
        for (start, len) in [(0x10, 1), (0x13, 4), (0xe, 3), (0, 0x100)] {
            assert!(matches!(
                bus.register(start, len, ram(0)),
                Err(BusError::Overlap { .. })
            ));
        }
        for (start, len) in [(0, 0), (u64::MAX, 2)] {
            assert!(matches!(
                bus.register(start, len, ram(0)),
                Err(BusError::NotARange { .. })
            ));
        }
        bus.register(0x14, 1, ram(0)).unwrap();
        bus.register(0xf, 1, ram(0)).unwrap();
    }
}
