//! What a virtio device is, whatever transport leads to it.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::queue::{Chain, Ring, RingError};
use crate::block::Syncer;
use crate::bus::{DeviceRequest, Gauge, RequestError};
use crate::memory::Dma;
use crate::state::{Decoder, Encoder, StateError};
use crate::sys::Bell;

/// The kinds of device (virtio 1.2, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A network card.
    Net,
    /// An entropy source.
    Rng,
    /// A disk.
    Blk,
    /// A console.
    Console,
    /// A balloon.
    Balloon,
}

impl Kind {
    /// The device id.
    pub const fn id(self) -> u16 {
        match self {
            Self::Net => 1,
            Self::Blk => 2,
            Self::Console => 3,
            Self::Rng => 4,
            Self::Balloon => 5,
        }
    }

    /// Class, subclass and programming interface of its PCI function: QEMU's.
    pub const fn pci_class(self) -> u32 {
        match self {
            Self::Net => 0x02_0000,
            Self::Blk => 0x01_0000,
            Self::Console => 0x07_8000,
            Self::Rng | Self::Balloon => 0x00_ff00,
        }
    }
}

/// A device: what its requests mean. Its transport's lock guards it, and quiesces it: between two calls no
/// request of a device that serves in order is under way.
pub trait VirtioDevice: Send {
    /// What it is.
    fn kind(&self) -> Kind;

    /// The features that are its own: bits 23:0 and 50 and above (2.2).
    fn features(&self) -> u64 {
        0
    }

    /// The driver has agreed on `features`, of its own and of the transport; also called when it is ready.
    fn set_features(&mut self, features: u64) {
        let _unused = features;
    }

    /// How many descriptors each of its queues has at most.
    fn queues(&self) -> &[u16];

    /// The driver reads its configuration from `offset` on.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let _unused = offset;
        data.fill(0);
    }

    /// The driver writes its configuration from `offset` on.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _unused = (offset, data);
    }

    /// Changes whenever the configuration does that [`VirtioDevice::read_config`] shows, in a call of the
    /// device or in between, but for what the driver writes. After each the transport compares it, and tells
    /// the driver.
    fn config_generation(&self) -> u32 {
        0
    }

    /// As [`Device::request`](crate::bus::Device::request). The worker is woken afterwards.
    ///
    /// # Errors
    /// If it is for other kinds of devices, or refused.
    fn request(&mut self, request: &DeviceRequest) -> Result<(), RequestError> {
        let _unused = request;
        Err(RequestError::OtherKind)
    }

    /// As [`Device::gauge`](crate::bus::Device::gauge).
    fn gauge(&self) -> Option<Arc<dyn Gauge>> {
        None
    }

    /// Is signalled when requests that it has under way are done, or its back end has something for it:
    /// [`VirtioDevice::complete`] and [`VirtioDevice::serve`] are called then.
    fn bell(&self) -> Option<Bell> {
        None
    }

    /// Whether requests are under way that may access guest memory.
    fn in_flight(&self) -> bool {
        false
    }

    /// Returns the requests that are done to their rings; what was of a ring that is no more is dropped.
    ///
    /// # Errors
    /// If a ring is broken.
    fn complete(&mut self, rings: &mut [Option<Ring>], dma: &Dma) -> Result<(), RingError> {
        let _unused = (rings, dma);
        Ok(())
    }

    /// Starts the requests that it had taken before it was saved, or that have waited for
    /// [`VirtioDevice::resume`].
    ///
    /// # Errors
    /// If a ring is broken.
    fn restart(&mut self, rings: &mut [Option<Ring>], dma: &Dma) -> Result<(), RingError> {
        let _unused = (rings, dma);
        Ok(())
    }

    /// Serves what is available in queue `index`, and at most as many requests as its ring has descriptors.
    /// `true`: more wait.
    ///
    /// # Errors
    /// If the ring is broken.
    fn serve(&mut self, index: usize, ring: &mut Ring, dma: &Dma) -> Result<bool, RingError>;

    /// When it wants to serve its queues again without being notified, after a pass over them that has left
    /// something there.
    fn wake_at(&self) -> Option<Instant> {
        None
    }

    /// Takes back what it has under way and the host has not begun: the machine stops, or the function may
    /// not access memory. [`VirtioDevice::restart`] begins it again.
    fn withdraw(&mut self) {}

    /// The machine runs again.
    fn resume(&mut self) {}

    /// As [`Device::syncer`](crate::bus::Device::syncer).
    fn syncer(&self) -> Option<Syncer> {
        None
    }

    /// As [`Device::blocker`](crate::bus::Device::blocker).
    fn blocker(&self) -> Option<String> {
        None
    }

    /// Back to before the driver came. No request is under way.
    fn reset(&mut self) {}

    /// As [`Device::release`](crate::bus::Device::release).
    fn release(&mut self) {}

    /// As [`Device::acquire`](crate::bus::Device::acquire).
    ///
    /// # Errors
    /// If the host refuses.
    fn acquire(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Writes down what the guest could notice.
    fn save(&self, to: &mut Encoder) {
        let _unused = to;
    }

    /// Takes over what was saved.
    ///
    /// # Errors
    /// If something is missing, or cannot be.
    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        let _unused = from;
        Ok(())
    }
}

/// Reads from the structure `config` at `offset` on, with zeroes behind its end.
pub(super) fn read_config(config: &[u8], offset: u64, data: &mut [u8]) {
    for (at, byte) in (offset..).zip(data) {
        let field = usize::try_from(at).ok().and_then(|at| config.get(at));
        *byte = field.copied().unwrap_or(0);
    }
}

/// Serves the next request, if there is one: `request` does what it asks for and returns how many bytes it
/// wrote into its writable part. A request that the loss of the Bus Master bit interrupts is served again
/// later.
///
/// # Errors
/// If the ring is broken, or `request` says so.
pub fn serve_next(
    ring: &mut Ring,
    dma: &Dma,
    chain: &mut Chain,
    request: impl FnOnce(&Chain) -> Result<u32, RingError>,
) -> Result<bool, RingError> {
    if !ring.pop(dma, chain)? {
        return Ok(false);
    }
    let served = request(chain).and_then(|written| ring.push(dma, chain.head(), written));
    match served {
        Ok(()) => Ok(true),
        Err(error) => {
            ring.undo_pop(chain.head());
            Err(error)
        }
    }
}

/// Serves requests one after the other, for [`VirtioDevice::serve`], each as [`serve_next`] does.
///
/// # Errors
/// If the ring is broken, or `request` says so.
pub fn serve_in_order(
    ring: &mut Ring,
    dma: &Dma,
    chain: &mut Chain,
    mut request: impl FnMut(&Chain) -> Result<u32, RingError>,
) -> Result<bool, RingError> {
    let mut left = ring.size();
    loop {
        while serve_next(ring, dma, chain, &mut request)? {
            left -= 1;
            if left == 0 {
                return Ok(true);
            }
        }
        if !ring.rearm(dma)? {
            return Ok(false);
        }
    }
}
