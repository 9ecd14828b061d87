//! A function on the bus: its configuration space, and the ranges that its BARs place.

use std::sync::{Arc, Mutex};

use super::bar::{BARS, Bar, Bars, Space};
use super::caps::{Capabilities, FIRST, NoRoom};
use super::function::{Function, Requester};
use super::header::{Header, Ids};
use super::{ConfigSpace, DevFn};
use crate::block::Syncer;
use crate::bus::{Bus, Device, DeviceRequest, Gauge, Handler, Region, RequestError, Window, lock};
use crate::state::{Decoder, Encoder, StateError};

/// Versions of the parts of a function's state.
const HEADER_VERSION: u32 = 1;
const MSIX_VERSION: u32 = 1;
const FUNCTION_VERSION: u32 = 1;

/// What a function shows of itself.
#[derive(Clone, Debug)]
pub struct Shape {
    /// What it is.
    pub ids: Ids,
    /// Its ranges, by the number of their (first) register.
    pub bars: Vec<(usize, Bar)>,
    /// Its capabilities but MSI-X.
    pub capabilities: Capabilities,
    /// The BAR that holds the table and the pending bits of MSI-X, and nothing else.
    pub msix_bar: usize,
}

/// Where the pending bits begin in the BAR of MSI-X: the table of 128 vectors, or the whole of a larger one,
/// is before.
fn pending_at(table_len: u64) -> u64 {
    table_len.next_power_of_two().max(0x800)
}

/// The length of the BAR that holds the MSI-X registers of `vectors`.
pub fn msix_bar_len(vectors: u16) -> u64 {
    2 * pending_at(u64::from(vectors) * 16)
}

/// A [`Function`] in its place on the bus.
pub struct Slot {
    name: String,
    /// Where the first register of MSI-X is.
    msix: u16,
    config: Mutex<Config>,
    ranges: Arc<Ranges>,
}

struct Config {
    header: Header,
    caps: Capabilities,
    windows: [Option<Window>; BARS],
    /// Where the function was told its BARs are.
    placed: [Option<u64>; BARS],
    bus_master: bool,
}

/// What accesses to the BARs reach. It knows no windows, which keep it.
struct Ranges {
    function: Arc<dyn Function>,
    requester: Requester,
    msix_bar: usize,
    pending_at: u64,
}

impl Slot {
    /// `function` at `place`, not on the buses yet. It must have been given `requester`.
    ///
    /// # Errors
    /// If its capabilities do not fit.
    pub fn new(
        place: DevFn,
        shape: Shape,
        requester: Requester,
        function: Arc<dyn Function>,
    ) -> Result<Self, NoRoom> {
        let mut caps = shape.capabilities;
        let (msix, pending_at) = requester.msix(|m| {
            let pending_at = pending_at(m.table_len());
            let bar = u8::try_from(shape.msix_bar).unwrap_or(0);
            let at = u32::try_from(pending_at).unwrap_or(0);
            m.add_capability(&mut caps, bar, 0, at)
                .map(|msix| (msix, pending_at))
        })?;
        let bars = Bars::new(&shape.bars);
        let header = Header::new(shape.ids, bars, true, caps.first());
        Ok(Self {
            name: format!("pci-{place}"),
            msix,
            config: Mutex::new(Config {
                header,
                caps,
                windows: Default::default(),
                placed: [None; BARS],
                bus_master: false,
            }),
            ranges: Arc::new(Ranges {
                function,
                requester,
                msix_bar: shape.msix_bar,
                pending_at,
            }),
        })
    }

    /// Puts its ranges on the buses, where the guest then places them.
    pub fn connect(&self, ports: &Bus, mmio: &Bus) {
        let mut config = lock(&self.config);
        let Config {
            header, windows, ..
        } = &mut *config;
        for (number, bar) in header.bars().ranges() {
            let bus = match bar.space {
                Space::Io => ports,
                Space::Memory32 | Space::Memory64 => mmio,
            };
            let region = Region(u16::try_from(number).unwrap_or(0));
            let handler = Arc::clone(&self.ranges);
            windows[number] = Some(bus.window(&self.name, region, bar.size, handler));
        }
    }

    /// Acts on what configuration space says now.
    fn apply(&self, config: &mut Config) {
        let bus_master = config.header.bus_master();
        self.ranges.requester.configure(
            bus_master,
            config.header.intx_disabled(),
            Some(config.caps.read(self.msix)),
        );
        for number in 0..BARS {
            let at = config.header.decoded(number).map(|range| range.start);
            if config.placed[number] == at {
                continue;
            }
            config.placed[number] = at;
            if let Some(window) = &config.windows[number] {
                window.place(at);
            }
            self.ranges.function.bar_moved(number, at);
        }
        if config.bus_master != bus_master {
            config.bus_master = bus_master;
            self.ranges.function.bus_master_changed(bus_master);
        }
    }
}

impl ConfigSpace for Slot {
    fn read_config(&self, offset: u16) -> u32 {
        let config = lock(&self.config);
        if offset < FIRST {
            config.header.read(offset, self.ranges.requester.pin())
        } else {
            self.ranges.function.read_register(offset, &config.caps)
        }
    }

    fn write_config(&self, offset: u16, value: u32, mask: u32) {
        let mut config = lock(&self.config);
        if offset < FIRST {
            config.header.write(offset, value, mask);
        } else {
            config.caps.write(offset, value, mask);
            let caps = &config.caps;
            self.ranges
                .function
                .register_written(offset, value, mask, caps);
        }
        self.apply(&mut config);
    }
}

impl Handler for Ranges {
    fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        let bar = usize::from(region.0);
        if bar != self.msix_bar {
            return self.function.read_bar(bar, offset, data);
        }
        self.requester
            .msix(|m| match offset.checked_sub(self.pending_at) {
                Some(offset) => m.read_pending(offset, data),
                None => m.read_table(offset, data),
            });
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) {
        let bar = usize::from(region.0);
        if bar != self.msix_bar {
            return self.function.write_bar(bar, offset, data);
        }
        if offset < self.pending_at {
            self.requester.msix(|m| m.write_table(offset, data));
        }
    }
}

impl Device for Slot {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn quiesce(&self) {
        self.ranges.function.quiesce();
    }

    fn drained(&self) -> bool {
        self.ranges.function.drained()
    }

    fn resume(&self) {
        self.ranges.function.resume();
    }

    fn syncer(&self) -> Option<Syncer> {
        self.ranges.function.syncer()
    }

    fn blocker(&self) -> Option<String> {
        self.ranges.function.blocker()
    }

    fn request(&self, request: &DeviceRequest) -> Result<(), RequestError> {
        self.ranges.function.request(request)
    }

    fn gauge(&self) -> Option<Arc<dyn Gauge>> {
        self.ranges.function.gauge()
    }

    fn release(&self) {
        self.ranges.function.release();
    }

    fn acquire(&self) -> std::io::Result<()> {
        self.ranges.function.acquire()
    }

    fn reset(&self) {
        let mut config = lock(&self.config);
        config.header.reset();
        config.caps.reset();
        self.ranges.function.reset();
        self.ranges.requester.set_pin(false);
        self.ranges.requester.msix(|m| m.reset());
        self.apply(&mut config);
    }

    fn save(&self, to: &mut Encoder) {
        let config = lock(&self.config);
        let mut part = Encoder::new();
        config.header.save(&mut part);
        config.caps.save(&mut part);
        to.part("header", HEADER_VERSION, part);
        let mut part = Encoder::new();
        self.ranges.requester.msix(|m| m.save(&mut part));
        to.part("msix", MSIX_VERSION, part);
        let mut part = Encoder::new();
        self.ranges.function.save(&mut part);
        to.part("function", FUNCTION_VERSION, part);
    }

    fn load(&self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        let mut config = lock(&self.config);
        let mut part = from.part("header", HEADER_VERSION)?;
        config.header.load(&mut part)?;
        config.caps.load(&mut part)?;
        part.finish()?;
        let mut part = from.part("msix", MSIX_VERSION)?;
        self.ranges.requester.msix(|m| m.load(&mut part))?;
        part.finish()?;
        let mut part = from.part("function", FUNCTION_VERSION)?;
        self.ranges.function.load(&mut part)?;
        part.finish()?;
        self.apply(&mut config);
        Ok(())
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot")
            .field("name", &self.name)
            .field("header", &lock(&self.config).header)
            .finish_non_exhaustive()
    }
}
