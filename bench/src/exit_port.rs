//! Ports from which L1 reads its vCPU's exit count: the host's counter at the time of the read.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use hypernest::bus::{LockedDevice, Region};
use hypernest::life::{MachineHandle, Request};
use hypernest::machine::{ExitCounters, ExtraPorts};
use hypernest::state::{Decoder, Encoder, StateError};
use hypernest::units::VpIndex;

/// The first port. No PC device is there.
pub(crate) const FIRST: u16 = 0xc10;
pub(crate) const COUNT: u16 = 8;
/// The offset of the low 32 bits of the boot vCPU's exits.
pub(crate) const EXITS: u16 = 0;
/// The offset of [`SIGNATURE`].
pub(crate) const PRESENT: u16 = 4;
/// `HNXC`: the ports exist.
pub(crate) const SIGNATURE: u32 = u32::from_le_bytes(*b"HNXC");

/// Ends the VM when L1 resets itself: a restarted measurement is invalid.
#[derive(Debug, Default)]
pub(crate) struct ResetWatch {
    handle: OnceLock<MachineHandle>,
    power_ons: AtomicU32,
}

impl ResetWatch {
    /// Sets the VM to end.
    pub(crate) fn of(&self, handle: MachineHandle) {
        // Set once, by the creator of the VM.
        let _first = self.handle.set(handle);
    }

    /// A device of the VM was powered on: the second power-on ends the VM.
    pub(crate) fn power_on(&self) {
        self.power_ons.fetch_add(1, Ordering::Relaxed);
        if self.saw_reset()
            && let Some(handle) = self.handle.get()
        {
            handle.request(Request::Kill);
        }
    }

    /// Whether L1 has reset itself.
    pub(crate) fn saw_reset(&self) -> bool {
        self.power_ons.load(Ordering::Relaxed) > 1
    }
}

/// The device of the exit-count ports.
#[derive(Debug, Default)]
pub(crate) struct ExitPort {
    counters: ExitCounters,
    resets: Arc<ResetWatch>,
}

impl ExitPort {
    /// A device that shows `counters`, and reports every power-on to `resets`.
    pub(crate) fn new(counters: &ExitCounters, resets: &Arc<ResetWatch>) -> Self {
        Self {
            counters: counters.clone(),
            resets: Arc::clone(resets),
        }
    }

    /// The device at the ports that L1 reads.
    pub(crate) fn at_its_place(self) -> ExtraPorts {
        ExtraPorts::new(FIRST, COUNT, Arc::new(Mutex::new(self)))
    }
}

impl LockedDevice for ExitPort {
    fn name(&self) -> &str {
        "exit-counter"
    }

    fn reset(&mut self) {
        self.resets.power_on();
    }

    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else {
            return;
        };
        if offset == u64::from(PRESENT) {
            *data = SIGNATURE.to_le_bytes();
        } else if offset == u64::from(EXITS)
            && let Some(exits) = self.counters.read(VpIndex(0))
            && let Some(low) = exits.to_le_bytes().first_chunk()
        {
            *data = *low;
        }
    }

    fn write(&mut self, _region: Region, _offset: u64, _data: &[u8]) {}

    fn save(&self, _to: &mut Encoder) {}

    fn load(&mut self, _from: &mut Decoder<'_>) -> Result<(), StateError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypernest::life::UserRequest;

    fn read(device: &mut ExitPort, offset: u16, len: usize) -> Vec<u8> {
        let mut data = vec![0xff; len];
        device.read(Region::ONLY, offset.into(), &mut data);
        data
    }

    #[test]
    fn only_whole_words_answer() {
        let mut device = ExitPort::default();
        assert_eq!(read(&mut device, PRESENT, 4), b"HNXC");
        assert_eq!(read(&mut device, PRESENT, 2), [0xff; 2]);
        assert_eq!(read(&mut device, PRESENT + 2, 4), [0xff; 4]);
        // Without a VM there are no exits to count.
        assert_eq!(read(&mut device, EXITS, 4), [0xff; 4]);
    }

    #[test]
    fn the_second_power_on_ends_the_vm() {
        let (_, handle, inbox) = hypernest::life::channel();
        let resets = Arc::new(ResetWatch::default());
        let mut device = ExitPort::new(&ExitCounters::default(), &resets);
        resets.of(handle);
        device.reset();
        assert!(inbox.next_request().is_none() && !resets.saw_reset());
        device.reset();
        assert!(resets.saw_reset());
        assert_eq!(inbox.next_request(), Some(UserRequest::Life(Request::Kill)));
    }
}
