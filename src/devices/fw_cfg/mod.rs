//! The firmware configuration device (fw_cfg) by its port interface: QEMU's docs/specs/fw_cfg.rst.
//!
//! A 16-bit write to the selector port selects an item and starts at its first byte; each read of the data port returns the
//! next byte. What is not offered, and what lies past an item's end, reads as zeros. There are no files and no DMA interface,
//! so bit 1 of the interface's id is clear, and nothing can be written.

mod items;

pub use items::Items;

use crate::bus::Device;
use crate::state::{Decoder, Encoder, StateError};

/// The ports: the selector and, one above it, data.
pub const PORTS: u64 = 2;

/// In a selector: the item is selected for writing. Writing by the data port ended with QEMU 2.4; reads ignore the bit.
const WRITE_CHANNEL: u16 = 1 << 14;

/// The device.
#[derive(Debug)]
pub struct FwCfg {
    selector_port: u64,
    items: Items,
    /// The selected item's key, as it was written.
    selector: u16,
    /// The next byte to be read.
    offset: u32,
}

impl FwCfg {
    /// At `selector_port` and the port above it.
    pub fn new(selector_port: u16, items: Items) -> Self {
        Self {
            selector_port: u64::from(selector_port),
            items,
            selector: 0,
            offset: 0,
        }
    }

    fn next_byte(&mut self) -> u8 {
        let item = self.items.get(self.selector & !WRITE_CHANNEL);
        let at = usize::try_from(self.offset).unwrap_or(usize::MAX);
        match item.get(at) {
            Some(&byte) => {
                self.offset += 1;
                byte
            }
            None => 0,
        }
    }
}

impl Device for FwCfg {
    fn name(&self) -> &str {
        "fw-cfg"
    }

    fn reset(&mut self) {
        self.selector = 0;
        self.offset = 0;
    }

    fn read(&mut self, addr: u64, data: &mut [u8]) {
        // The data port has one byte; wider accesses find an empty bus, as in QEMU.
        if let [byte] = data
            && addr == self.selector_port + 1
        {
            *byte = self.next_byte();
        }
    }

    fn write(&mut self, addr: u64, data: &[u8]) {
        if let Ok(selector) = data.try_into()
            && addr == self.selector_port
        {
            self.selector = u16::from_le_bytes(selector);
            self.offset = 0;
        }
    }

    fn save(&self, to: &mut Encoder) {
        to.u16(self.selector);
        to.u32(self.offset);
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        self.selector = from.u16("selector")?;
        self.offset = from.u32("offset")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
