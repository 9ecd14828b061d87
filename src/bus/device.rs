//! What the machine, as opposed to the bus, calls of a device.

use std::io;
use std::sync::{Arc, Mutex};

use super::{DeviceRequest, Gauge, Handler, Region, RequestError, lock};
use crate::block::Syncer;
use crate::state::{Decoder, Encoder, StateError};

/// A device as the machine sees it.
pub trait Device: Send + Sync {
    /// A short name for messages, statistics and its section in a saved VM, e.g. `serial0`.
    fn name(&self) -> String;

    /// Starts nothing any more: no access to guest memory, no request to a back end, no interrupt from its
    /// own threads. What has begun goes on until it is [drained](Device::drained). Accesses may still arrive,
    /// from the completion of a vCPU's last instruction: they change registers, and what they ask for waits.
    /// A new device is quiesced. May be called again.
    fn quiesce(&self) {}

    /// Whether what had begun has come to its end. It may be asked at any time after [`Device::quiesce`].
    fn drained(&self) -> bool {
        true
    }

    /// Ends [`Device::quiesce`]: what has waited is started.
    fn resume(&self) {}

    /// Lets other processes have what it uses of the host alone, such as a disk's image: the VM continues in
    /// one of them. The device is quiesced and drained, and stays so until [`Device::acquire`].
    fn release(&self) {}

    /// Takes what it uses of the host alone. A new device has none of it; it comes before the first
    /// [`Device::resume`].
    ///
    /// # Errors
    /// If another process has it.
    fn acquire(&self) -> io::Result<()> {
        Ok(())
    }

    /// What puts all that the guest has written onto stable storage; it blocks, and needs no stop.
    fn syncer(&self) -> Option<Syncer> {
        None
    }

    /// Returns to the power-on state. The device is quiesced and drained.
    fn reset(&self);

    /// Why it can be neither saved nor migrated, if so.
    fn blocker(&self) -> Option<String> {
        None
    }

    /// Carries out what a user asks for. It may come at any time, also while the device is quiesced, and does
    /// not wait for the guest.
    ///
    /// # Errors
    /// If it is for other kinds of devices, or refused.
    fn request(&self, request: &DeviceRequest) -> Result<(), RequestError> {
        let _unused = request;
        Err(RequestError::OtherKind)
    }

    /// Where its report is read, if it has one.
    fn gauge(&self) -> Option<Arc<dyn Gauge>> {
        None
    }

    /// The version of what [`Device::save`] writes. [`Device::load`] takes this one and the one before.
    fn state_version(&self) -> u32 {
        1
    }

    /// Saves everything that the guest could notice, other than the configuration. The device is quiesced and
    /// drained.
    fn save(&self, to: &mut Encoder);

    /// Loads what was saved, and drives its interrupt lines accordingly. `from` is hostile; after an error
    /// the device may be anything that does no harm.
    ///
    /// # Errors
    /// If something is missing or invalid.
    fn load(&self, from: &mut Decoder<'_>) -> Result<(), StateError>;
}

/// A device among others.
pub type SharedDevice = Arc<dyn Device>;

/// A device whose whole state one lock guards: a `Mutex` of it is a [`Device`] and a [`Handler`]. The methods
/// are theirs.
#[expect(missing_docs, reason = "documented where the methods come from")]
pub trait LockedDevice: Send {
    fn name(&self) -> &str;
    fn quiesce(&mut self) {}
    fn drained(&self) -> bool {
        true
    }
    fn resume(&mut self) {}
    fn reset(&mut self);
    fn blocker(&self) -> Option<String> {
        None
    }
    fn read(&mut self, region: Region, offset: u64, data: &mut [u8]);
    fn write(&mut self, region: Region, offset: u64, data: &[u8]);
    fn state_version(&self) -> u32 {
        1
    }
    fn save(&self, to: &mut Encoder);
    #[expect(clippy::missing_errors_doc, reason = "as in Device")]
    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError>;
}

impl<D: LockedDevice + ?Sized> Handler for Mutex<D> {
    fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        lock(self).read(region, offset, data);
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) {
        lock(self).write(region, offset, data);
    }
}

impl<D: LockedDevice + ?Sized> Device for Mutex<D> {
    fn name(&self) -> String {
        lock(self).name().to_owned()
    }

    fn quiesce(&self) {
        lock(self).quiesce();
    }

    fn drained(&self) -> bool {
        lock(self).drained()
    }

    fn resume(&self) {
        lock(self).resume();
    }

    fn reset(&self) {
        lock(self).reset();
    }

    fn blocker(&self) -> Option<String> {
        lock(self).blocker()
    }

    fn state_version(&self) -> u32 {
        lock(self).state_version()
    }

    fn save(&self, to: &mut Encoder) {
        lock(self).save(to);
    }

    fn load(&self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        lock(self).load(from)
    }
}
