//! The firmware configuration device (fw_cfg) by its port interface: QEMU's docs/specs/fw_cfg.rst.
//!
//! A 16-bit write to the selector port selects an item and starts at its first byte; each read of the data
//! port returns the next byte. What is not offered, and what lies past an item's end, reads as zeros. There
//! is no DMA interface, so bit 1 of the interface's id is clear, and nothing can be written. Only the
//! selection is state: items are made from the configuration.

mod items;

pub use items::Items;

use crate::bus::{LockedDevice, Region};
use crate::state::{Decoder, Encoder, StateError};

/// The ports.
pub const PORTS: u64 = 2;
const SELECTOR: u64 = 0;
const DATA: u64 = 1;

/// In a selector: the item is selected for writing. Writing by the data port ended with QEMU 2.4; reads
/// ignore the bit.
const WRITE_CHANNEL: u16 = 1 << 14;

/// The device.
#[derive(Debug)]
pub struct FwCfg {
    items: Items,
    /// The selected item's key, as it was written.
    selector: u16,
    /// The next byte to be read.
    offset: u32,
}

impl FwCfg {
    /// Offers `items`.
    pub fn new(items: Items) -> Self {
        Self {
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

impl LockedDevice for FwCfg {
    fn name(&self) -> &str {
        "fw-cfg"
    }

    fn reset(&mut self) {
        self.selector = 0;
        self.offset = 0;
    }

    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        // The data port has one byte; wider accesses find an empty bus, as in QEMU.
        if let [byte] = data
            && offset == DATA
        {
            *byte = self.next_byte();
        }
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        if let Ok(selector) = data.try_into()
            && offset == SELECTOR
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
