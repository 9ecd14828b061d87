//! Address ranges -> devices, for port I/O and MMIO.
//!
//! A device has [`Region`]s; where each of them is in the address space is known here alone. A fixed region
//! is placed once; a [`Window`] (a BAR) is mapped, moved and unmapped by the guest while the vCPUs run.
//!
//! ```text
//!   Bus::fixed, Window::map ──► placements (a lock) ──► Table, published as a whole
//!                                                          │ no lock
//!   vCPU: read(address) ───────────────────────────────────┴──► Handler::read(region, offset)
//! ```
//!
//! A look-up takes no lock: it loads the published `table::Table`. Devices may call [`Window`] from within
//! an access (a write to a PCI command register does), as no lock of the bus is held then.

mod device;
mod request;
mod table;

use std::fmt;
use std::sync::{Arc, Mutex, Weak};

use arc_swap::{ArcSwap, Cache};
use thiserror::Error;

pub use crate::sys::lock;
pub use device::{Device, LockedDevice, SharedDevice};
pub use request::{DeviceReport, DeviceRequest, Gauge, RequestError};
use table::{Placement, Range, Table};

/// A device's own number for one of its address ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region(pub u16);

impl Region {
    /// The region of a device that has one.
    pub const ONLY: Self = Self(0);
}

/// What the bus calls. It is called by all vCPUs at once and chooses its own locks.
///
/// An access is decoded by its first byte: `data` may be longer than what is left of the region at `offset`.
pub trait Handler: Send + Sync {
    /// The guest reads `data.len()` (1, 2, 4 or 8; for MMIO any of 1..=8) bytes. `data` comes filled with
    /// 0xff, the value of an empty bus; a device leaves alone what it does not decode.
    fn read(&self, region: Region, offset: u64, data: &mut [u8]);

    /// The guest writes `data`. What the device does not decode is ignored.
    fn write(&self, region: Region, offset: u64, data: &[u8]);
}

/// Why a region could not be placed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// The range overlaps one that is already there.
    #[error(
        "cannot place {name} at {start:#x}..={last:#x} on the {bus} bus: it overlaps {other} at \
         {other_start:#x}..={other_last:#x}"
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

/// One address space, shared by all clones.
///
/// It keeps its handlers alive. A handler that holds a `Bus` would keep the bus alive in turn: devices hold
/// [`Window`]s, which do not.
#[derive(Clone)]
pub struct Bus(Arc<Shared>);

struct Shared {
    kind: &'static str,
    /// What look-ups read. Replaced only by whoever holds the lock of `placements`.
    table: Arc<ArcSwap<Table>>,
    placements: Mutex<Placements>,
}

#[derive(Default)]
struct Placements {
    fixed: Vec<Placement>,
    windows: Vec<OpenWindow>,
    next_id: u64,
    /// Counts mappings: who was mapped earlier.
    mappings: u64,
}

struct OpenWindow {
    id: u64,
    placement: Placement,
    len: u64,
    /// When it was mapped, if it is.
    mapped: Option<u64>,
}

impl Bus {
    /// An empty port-I/O space (16-bit addresses).
    pub fn ports() -> Self {
        Self::new("port")
    }

    /// An empty MMIO space (guest-physical addresses).
    pub fn mmio() -> Self {
        Self::new("MMIO")
    }

    fn new(kind: &'static str) -> Self {
        Self(Arc::new(Shared {
            kind,
            table: Arc::default(),
            placements: Mutex::default(),
        }))
    }

    /// Places `handler`'s `region` at `start..start + len` for good.
    ///
    /// # Errors
    /// If the range is empty, wraps, or overlaps another fixed one.
    pub fn fixed(
        &self,
        name: &str,
        region: Region,
        start: u64,
        len: u64,
        handler: Arc<dyn Handler>,
    ) -> Result<(), BusError> {
        let range = self.0.range(name, start, len)?;
        let mut placements = lock(&self.0.placements);
        if let Some(other) = placements
            .fixed
            .iter()
            .find(|other| other.range.overlaps(range))
        {
            return Err(BusError::Overlap {
                bus: self.0.kind,
                name: name.to_owned(),
                start: range.first,
                last: range.last,
                other: other.name.to_string(),
                other_start: other.range.first,
                other_last: other.range.last,
            });
        }
        placements.fixed.push(Placement {
            range,
            name: name.into(),
            region,
            handler,
        });
        self.0.publish(&placements);
        Ok(())
    }

    /// A region of `handler` of `len` bytes that the guest can move; not mapped yet.
    ///
    /// Where windows overlap something, the fixed region is decoded, and among windows the one that was
    /// mapped first. What is hidden so appears when the other leaves.
    pub fn window(
        &self,
        name: &str,
        region: Region,
        len: u64,
        handler: Arc<dyn Handler>,
    ) -> Window {
        let mut placements = lock(&self.0.placements);
        let id = placements.next_id;
        placements.next_id += 1;
        placements.windows.push(OpenWindow {
            id,
            placement: Placement {
                range: Range { first: 0, last: 0 },
                name: name.into(),
                region,
                handler,
            },
            len,
            mapped: None,
        });
        Window {
            bus: Arc::downgrade(&self.0),
            id,
        }
    }

    /// Reads `data.len()` bytes at `addr`. Without a device there, `data` reads as all ones, and `false` is
    /// returned.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        self.0.table.load().read(addr, data)
    }

    /// Writes `data` at `addr`; `false` if there is no device.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        self.0.table.load().write(addr, data)
    }

    /// The bus for one thread that accesses it again and again.
    pub fn view(&self) -> View {
        View(Cache::new(Arc::clone(&self.0.table)))
    }

    /// Every range that is decoded with its device's name, in address order: (first, last, name).
    pub fn ranges(&self) -> Vec<(u64, u64, Arc<str>)> {
        self.0.table.load().ranges().collect()
    }
}

/// A [`Bus`] for one thread: it keeps the table between accesses, and checks by one load that it is still the
/// published one.
pub struct View(Cache<Arc<ArcSwap<Table>>, Arc<Table>>);

impl View {
    /// As [`Bus::read`].
    pub fn read(&mut self, addr: u64, data: &mut [u8]) -> bool {
        self.0.load().read(addr, data)
    }

    /// As [`Bus::write`].
    pub fn write(&mut self, addr: u64, data: &[u8]) -> bool {
        self.0.load().write(addr, data)
    }
}

impl Shared {
    fn range(&self, name: &str, start: u64, len: u64) -> Result<Range, BusError> {
        Range::new(start, len).ok_or_else(|| BusError::NotARange {
            bus: self.kind,
            name: name.to_owned(),
            start,
            len,
        })
    }

    fn publish(&self, placements: &Placements) {
        let mut windows: Vec<_> = placements
            .windows
            .iter()
            .filter_map(|window| Some((window.mapped?, &window.placement)))
            .collect();
        windows.sort_by_key(|(mapped, _)| *mapped);
        let windows = windows.into_iter().map(|(_, placement)| placement);
        let table = Table::new(placements.fixed.iter().chain(windows));
        self.table.store(Arc::new(table));
    }
}

/// A region that the guest can move. Dropped, it is unmapped.
pub struct Window {
    bus: Weak<Shared>,
    id: u64,
}

impl Window {
    /// Maps the region at `at`, or moves it there. A look-up that begins after this finds it; one that runs
    /// may still reach the device as it was mapped before.
    ///
    /// # Errors
    /// If the region would wrap around the address space, or is empty; then it is not mapped.
    pub fn map(&self, at: u64) -> Result<(), BusError> {
        let Some(bus) = self.bus.upgrade() else {
            return Ok(());
        };
        let mut placements = lock(&bus.placements);
        let mappings = placements.mappings;
        let Some(window) = placements.find(self.id) else {
            return Ok(());
        };
        let range = bus.range(&window.placement.name, at, window.len);
        match range {
            Ok(range) if window.mapped.is_some() && window.placement.range == range => {
                return Ok(());
            }
            Ok(range) => {
                window.placement.range = range;
                window.mapped = Some(mappings);
                placements.mappings += 1;
            }
            Err(_) => window.mapped = None,
        }
        bus.publish(&placements);
        range.map(|_| ())
    }

    /// Maps the region at `at`, or takes it out of the address space; also the latter where it would wrap.
    pub fn place(&self, at: Option<u64>) {
        match at {
            Some(at) => {
                let _mapped = self.map(at);
            }
            None => self.unmap(),
        }
    }

    /// Takes the region out of the address space.
    pub fn unmap(&self) {
        if let Some(bus) = self.bus.upgrade() {
            let mut placements = lock(&bus.placements);
            if let Some(window) = placements.find(self.id)
                && window.mapped.take().is_some()
            {
                bus.publish(&placements);
            }
        }
    }

    /// Where it is mapped, also if something else is decoded there.
    pub fn address(&self) -> Option<u64> {
        let bus = self.bus.upgrade()?;
        let mut placements = lock(&bus.placements);
        let window = placements.find(self.id)?;
        window.mapped.map(|_| window.placement.range.first)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.unmap();
        if let Some(bus) = self.bus.upgrade() {
            let mut placements = lock(&bus.placements);
            let gone = placements.windows.iter().position(|w| w.id == self.id);
            let gone = gone.map(|index| placements.windows.swap_remove(index));
            // Its handler may hold other windows: dropped without the lock.
            drop(placements);
            drop(gone);
        }
    }
}

impl Placements {
    fn find(&mut self, id: u64) -> Option<&mut OpenWindow> {
        self.windows.iter_mut().find(|window| window.id == id)
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus")
            .field("kind", &self.0.kind)
            .field("ranges", &self.ranges())
            .finish()
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window")
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
