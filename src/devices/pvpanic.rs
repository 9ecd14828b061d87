//! pvpanic: reports a guest's panic to the host (QEMU's docs/specs/pvpanic).

use crate::bus::{LockedDevice, Region};
use crate::life::{GuestEvent, GuestEvents};
use crate::state::{Decoder, Encoder, StateError};

const PANICKED: u8 = 1 << 0;
/// A crash kernel takes over.
const CRASH_LOADED: u8 = 1 << 1;
/// The supported events; the guest reads them and sends no others.
const SUPPORTED: u8 = PANICKED | CRASH_LOADED;

/// The port.
#[derive(Debug)]
pub struct Pvpanic {
    events: GuestEvents,
}

impl Pvpanic {
    /// The state at power-on.
    pub fn new(events: GuestEvents) -> Self {
        Self { events }
    }
}

impl LockedDevice for Pvpanic {
    fn name(&self) -> &str {
        "pvpanic"
    }

    fn reset(&mut self) {}

    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        if offset == 0
            && let Some(byte) = data.first_mut()
        {
            *byte = SUPPORTED;
        }
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        let (true, Some(&value)) = (offset == 0, data.first()) else {
            return;
        };
        if value & PANICKED != 0 {
            self.events.report(GuestEvent::Panicked);
        } else if value & CRASH_LOADED != 0 {
            self.events.report(GuestEvent::CrashKernelLoaded);
        }
    }

    fn save(&self, _to: &mut Encoder) {}

    fn load(&mut self, _from: &mut Decoder<'_>) -> Result<(), StateError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{inb, outb};
    use crate::life::channel;

    #[test]
    fn each_event_is_reported() {
        let (guest, _, events) = channel();
        let mut device = Pvpanic::new(guest);
        assert_eq!(inb(&mut device, 0), 0x03);
        for (value, event) in [
            (0x01, Some(GuestEvent::Panicked)),
            (0x02, Some(GuestEvent::CrashKernelLoaded)),
            (0x03, Some(GuestEvent::Panicked)),
            (0x00, None),
            (0xfc, None),
        ] {
            outb(&mut device, 0, value);
            assert_eq!(events.take_guest_events().pop(), event, "{value:#x}");
        }
    }
}
