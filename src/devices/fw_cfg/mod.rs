//! The firmware configuration device (fw_cfg): QEMU's docs/specs/fw_cfg.rst.
//!
//! A 16-bit write to the selector port selects an item and starts at its first byte; each read of the data
//! port returns the next byte. What is not offered, and what lies past an item's end, reads as zeros. Where
//! there is DMA, a guest has whole items copied into its memory. Nothing can be written. Only the selection
//! and an incomplete address are state: items are made from the configuration.

mod dma;
mod items;

pub use items::{Files, Items};

use std::fmt;

use crate::bus::{LockedDevice, Region};
use crate::memory::Dma;
use crate::state::{Decoder, Encoder, StateError};
use dma::DmaPort;

/// Selector and data.
pub const PORTS: u64 = 2;
const SELECTOR: u64 = 0;
const DATA: u64 = 1;

/// The region of the address register of DMA, its first port counted from the selector, and their number.
pub const DMA: Region = Region(1);
/// See [`DMA`].
pub const DMA_OFFSET: u16 = 4;
/// See [`DMA`].
pub const DMA_PORTS: u64 = dma::LEN;

/// The version of the state with a DMA address.
const WITH_DMA: u32 = 2;

/// In a selector: the item is selected for writing. Writing by the data port ended with QEMU 2.4; reads
/// ignore the bit.
const WRITE_CHANNEL: u16 = 1 << 14;

/// Files whose content depends on what firmware has programmed: they are made when a guest selects one of
/// them.
pub struct Renewed {
    /// Their names.
    pub names: &'static [&'static str],
    /// Makes all of them, of the same lengths each time.
    pub make: Box<dyn Fn() -> Files + Send>,
}

impl fmt::Debug for Renewed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewed")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

/// The device.
#[derive(Debug)]
pub struct FwCfg {
    items: Items,
    renewed: Option<Renewed>,
    place: Place,
    dma: Option<DmaPort>,
}

/// The next byte to be read.
#[derive(Debug, Default)]
struct Place {
    /// The selected item's key, as it was written.
    selector: u16,
    offset: u32,
}

/// It, with the items.
struct Cursor<'a> {
    items: &'a mut Items,
    renewed: Option<&'a Renewed>,
    place: &'a mut Place,
}

impl Cursor<'_> {
    fn select(&mut self, selector: u16) {
        if let Some(renewed) = self.renewed
            && self
                .items
                .is_one_of(selector & !WRITE_CHANNEL, renewed.names)
        {
            self.items.renew((renewed.make)());
        }
        *self.place = Place {
            selector,
            offset: 0,
        };
    }

    /// What is left of the item.
    fn rest(&self) -> &[u8] {
        let item = self.items.get(self.place.selector & !WRITE_CHANNEL);
        let at = usize::try_from(self.place.offset).unwrap_or(usize::MAX);
        item.get(at..).unwrap_or_default()
    }

    /// Reads the next bytes, and zeros after the item's end.
    fn read(&mut self, data: &mut [u8]) {
        let rest = self.rest();
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
        data[len..].fill(0);
        self.skip(u32::try_from(len).unwrap_or(u32::MAX));
    }

    /// Skips `len` bytes, or all that are left.
    fn skip(&mut self, len: u32) {
        let rest = u32::try_from(self.rest().len()).unwrap_or(u32::MAX);
        self.place.offset += rest.min(len);
    }
}

impl FwCfg {
    /// Offers `items`, by the ports alone.
    pub fn new(items: Items) -> Self {
        Self {
            items,
            renewed: None,
            place: Place::default(),
            dma: None,
        }
    }

    /// Offers `items`, by DMA into `memory` too.
    pub fn with_dma(items: Items, memory: Dma) -> Self {
        Self {
            dma: Some(DmaPort::new(memory)),
            ..Self::new(items.with_dma())
        }
    }

    /// The same with files that are made when they are read.
    #[must_use]
    pub fn with_renewed(mut self, renewed: Renewed) -> Self {
        self.renewed = Some(renewed);
        self
    }

    fn parts(&mut self) -> (Cursor<'_>, Option<&mut DmaPort>) {
        let Self {
            items,
            renewed,
            place,
            dma,
        } = self;
        let renewed = renewed.as_ref();
        let cursor = Cursor {
            items,
            renewed,
            place,
        };
        (cursor, dma.as_mut())
    }
}

impl LockedDevice for FwCfg {
    fn name(&self) -> &str {
        "fw-cfg"
    }

    fn reset(&mut self) {
        self.place = Place::default();
        if let Some(dma) = &mut self.dma {
            dma.high = 0;
        }
    }

    fn read(&mut self, region: Region, offset: u64, data: &mut [u8]) {
        if region == DMA {
            DmaPort::read(offset, data);
        // The data port has one byte; wider accesses find an empty bus, as in QEMU.
        } else if data.len() == 1 && offset == DATA {
            self.parts().0.read(data);
        }
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
        let (mut cursor, dma) = self.parts();
        if let Some(dma) = dma
            && region == DMA
        {
            dma.write(offset, data, &mut cursor);
        } else if let Ok(selector) = data.try_into()
            && (region, offset) == (Region::ONLY, SELECTOR)
        {
            cursor.select(u16::from_le_bytes(selector));
        }
    }

    fn state_version(&self) -> u32 {
        if self.dma.is_some() { WITH_DMA } else { 1 }
    }

    fn save(&self, to: &mut Encoder) {
        to.u16(self.place.selector);
        to.u32(self.place.offset);
        if let Some(dma) = &self.dma {
            to.u32(dma.high);
        }
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        self.place = Place {
            selector: from.u16("selector")?,
            offset: from.u32("offset")?,
        };
        if let Some(dma) = &mut self.dma {
            // A VM that was saved before there was DMA has no address.
            dma.high = match from.version() {
                ..WITH_DMA => 0,
                _ => from.u32("DMA address")?,
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
