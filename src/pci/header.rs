//! The type-0 configuration header (PCI Local Bus 3.0, 6.1 and 6.2).

use std::ops::Range;

use super::bar::{Bars, Space};
use crate::state::{Decoder, Encoder, StateError};

/// What a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Who made it.
    pub vendor: u16,
    /// What it is.
    pub device: u16,
    /// Its revision.
    pub revision: u8,
    /// Class, subclass and programming interface: 24 bits.
    pub class: u32,
    /// Whose board it is on.
    pub subsystem_vendor: u16,
    /// Which board.
    pub subsystem: u16,
}

// Register offsets.
const ID: u16 = 0x00;
const COMMAND_STATUS: u16 = 0x04;
const CLASS_REVISION: u16 = 0x08;
/// Cache line size, latency timer, header type (0) and BIST (none).
const CACHE_LINE: u16 = 0x0c;
const FIRST_BAR: u16 = 0x10;
const LAST_BAR: u16 = 0x24;
const SUBSYSTEM: u16 = 0x2c;
const CAPABILITIES: u16 = 0x34;
const INTERRUPT: u16 = 0x3c;

// Command register (6.2.2).
const COMMAND_IO: u16 = 1 << 0;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;

// Status register (6.2.3).
const STATUS_INTERRUPT: u16 = 1 << 3;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// INTA#: the pin of a device with one function.
const PIN_A: u32 = 1;

/// Cache line size and interrupt line are scratch space for software.
const SCRATCH: u32 = 0xff;

/// The header of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    ids: Ids,
    pin: bool,
    capabilities: Option<u16>,
    command: u16,
    cache_line: u8,
    interrupt_line: u8,
    bars: Bars,
}

impl Header {
    /// After a reset: nothing is decoded, no DMA. `pin`: it can drive INTA#. `capabilities`: where the first
    /// is.
    pub fn new(ids: Ids, bars: Bars, pin: bool, capabilities: Option<u16>) -> Self {
        Self {
            ids,
            pin,
            capabilities,
            command: 0,
            cache_line: 0,
            interrupt_line: 0,
            bars,
        }
    }

    /// The register at `offset`, a multiple of 4 below 0x40. `interrupt`: an INTx interrupt is pending.
    pub fn read(&self, offset: u16, interrupt: bool) -> u32 {
        let ids = &self.ids;
        match offset {
            ID => both(ids.vendor, ids.device),
            COMMAND_STATUS => both(self.command, self.status(interrupt)),
            CLASS_REVISION => ids.class << 8 | u32::from(ids.revision),
            CACHE_LINE => self.cache_line.into(),
            FIRST_BAR..=LAST_BAR => self.bars.read(bar(offset)),
            SUBSYSTEM => both(ids.subsystem_vendor, ids.subsystem),
            CAPABILITIES => self.capabilities.map_or(0, u32::from),
            INTERRUPT => {
                let pin = if self.pin { PIN_A } else { 0 };
                pin << 8 | u32::from(self.interrupt_line)
            }
            _ => 0,
        }
    }

    fn status(&self, interrupt: bool) -> u16 {
        let mut status = 0;
        if interrupt {
            status |= STATUS_INTERRUPT;
        }
        if self.capabilities.is_some() {
            status |= STATUS_CAPABILITIES;
        }
        status
    }

    /// Writes those bits of the register at `offset` that `mask` has and that are writable. No status bit is:
    /// none of the errors that they record happens.
    pub fn write(&mut self, offset: u16, value: u32, mask: u32) {
        let scratch = |old: u8| {
            let [new, ..] = ((u32::from(old) & !mask) | (value & mask & SCRATCH)).to_le_bytes();
            new
        };
        match offset {
            COMMAND_STATUS => {
                let mask = half(mask) & self.command_bits();
                self.command = (self.command & !mask) | (half(value) & mask);
            }
            CACHE_LINE => self.cache_line = scratch(self.cache_line),
            FIRST_BAR..=LAST_BAR => self.bars.write(bar(offset), value, mask),
            INTERRUPT => self.interrupt_line = scratch(self.interrupt_line),
            _ => {}
        }
    }

    /// A function without ranges in a space cannot respond in it.
    fn command_bits(&self) -> u16 {
        let (io, memory) = self.bars.spaces();
        let mut bits = COMMAND_MASTER;
        for (there, bit) in [
            (io, COMMAND_IO),
            (memory, COMMAND_MEMORY),
            (self.pin, COMMAND_INTX_DISABLE),
        ] {
            if there {
                bits |= bit;
            }
        }
        bits
    }

    /// Whether it may write and read memory, which includes sending messages.
    pub fn bus_master(&self) -> bool {
        self.command & COMMAND_MASTER != 0
    }

    /// Whether it must not drive its pin.
    pub fn intx_disabled(&self) -> bool {
        self.command & COMMAND_INTX_DISABLE != 0
    }

    /// Its ranges.
    pub fn bars(&self) -> &Bars {
        &self.bars
    }

    /// Where it responds to the range of BAR `number`, if it does.
    pub fn decoded(&self, number: usize) -> Option<Range<u64>> {
        let (_, bar) = self.bars.ranges().find(|(n, _)| *n == number)?;
        let enable = match bar.space {
            Space::Io => COMMAND_IO,
            Space::Memory32 | Space::Memory64 => COMMAND_MEMORY,
        };
        (self.command & enable != 0)
            .then(|| self.bars.placed(number))
            .flatten()
    }

    /// Back to power-on.
    pub fn reset(&mut self) {
        self.command = 0;
        self.cache_line = 0;
        self.interrupt_line = 0;
        self.bars.reset();
    }

    /// Writes down what can change.
    pub fn save(&self, to: &mut Encoder) {
        to.u16(self.command);
        to.u8(self.cache_line);
        to.u8(self.interrupt_line);
        self.bars.save(to);
    }

    /// Takes over what was saved.
    ///
    /// # Errors
    /// If it is cut off.
    pub fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        self.command = from.u16("command")? & self.command_bits();
        self.cache_line = from.u8("cache line size")?;
        self.interrupt_line = from.u8("interrupt line")?;
        self.bars.load(from)
    }
}

/// The register of BAR `offset` stands for.
fn bar(offset: u16) -> usize {
    usize::from((offset - FIRST_BAR) / 4)
}

fn both(low: u16, high: u16) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

/// Bits 15:0.
#[allow(clippy::cast_possible_truncation, reason = "the lower half is wanted")]
fn half(value: u32) -> u16 {
    value as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::bar::Bar;
    use super::*;

    fn header() -> Header {
        let ids = Ids {
            vendor: 0x1af4,
            device: 0x1044,
            revision: 1,
            class: 0xff_0000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        let memory = Bar {
            space: Space::Memory64,
            size: 0x4000,
        };
        Header::new(ids, Bars::new(&[(0, memory)]), true, Some(0x40))
    }

    #[test]
    fn registers_are_laid_out_as_type_0() {
        let h = header();
        for (offset, want) in [
            (0x00, 0x1044_1af4),
            (0x04, 0x0010_0000),
            (0x08, 0xff00_0001),
            (0x0c, 0),
            (0x10, 0x0000_0004),
            (0x14, 0),
            (0x2c, 0x1100_1af4),
            (0x30, 0),
            (0x34, 0x40),
            (0x3c, 0x0100),
        ] {
            assert_eq!(h.read(offset, false), want, "offset {offset:#x}");
        }
        assert_eq!(h.read(4, true), 0x0018_0000);
    }

    #[test]
    fn only_what_is_writable_changes() {
        let mut h = header();
        for offset in (0..0x40).step_by(4) {
            h.write(offset, u32::MAX, u32::MAX);
        }
        for (offset, want) in [
            (0x00, 0x1044_1af4),
            (0x04, 0x0010_0406),
            (0x08, 0xff00_0001),
            (0x0c, 0xff),
            (0x10, 0xffff_c004),
            (0x14, 0xffff_ffff),
            (0x18, 0),
            (0x2c, 0x1100_1af4),
            (0x30, 0),
            (0x34, 0x40),
            (0x3c, 0x01ff),
        ] {
            assert_eq!(h.read(offset, false), want, "offset {offset:#x}");
        }
        h.write(0x04, 0, 0xffff_0000);
        assert!(
            h.bus_master() && h.intx_disabled(),
            "the command is not written"
        );
        h.reset();
        assert_eq!(h, header());
    }

    #[test]
    fn ranges_are_decoded_while_the_command_register_enables_them() {
        let mut h = header();
        h.write(0x10, 0xe000_0000, u32::MAX);
        for (command, decoded) in [(0, false), (1, false), (2, true), (5, false), (7, true)] {
            h.write(0x04, command, 0xffff);
            let want = decoded.then_some(0xe000_0000..0xe000_4000);
            assert_eq!(h.decoded(0), want, "{command}");
            assert_eq!(h.decoded(1), None);
        }
    }

    proptest! {
        #[test]
        fn any_writes_come_back(
            writes in proptest::collection::vec((0..16_u16, any::<u32>(), any::<u32>()), 0..64),
        ) {
            let mut h = header();
            for (register, value, mask) in writes {
                h.write(register * 4, value, mask);
            }
            let mut e = Encoder::new();
            h.save(&mut e);
            let body = e.into_body();
            let mut loaded = header();
            loaded.load(&mut Decoder::new("s", 1, &body)).unwrap();
            prop_assert_eq!(&loaded, &h);
            h.reset();
            prop_assert_eq!(h, header());
        }
    }
}
