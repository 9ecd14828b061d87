//! The reset control register (0xcf9), which lies inside PCI's configuration ports and is therefore part of
//! [`PciHost`](crate::pci::PciHost). ACPI's reset register points to it.

use crate::life::{GuestEvent, GuestEvents};
use crate::state::{Decoder, Encoder, StateError};

/// Hard instead of soft reset, once the CPU reset bit rises. We have only the hard one.
const SYSTEM_RESET: u8 = 1 << 1;
/// Its rising edge resets.
const RESET_CPU: u8 = 1 << 2;
/// Power cycle as well.
const FULL_RESET: u8 = 1 << 3;

/// The register.
#[derive(Debug)]
pub(super) struct ResetControl {
    value: u8,
    events: GuestEvents,
}

impl ResetControl {
    /// At rest.
    pub(super) fn new(events: GuestEvents) -> Self {
        Self { value: 0, events }
    }

    /// Back to rest.
    pub(super) fn reset(&mut self) {
        self.value = 0;
    }

    /// The value.
    pub(super) fn read(&self) -> u8 {
        self.value
    }

    /// Resets the machine when the CPU reset bit rises.
    pub(super) fn write(&mut self, value: u8) {
        if value & !self.value & RESET_CPU != 0 {
            self.events.report(GuestEvent::Reset {
                by: "reset control register",
            });
        }
        self.value = value & (SYSTEM_RESET | RESET_CPU | FULL_RESET);
    }

    /// Writes the value down.
    pub(super) fn save(&self, to: &mut Encoder) {
        to.u8(self.value);
    }

    /// Takes over a saved value. Nothing is reset by that.
    ///
    /// # Errors
    /// If it is missing.
    pub(super) fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        self.value = from.u8("reset control")? & (SYSTEM_RESET | RESET_CPU | FULL_RESET);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life::channel;

    #[test]
    fn the_rising_edge_of_bit_2_resets() {
        let (guest, _, events) = channel();
        let mut register = ResetControl::new(guest);
        for (value, resets) in [
            (0x02, false),
            (0x06, true),
            (0x06, false),
            (0x00, false),
            (0x0e, true),
            (0xf1, false),
        ] {
            register.write(value);
            assert_eq!(!events.take_guest_events().is_empty(), resets, "{value:#x}");
            assert_eq!(register.read(), value & 0x0e);
        }
    }
}
