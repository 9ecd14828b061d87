//! What a device behind a PCI function is, and what it may ask of the bus.

use std::io;
use std::sync::{Arc, Mutex};

use super::caps::Capabilities;
use super::msix::{Messages, Msix};
use crate::block::Syncer;
use crate::bus::{DeviceRequest, Gauge, RequestError, lock};
use crate::irq::{LineHolder, Msi, Vector};
use crate::memory::Dma;
use crate::state::{Decoder, Encoder, StateError};

/// A device with a PCI function. Configuration space, where its BARs are, and MSI-X are a
/// [`Slot`](super::Slot)'s, which calls this. It chooses its own locks, and does not call back but through
/// its [`Requester`].
pub trait Function: Send + Sync {
    /// The guest reads BAR `bar` at `offset`. `data` comes filled with 0xff.
    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]);

    /// The guest writes BAR `bar` at `offset`.
    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]);

    /// The register at `offset` behind the header is read; `caps` has what is stored there. For registers
    /// with side effects.
    fn read_register(&self, offset: u16, caps: &Capabilities) -> u32 {
        caps.read(offset)
    }

    /// The bits in `mask` of the register at `offset` behind the header were written with `value`.
    fn register_written(&self, offset: u16, value: u32, mask: u32, caps: &Capabilities) {
        let _unused = (offset, value, mask, caps);
    }

    /// BAR `bar` is decoded at another address now, or no more.
    fn bar_moved(&self, bar: usize, at: Option<u64>) {
        let _unused = (bar, at);
    }

    /// The function may access memory now, or must not any more.
    fn bus_master_changed(&self, on: bool) {
        let _unused = on;
    }

    /// Starts no more requests.
    fn quiesce(&self) {}

    /// Whether no request is under way.
    fn drained(&self) -> bool {
        true
    }

    /// Goes on after [`Function::quiesce`], with what came meanwhile.
    fn resume(&self) {}

    /// As [`Device::release`](crate::bus::Device::release).
    fn release(&self) {}

    /// As [`Device::syncer`](crate::bus::Device::syncer).
    fn syncer(&self) -> Option<Syncer> {
        None
    }

    /// As [`Device::blocker`](crate::bus::Device::blocker).
    fn blocker(&self) -> Option<String> {
        None
    }

    /// As [`Device::acquire`](crate::bus::Device::acquire).
    ///
    /// # Errors
    /// If the host refuses.
    fn acquire(&self) -> io::Result<()> {
        Ok(())
    }

    /// As [`Device::request`](crate::bus::Device::request).
    ///
    /// # Errors
    /// If it is for other kinds of devices, or refused.
    fn request(&self, request: &DeviceRequest) -> Result<(), RequestError> {
        let _unused = request;
        Err(RequestError::OtherKind)
    }

    /// As [`Device::gauge`](crate::bus::Device::gauge).
    fn gauge(&self) -> Option<Arc<dyn Gauge>> {
        None
    }

    /// Back to power-on. No request is under way.
    fn reset(&self);

    /// Writes down what the guest could notice. No request is under way.
    fn save(&self, to: &mut Encoder);

    /// Takes over what was saved and asserts its interrupt pin accordingly; `from` is hostile.
    ///
    /// # Errors
    /// If something is missing, or cannot be.
    fn load(&self, from: &mut Decoder<'_>) -> Result<(), StateError>;
}

/// What a function does on the bus by itself: access memory, and interrupt. All of it needs the Bus Master
/// bit of its command register but the interrupt pin.
#[derive(Clone, Debug)]
pub struct Requester(Arc<Shared>);

struct Shared {
    dma: Dma,
    msix: Mutex<Msix<Box<dyn Messages + Send>>>,
    pin: Mutex<Pin>,
}

#[derive(Debug)]
struct Pin {
    line: LineHolder,
    /// Interrupt Status.
    pending: bool,
    /// Interrupt Disable.
    disabled: bool,
    /// A function with MSI-X enabled must not use its pin (PCI Local Bus 3.0, 6.8.3.3).
    msix: bool,
}

impl Pin {
    fn update(&self) {
        self.line.set(self.pending && !self.disabled && !self.msix);
    }
}

impl Requester {
    /// Accesses memory by `dma`, has a vector of MSI-X for each of `vectors`, and drives `line`.
    pub fn new(dma: Dma, vectors: Vec<Vector>, line: LineHolder) -> Self {
        let count = u16::try_from(vectors.len()).unwrap_or(u16::MAX);
        Self::with_messages(dma, count, Box::new(vectors), line)
    }

    pub(super) fn with_messages(
        dma: Dma,
        vectors: u16,
        messages: Box<dyn Messages + Send>,
        line: LineHolder,
    ) -> Self {
        Self(Arc::new(Shared {
            dma,
            msix: Mutex::new(Msix::new(vectors, messages)),
            pin: Mutex::new(Pin {
                line,
                pending: false,
                disabled: false,
                msix: false,
            }),
        }))
    }

    /// Memory, while the function is a bus master.
    pub fn dma(&self) -> &Dma {
        &self.0.dma
    }

    /// How many vectors of MSI-X there are.
    pub fn vectors(&self) -> u16 {
        u16::try_from(lock(&self.0.msix).vectors()).unwrap_or(u16::MAX)
    }

    /// Whether the driver uses MSI-X instead of the pin.
    pub fn msix_enabled(&self) -> bool {
        lock(&self.0.msix).enabled()
    }

    /// Interrupts by `vector` of MSI-X; it waits while it is masked.
    pub fn interrupt(&self, vector: u16) {
        lock(&self.0.msix).signal(vector.into());
    }

    /// Asserts the interrupt pin, or deasserts it.
    pub fn set_pin(&self, asserted: bool) {
        let mut pin = lock(&self.0.pin);
        pin.pending = asserted;
        pin.update();
    }

    /// Whether the pin is to be asserted: Interrupt Status.
    pub fn pin(&self) -> bool {
        lock(&self.0.pin).pending
    }

    /// What configuration space says now.
    pub(super) fn configure(&self, bus_master: bool, pin_disabled: bool, msix: Option<u32>) {
        self.0.dma.gate().set(bus_master);
        let enabled = self.msix(|m| {
            m.set_bus_master(bus_master);
            if let Some(control) = msix {
                m.set_control(control);
            }
            m.enabled()
        });
        let mut pin = lock(&self.0.pin);
        pin.disabled = pin_disabled;
        pin.msix = enabled;
        pin.update();
    }

    /// Calls `f` with the vectors.
    pub(super) fn msix<T>(&self, f: impl FnOnce(&mut Msix<Box<dyn Messages + Send>>) -> T) -> T {
        f(&mut lock(&self.0.msix))
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Requester")
            .field("dma", &self.dma)
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

impl Messages for Vec<Vector> {
    fn route(&mut self, vector: usize, message: Option<Msi>) {
        if let Some(vector) = self.get(vector) {
            vector.set(message);
        }
    }

    fn signal(&mut self, vector: usize) {
        if let Some(vector) = self.get(vector) {
            // It has a message, so it is delivered.
            let _delivered = vector.signal();
        }
    }
}

impl Messages for Box<dyn Messages + Send> {
    fn route(&mut self, vector: usize, message: Option<Msi>) {
        (**self).route(vector, message);
    }

    fn signal(&mut self, vector: usize) {
        (**self).signal(vector);
    }
}
