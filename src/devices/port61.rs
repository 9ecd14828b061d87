//! System control port B (0x61) for machines without a PIT. KVM handles it if its PIT exists.

use crate::bus::{LockedDevice, Region};
use crate::state::{Decoder, Encoder, StateError};

/// Timer 2 gate, speaker, and two NMI masks.
const WRITABLE: u8 = 0x0f;
const TIMER2_GATE: u8 = 1 << 0;
/// Toggles with every memory refresh; software uses it for delays.
const REFRESH: u8 = 1 << 4;
/// Timer 2 has expired. Without a timer it reads as expired whenever it is on: loops that wait for it end.
const TIMER2_OUTPUT: u8 = 1 << 5;

/// The port. It reports no NMI cause, which an unclaimed port's all-ones would.
#[derive(Debug, Default)]
pub struct Port61 {
    value: u8,
}

impl LockedDevice for Port61 {
    fn name(&self) -> &str {
        "port61"
    }

    fn reset(&mut self) {
        self.value = 0;
    }

    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        if offset == 0
            && let Some(byte) = data.first_mut()
        {
            self.value ^= REFRESH;
            let output = if self.value & TIMER2_GATE != 0 {
                TIMER2_OUTPUT
            } else {
                0
            };
            *byte = self.value | output;
        }
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        if offset == 0
            && let Some(&value) = data.first()
        {
            self.value = (self.value & REFRESH) | (value & WRITABLE);
        }
    }

    fn save(&self, to: &mut Encoder) {
        to.u8(self.value);
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        self.value = from.u8("value")? & (REFRESH | WRITABLE);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{inb, outb};

    #[test]
    fn refresh_toggles_and_the_missing_timer_has_always_run_out() {
        let mut port = Port61::default();
        assert_eq!([inb(&mut port, 0), inb(&mut port, 0)], [0x10, 0x00]);
        outb(&mut port, 0, 0xff);
        assert_eq!([inb(&mut port, 0), inb(&mut port, 0)], [0x3f, 0x2f]);
        port.reset();
        assert_eq!(inb(&mut port, 0), 0x10);
    }
}
