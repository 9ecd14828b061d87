//! Ports that software writes only for the delay: POST codes (0x80) and its alternative 0xed.

use crate::bus::{LockedDevice, Region};
use crate::state::{Decoder, Encoder, StateError};

/// A port that stores the last value written, as the latch of a POST card does.
#[derive(Debug, Default)]
pub struct PostPort {
    last: u8,
}

impl PostPort {
    /// The last code written: the progress of the guest's firmware.
    pub fn last(&self) -> u8 {
        self.last
    }
}

impl LockedDevice for PostPort {
    fn name(&self) -> &str {
        "post"
    }

    fn reset(&mut self) {
        self.last = 0;
    }

    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        if offset == 0
            && let Some(byte) = data.first_mut()
        {
            *byte = self.last;
        }
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        if offset == 0
            && let Some(&byte) = data.first()
        {
            self.last = byte;
        }
    }

    fn save(&self, to: &mut Encoder) {
        to.u8(self.last);
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        self.last = from.u8("code")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{inb, outb};

    #[test]
    fn the_last_code_reads_back() {
        let mut post = PostPort::default();
        outb(&mut post, 0, 0x31);
        assert_eq!((post.last(), inb(&mut post, 0)), (0x31, 0x31));
        post.reset();
        assert_eq!(post.last(), 0);
    }
}
