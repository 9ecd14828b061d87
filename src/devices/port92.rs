//! System control port A (0x92): fast A20 and fast reset.

use crate::bus::{LockedDevice, Region};
use crate::life::{GuestEvent, GuestEvents};
use crate::state::{Decoder, Encoder, StateError};

const FAST_RESET: u8 = 1 << 0;
/// Reads back as written; KVM's guests have no A20 gate that could be closed.
const A20: u8 = 1 << 1;

/// The port.
#[derive(Debug)]
pub struct Port92 {
    value: u8,
    events: GuestEvents,
}

impl Port92 {
    /// The state at power-on.
    pub fn new(events: GuestEvents) -> Self {
        Self { value: A20, events }
    }
}

impl LockedDevice for Port92 {
    fn name(&self) -> &str {
        "port92"
    }

    fn reset(&mut self) {
        self.value = A20;
    }

    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        if offset == 0
            && let Some(byte) = data.first_mut()
        {
            *byte = self.value;
        }
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        let (true, Some(&value)) = (offset == 0, data.first()) else {
            return;
        };
        if value & !self.value & FAST_RESET != 0 {
            self.events.report(GuestEvent::Reset {
                by: "system control port A",
            });
        }
        self.value = value & (A20 | FAST_RESET);
    }

    fn save(&self, to: &mut Encoder) {
        to.u8(self.value);
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        self.value = from.u8("value")? & (A20 | FAST_RESET);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{inb, outb};
    use crate::life::channel;

    #[test]
    fn a_rising_reset_bit_resets_once() {
        let (guest, _, events) = channel();
        let mut port = Port92::new(guest);
        assert_eq!(inb(&mut port, 0), 0x02);
        outb(&mut port, 0, 0x00);
        assert_eq!(inb(&mut port, 0), 0x00);
        assert!(events.take_guest_events().is_empty());
        outb(&mut port, 0, 0x03);
        assert!(matches!(
            events.take_guest_events()[..],
            [GuestEvent::Reset { .. }]
        ));
        outb(&mut port, 0, 0x03);
        assert!(events.take_guest_events().is_empty());
        port.reset();
        assert_eq!(inb(&mut port, 0), 0x02);
    }
}
