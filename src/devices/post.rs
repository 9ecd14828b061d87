//! Ports that software writes to only for the delay: POST codes (0x80) and its alternative 0xed.

use crate::bus::Device;
use crate::state::{Decoder, Encoder, StateError};

/// A port that remembers what was written last, as the latch behind a POST card does.
#[derive(Debug)]
pub struct PostPort {
    port: u64,
    last: u8,
}

impl PostPort {
    /// At `port`.
    pub fn new(port: u16) -> Self {
        Self {
            port: u64::from(port),
            last: 0,
        }
    }

    /// The last code written: how far the guest's firmware came.
    pub fn last(&self) -> u8 {
        self.last
    }
}

impl Device for PostPort {
    fn name(&self) -> &str {
        "post"
    }

    fn reset(&mut self) {
        self.last = 0;
    }

    fn read(&mut self, addr: u64, data: &mut [u8]) {
        if addr == self.port
            && let Some(byte) = data.first_mut()
        {
            *byte = self.last;
        }
    }

    fn write(&mut self, addr: u64, data: &[u8]) {
        if addr == self.port
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
        let mut post = PostPort::new(0x80);
        outb(&mut post, 0x80, 0x31);
        assert_eq!((post.last(), inb(&mut post, 0x80)), (0x31, 0x31));
        post.reset();
        assert_eq!(post.last(), 0);
    }
}
