//! virtio over PCI (virtio 1.2, 4.1), for drivers since virtio 1.0. It knows no device in particular.
//!
//! ```text
//!   vCPU: write to a notify register ─► KVM signals its doorbell, or an exit reaches `write_bar`
//!                                          │ eventfd
//!   worker: lock ─► VirtioDevice::serve(ring) ─► Requester::interrupt
//! ```
//!
//! One lock guards the registers, the rings and the device. The worker holds it for a batch of requests, at
//! most as many as the ring has descriptors, so a vCPU that reads a register waits for one batch at most.
//! Stopping is taking the lock: afterwards no request is under way. A device that does not serve in order (a
//! disk) keeps what it has submitted, lets its completions ring the same worker, and is not drained before
//! all have come.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use nix::sys::eventfd::EventFd;
use thiserror::Error;

use super::common::{Change, Common, NO_VECTOR, RING_PACKED};
use crate::block::Syncer;
use crate::bus::{DeviceRequest, Gauge, RequestError, lock};
use crate::irq::{Doorbell, Doorbells, IoAddress, Match};
use crate::kvm::{KvmError, eventfd};
use crate::life::GuestEvents;
use crate::pci::bar::{Bar, Space};
use crate::pci::caps::{Capabilities, NoRoom};
use crate::pci::header::Ids;
use crate::pci::{DevFn, Function, Requester, Shape, Slot, msix_bar_len};
use crate::state::{Decoder, Encoder, StateError};
use crate::sys::Bell;
use crate::virtio::device::{Kind, VirtioDevice};
use crate::virtio::queue::{Ring, RingError};
use crate::virtio::worker::Worker;

/// Red Hat, for virtio.
const VENDOR: u16 = 0x1af4;
/// Plus the kind of device: one of virtio 1.0 and later (4.1.2.1).
const MODERN_DEVICE: u16 = 0x1040;
/// Windows' drivers look for revision 1 and QEMU's subsystem.
const REVISION: u8 = 1;
const SUBSYSTEM: u16 = 0x1100;

/// The BAR with the structures, and that with MSI-X.
const BAR: usize = BAR_NUMBER as usize;
const BAR_NUMBER: u8 = 0;
const MSIX_BAR: usize = 2;

// Where the structures are in their BAR: a page each.
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const PAGE: u64 = 0x1000;
const BAR_LEN: u64 = 0x4000;
/// From one queue's notify register to the next's.
const NOTIFY_STEP: u64 = 4;

/// Vendor-specific capability (PCI Local Bus 3.0, appendix H), which virtio's are (4.1.4).
const CAPABILITY: u8 = 0x09;
// `cfg_type`.
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;
/// Bytes of `struct virtio_pci_cap`, and of those with a further register.
const CAP_LEN: u8 = 16;
const LONG_CAP_LEN: u8 = 20;

// ISR status (4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;
/// In a saved state alone: the driver is to be told that the configuration has changed.
const SAVED_CONFIG_CHANGE: u8 = 0x80;

/// Why a function could not be made.
#[derive(Debug, Error)]
pub enum TransportError {
    /// Its doorbells.
    #[error(transparent)]
    Doorbell(#[from] KvmError),
    /// Its configuration space.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// Its thread.
    #[error("cannot start the thread of {name}")]
    Thread {
        /// Whose.
        name: String,
        /// Why.
        source: std::io::Error,
    },
}

/// How many vectors a device with so many queues needs: one each, and one for its configuration.
pub fn vectors(device: &dyn VirtioDevice) -> u16 {
    u16::try_from(device.queues().len() + 1).unwrap_or(u16::MAX)
}

/// Puts `device` behind a function at `place`, whose driver may have its rings `packed`. `requester` has
/// [`vectors`] of MSI-X. A panic of its thread is one of `events`' VM.
///
/// # Errors
/// If the host has no descriptors or threads left.
pub fn slot(
    place: DevFn,
    device: Box<dyn VirtioDevice>,
    packed: bool,
    requester: Requester,
    doorbells: &Doorbells,
    events: &GuestEvents,
) -> Result<Slot, TransportError> {
    let kind = device.kind();
    let mut capabilities = Capabilities::default();
    for (kind, at) in [(COMMON_CFG, COMMON), (ISR_CFG, ISR), (DEVICE_CFG, DEVICE)] {
        let body = capability(CAP_LEN, kind, at);
        capabilities.add(CAPABILITY, &body[..usize::from(CAP_LEN) - 2], &[])?;
    }
    let mut body = capability(LONG_CAP_LEN, NOTIFY_CFG, NOTIFY);
    body[14] = 4;
    capabilities.add(CAPABILITY, &body, &[])?;
    // What the driver writes says where it then reads and writes (4.1.4.9): bar, offset, length, data.
    let body = capability(LONG_CAP_LEN, PCI_CFG, 0);
    let mut writable = [0xff; 18];
    writable[..2].fill(0);
    writable[3..6].fill(0);
    let window = capabilities.add(CAPABILITY, &body, &writable)?;

    let function = VirtioPci::new(
        &format!("virtio {place}"),
        device,
        packed,
        requester.clone(),
        doorbells,
        events,
        window,
    )?;
    let vectors = requester.vectors();
    let shape = Shape {
        ids: ids(kind),
        bars: vec![
            (
                BAR,
                Bar {
                    space: Space::Memory64,
                    size: BAR_LEN,
                },
            ),
            (
                MSIX_BAR,
                Bar {
                    space: Space::Memory32,
                    size: msix_bar_len(vectors).max(PAGE),
                },
            ),
        ],
        capabilities,
        msix_bar: MSIX_BAR,
    };
    Ok(Slot::new(place, shape, requester, Arc::new(function))?)
}

fn ids(kind: Kind) -> Ids {
    Ids {
        vendor: VENDOR,
        device: MODERN_DEVICE + kind.id(),
        revision: REVISION,
        class: kind.pci_class(),
        subsystem_vendor: VENDOR,
        subsystem: SUBSYSTEM,
    }
}

/// `struct virtio_pci_cap` behind its id and next pointer: length, type, BAR, id, padding, offset and length
/// of the structure.
fn capability(len: u8, kind: u8, at: u64) -> [u8; 18] {
    let mut body = [0; 18];
    body[0] = len;
    body[1] = kind;
    body[2] = BAR_NUMBER;
    let at = u32::try_from(at).unwrap_or(0);
    body[6..10].copy_from_slice(&at.to_le_bytes());
    let len = if kind == PCI_CFG { 0 } else { PAGE };
    let len = u32::try_from(len).unwrap_or(0);
    body[10..14].copy_from_slice(&len.to_le_bytes());
    body
}

/// The function of a virtio device.
struct VirtioPci {
    shared: Arc<Shared>,
    /// One for each queue's notify register.
    doorbells: Vec<Doorbell>,
    /// Where the capability is that accesses the BAR by configuration space.
    window: u16,
    _worker: Worker,
}

/// What the worker shares with the vCPUs.
struct Shared {
    state: Mutex<State>,
    requester: Requester,
    wake: Arc<EventFd>,
}

struct State {
    common: Common,
    /// The rings of the queues that are enabled.
    rings: Vec<Option<Ring>>,
    device: Box<dyn VirtioDevice>,
    isr: u8,
    /// The driver has reset the device, whose requests are still under way: the status reads as 0 when they
    /// are done (4.1.4.3.2).
    resetting: bool,
    /// The machine is stopped.
    quiesced: bool,
    /// The queue that was served first in the last pass.
    first: usize,
    /// The generation of the device's configuration that the driver knows of.
    told: u32,
    /// The driver was to be told of another one when the state was saved.
    untold: bool,
}

impl VirtioPci {
    fn new(
        name: &str,
        device: Box<dyn VirtioDevice>,
        packed: bool,
        requester: Requester,
        doorbells: &Doorbells,
        events: &GuestEvents,
        window: u16,
    ) -> Result<Self, TransportError> {
        let queues = device.queues();
        let doorbells = queues
            .iter()
            .map(|_| doorbells.doorbell(Match::Any))
            .collect::<Result<Vec<_>, _>>()?;
        let wake = Arc::new(eventfd::new()?);
        let completions = device.bell();
        let device_generation = device.config_generation();
        let features = device.features() | if packed { RING_PACKED } else { 0 };
        let state = State {
            common: Common::new(features, queues, requester.vectors()),
            rings: queues.iter().map(|_| None).collect(),
            device,
            isr: 0,
            resetting: false,
            // Until the machine runs.
            quiesced: true,
            first: 0,
            told: device_generation,
            untold: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            requester,
            wake: Arc::clone(&wake),
        });
        let bells = doorbells.iter().map(|bell| Arc::clone(bell.eventfd()));
        let bells = bells.map(Bell::Event).chain(completions).collect();
        let serving = Arc::clone(&shared);
        let worker = Worker::start(name, events, wake, bells, move || serving.serve());
        let worker = worker.map_err(|source| TransportError::Thread {
            name: name.to_owned(),
            source,
        })?;
        Ok(Self {
            shared,
            doorbells,
            window,
            _worker: worker,
        })
    }

    /// Where in the BAR the window of the capability is, if it is at one.
    fn window(&self, caps: &Capabilities) -> Option<(u64, usize)> {
        let [bar, offset, len] = [4, 8, 12].map(|at| caps.read(self.window + at));
        let len = usize::try_from(len).ok()?;
        let aligned = matches!(len, 1 | 2 | 4) && offset % u32::try_from(len).ok()? == 0;
        (bar & 0xff == u32::from(BAR_NUMBER) && aligned).then_some((offset.into(), len))
    }
}

impl Shared {
    fn wake(&self) {
        // It fails only if the counter is full, and then the worker wakes up as well.
        let _woken = self.wake.write(1);
    }

    /// Returns what is done, and serves a batch of each queue; and when to do so again at the latest.
    fn serve(&self) -> Option<Instant> {
        let mut state = lock(&self.state);
        if state.serve(&self.requester) {
            self.wake();
        }
        let serves = state.serves(&self.requester);
        serves.then(|| state.device.wake_at()).flatten()
    }
}

impl State {
    /// Whether queues are served at all.
    fn serves(&self, requester: &Requester) -> bool {
        !self.quiesced && self.common.is_running() && requester.dma().gate().is_open()
    }

    /// `true`: there is more to do.
    fn serve(&mut self, requester: &Requester) -> bool {
        self.complete(requester);
        let more = self.serve_queues(requester);
        self.tell_config(requester);
        more
    }

    /// Whether the driver does not know of the last change of the device's configuration.
    fn config_changed(&self) -> bool {
        self.untold || self.told != self.device.config_generation()
    }

    /// Tells the driver of a change of the device's configuration (4.1.5.3), once it is ready: it may have
    /// read it before. A machine that is stopped sends no interrupts.
    fn tell_config(&mut self, requester: &Requester) {
        if self.quiesced || !self.common.is_running() || !self.config_changed() {
            return;
        }
        self.know_config();
        let vector = self.common.config_vector();
        self.interrupt(requester, vector, ISR_CONFIG);
    }

    /// The driver knows the configuration, or will read it.
    fn know_config(&mut self) {
        self.told = self.device.config_generation();
        self.untold = false;
    }

    fn serve_queues(&mut self, requester: &Requester) -> bool {
        let mut more = false;
        let count = self.rings.len();
        // Each pass begins with another queue, so that none takes all that a device has room for.
        let first = (self.first + 1) % count.max(1);
        self.first = first;
        for index in (0..count).map(|n| (first + n) % count) {
            if !requester.dma().gate().is_open() {
                return false;
            }
            let running = self.common.is_running();
            let Some(ring) = self.rings.get_mut(index).and_then(Option::as_mut) else {
                continue;
            };
            let dma = requester.dma();
            // What was returned is told also while the machine stops, or if another ring is broken.
            let served = if self.quiesced || !running {
                Ok(false)
            } else {
                self.device.serve(index, ring, dma)
            };
            // What was served before an error is the driver's already.
            let wants = ring.wants_interrupt(dma);
            if matches!(wants, Ok(true)) {
                let vector = self
                    .common
                    .queues()
                    .get(index)
                    .map_or(NO_VECTOR, |q| q.vector);
                self.interrupt(requester, vector, ISR_QUEUE);
            }
            match served.and_then(|more| wants.map(|_| more)) {
                Ok(waiting) => more |= waiting,
                Err(error) if running => self.broken(requester, &error),
                Err(_) => {}
            }
        }
        more && self.common.is_running()
    }

    /// Returns what is done, and starts what has waited.
    fn complete(&mut self, requester: &Requester) {
        let dma = requester.dma();
        let rings = match self.common.is_running() {
            true => &mut self.rings[..],
            // They are the driver's no more, or broken.
            false => &mut [],
        };
        let mut completed = self.device.complete(rings, dma);
        if !self.quiesced && self.common.is_running() && completed.is_ok() {
            completed = self.device.restart(rings, dma);
        }
        if let Err(error) = completed {
            self.broken(requester, &error);
        }
        self.finish_reset(requester);
    }

    /// Ends a reset that has waited, once no request is under way.
    fn finish_reset(&mut self, requester: &Requester) {
        if self.resetting && !self.device.in_flight() {
            self.reset(requester);
        }
    }

    fn interrupt(&mut self, requester: &Requester, vector: u16, isr: u8) {
        if requester.msix_enabled() {
            // NO_VECTOR is none that there is.
            requester.interrupt(vector);
        } else {
            self.isr |= isr;
            requester.set_pin(true);
        }
    }

    /// The loss of the Bus Master bit breaks nothing: the queue is served when it is back.
    fn broken(&mut self, requester: &Requester, error: &RingError) {
        if error.is_gate_closed() {
            return;
        }
        tracing::debug!("a {:?} device needs a reset: {error}", self.device.kind());
        self.common.set_needs_reset();
        let vector = self.common.config_vector();
        self.interrupt(requester, vector, ISR_CONFIG);
    }

    fn reset(&mut self, requester: &Requester) {
        self.common.reset();
        self.rings.fill(None);
        self.device.reset();
        self.isr = 0;
        self.resetting = false;
        self.know_config();
        requester.set_pin(false);
    }

    /// The driver resets the device.
    fn begin_reset(&mut self, requester: &Requester) {
        self.resetting = true;
        self.rings.fill(None);
        self.device.withdraw();
        self.common.stop();
        self.isr = 0;
        requester.set_pin(false);
        self.finish_reset(requester);
    }

    fn ring(&self, index: usize) -> Result<Option<Ring>, RingError> {
        let features = self.common.ring_features();
        match self.common.queues().get(index) {
            Some(queue) if queue.enabled => Ring::new(queue.size, queue.at, features).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether the worker has something to do now.
    fn write_common(&mut self, requester: &Requester, offset: u64, data: &[u8]) -> bool {
        if self.resetting {
            return false;
        }
        match self.common.write(offset, data) {
            Change::None => false,
            Change::Reset => {
                self.begin_reset(requester);
                false
            }
            change @ (Change::Agreed | Change::Started) => {
                self.device.set_features(self.common.agreed_features());
                change == Change::Started
            }
            Change::QueueEnabled(index) => {
                match self.ring(index) {
                    Ok(ring) => self.rings[index] = ring,
                    Err(error) => self.broken(requester, &error),
                }
                true
            }
        }
    }
}

impl Function for VirtioPci {
    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
        if bar != BAR {
            return;
        }
        let mut state = lock(&self.shared.state);
        match offset & !(PAGE - 1) {
            COMMON => {
                let generation = state.device.config_generation();
                state.common.set_generation(generation);
                state.common.read(offset, data);
            }
            ISR => {
                data.fill(0);
                if let (ISR, [isr, ..]) = (offset, data) {
                    // Reading takes it away, and the interrupt with it (4.1.4.5).
                    *isr = std::mem::take(&mut state.isr);
                    self.shared.requester.set_pin(false);
                }
            }
            DEVICE => state.device.read_config(offset - DEVICE, data),
            // Notify registers.
            _ => data.fill(0),
        }
    }

    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) {
        if bar != BAR {
            return;
        }
        match offset & !(PAGE - 1) {
            COMMON => {
                let mut state = lock(&self.shared.state);
                if state.write_common(&self.shared.requester, offset, data) {
                    self.shared.wake();
                }
            }
            DEVICE => {
                let mut state = lock(&self.shared.state);
                // A device that is being reset is the driver's no more.
                if !state.resetting {
                    state.device.write_config(offset - DEVICE, data);
                }
            }
            // Any queue: the worker looks at all.
            NOTIFY => self.shared.wake(),
            _ => {}
        }
    }

    fn read_register(&self, offset: u16, caps: &Capabilities) -> u32 {
        match self.window(caps) {
            Some((at, len)) if offset == self.window + 16 => {
                let mut data = [0; 4];
                self.read_bar(BAR, at, &mut data[..len]);
                u32::from_le_bytes(data)
            }
            _ => caps.read(offset),
        }
    }

    fn register_written(&self, offset: u16, value: u32, mask: u32, caps: &Capabilities) {
        if let Some((at, len)) = self.window(caps)
            && offset == self.window + 16
            && mask.to_le_bytes()[..len].iter().all(|byte| *byte != 0)
        {
            self.write_bar(BAR, at, &value.to_le_bytes()[..len]);
        }
    }

    fn bar_moved(&self, bar: usize, at: Option<u64>) {
        if bar != BAR {
            return;
        }
        for (index, doorbell) in (0..).zip(&self.doorbells) {
            let register = at.and_then(|at| at.checked_add(NOTIFY + index * NOTIFY_STEP));
            match register {
                // Where KVM refuses, e.g. because another function's is there, writes exit and reach
                // `write_bar`.
                Some(at) => {
                    let _attached = doorbell.attach(IoAddress::Mmio(at));
                }
                None => doorbell.detach(),
            }
        }
    }

    fn bus_master_changed(&self, on: bool) {
        match on {
            true => self.shared.wake(),
            false => lock(&self.shared.state).device.withdraw(),
        }
    }

    fn quiesce(&self) {
        let mut state = lock(&self.shared.state);
        state.quiesced = true;
        state.device.withdraw();
    }

    fn resume(&self) {
        let mut state = lock(&self.shared.state);
        state.quiesced = false;
        state.device.resume();
        drop(state);
        // Notifications that came meanwhile, or before the VM was saved, are lost.
        self.shared.wake();
    }

    fn drained(&self) -> bool {
        let mut state = lock(&self.shared.state);
        state.finish_reset(&self.shared.requester);
        !state.device.in_flight()
    }

    fn syncer(&self) -> Option<Syncer> {
        lock(&self.shared.state).device.syncer()
    }

    fn blocker(&self) -> Option<String> {
        lock(&self.shared.state).device.blocker()
    }

    fn request(&self, request: &DeviceRequest) -> Result<(), RequestError> {
        let result = lock(&self.shared.state).device.request(request);
        // It tells the driver of a change, and serves what may have waited for it.
        self.shared.wake();
        result
    }

    fn gauge(&self) -> Option<Arc<dyn Gauge>> {
        lock(&self.shared.state).device.gauge()
    }

    fn release(&self) {
        lock(&self.shared.state).device.release();
    }

    fn acquire(&self) -> std::io::Result<()> {
        lock(&self.shared.state).device.acquire()
    }

    fn reset(&self) {
        lock(&self.shared.state).reset(&self.shared.requester);
    }

    fn save(&self, to: &mut Encoder) {
        let state = lock(&self.shared.state);
        state.common.save(to);
        let untold = match state.config_changed() {
            true => SAVED_CONFIG_CHANGE,
            false => 0,
        };
        to.u8(state.isr | untold);
        for ring in state.rings.iter().flatten() {
            ring.save(to);
        }
        state.device.save(to);
    }

    fn load(&self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        let mut guard = lock(&self.shared.state);
        let state = &mut *guard;
        state.reset(&self.shared.requester);
        state.common.load(from)?;
        state.device.set_features(state.common.agreed_features());
        let isr = from.u8("ISR status")?;
        state.isr = isr & (ISR_QUEUE | ISR_CONFIG);
        state.untold = isr & SAVED_CONFIG_CHANGE != 0;
        for index in 0..state.rings.len() {
            let ring = state.ring(index);
            // A ring that could not be made when it was enabled is one that has broken the device.
            let mut ring = match ring {
                Err(e) if state.common.is_running() => {
                    return Err(from.invalid("queue", e.to_string()));
                }
                ring => ring.unwrap_or(None),
            };
            if let Some(ring) = &mut ring {
                ring.load(from)?;
            }
            state.rings[index] = ring;
        }
        state.device.load(from)?;
        self.shared.requester.set_pin(state.isr != 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
