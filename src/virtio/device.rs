//! What a virtio device is, whatever transport leads to it.

use super::queue::{Chain, RingError, SplitRing};
use crate::memory::Dma;
use crate::state::{Decoder, Encoder, StateError};

/// The kinds of device (virtio 1.2, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An entropy source.
    Rng,
}

impl Kind {
    /// The device id.
    pub const fn id(self) -> u16 {
        match self {
            Self::Rng => 4,
        }
    }

    /// Class, subclass and programming interface of its PCI function: QEMU's.
    pub const fn pci_class(self) -> u32 {
        match self {
            Self::Rng => 0x00_ff00,
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

    /// How many descriptors each of its queues has at most.
    fn queues(&self) -> &'static [u16];

    /// Serves what is available in queue `index`, and at most as many requests as its ring has descriptors.
    /// `true`: more wait.
    ///
    /// # Errors
    /// If the ring is broken.
    fn serve(&mut self, index: usize, ring: &mut SplitRing, dma: &Dma) -> Result<bool, RingError>;

    /// Back to before the driver came.
    fn reset(&mut self) {}

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

/// Serves requests one after the other, for [`VirtioDevice::serve`]: `request` does what one asks for and
/// returns how many bytes it wrote into its writable part. A request that the loss of the Bus Master bit
/// interrupts is served again later.
///
/// # Errors
/// If the ring is broken, or `request` says so.
pub fn serve_in_order(
    ring: &mut SplitRing,
    dma: &Dma,
    chain: &mut Chain,
    mut request: impl FnMut(&Chain) -> Result<u32, RingError>,
) -> Result<bool, RingError> {
    let mut left = ring.size();
    loop {
        while ring.pop(dma, chain)? {
            let served = request(chain).and_then(|written| ring.push(dma, chain, written));
            if let Err(error) = served {
                ring.undo_pop();
                return Err(error);
            }
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
