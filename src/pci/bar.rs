//! Base address registers (PCI Local Bus 3.0, 6.2.5.1).

use std::ops::Range;

use crate::state::{Decoder, Encoder, StateError};

/// How many registers a type-0 header has.
pub const BARS: usize = 6;

/// The address space that a register places a range in, and how wide its address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes the next register as well.
    Memory64,
}

/// One range of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Where it is placed.
    pub space: Space,
    /// Its length: a power of two.
    pub size: u64,
}

impl Bar {
    /// The read-only bits: bit 0 tells ports from memory, bits 2:1 the width, bit 3 prefetchable, which none
    /// is.
    fn kind(self) -> u32 {
        match self.space {
            Space::Io => 0b01,
            Space::Memory32 => 0b000,
            Space::Memory64 => 0b100,
        }
    }

    /// The smallest range that the encoding allows: the type bits are below it.
    fn min_size(self) -> u64 {
        match self.space {
            Space::Io => 4,
            Space::Memory32 | Space::Memory64 => 16,
        }
    }

    fn max_size(self) -> u64 {
        match self.space {
            // A PC's functions take at most 256 ports (6.2.5.1).
            Space::Io => 256,
            Space::Memory32 => 1 << 31,
            Space::Memory64 => 1 << 62,
        }
    }
}

/// The six registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bars {
    ranges: [Option<Bar>; BARS],
    registers: [u32; BARS],
}

impl Bars {
    /// With these ranges, by the number of their (first) register.
    ///
    /// # Panics
    /// If a range has no encoding, or its registers are taken: a mistake of the device's author.
    pub fn new(ranges: &[(usize, Bar)]) -> Self {
        let mut taken = [false; BARS];
        let mut all = [None; BARS];
        for &(number, bar) in ranges {
            let size = bar.size;
            assert!(
                size.is_power_of_two() && (bar.min_size()..=bar.max_size()).contains(&size),
                "BAR {number} cannot be {size:#x} bytes long"
            );
            let width = if bar.space == Space::Memory64 { 2 } else { 1 };
            for register in &mut taken[number..number + width] {
                assert!(!*register, "BAR {number} overlaps another");
                *register = true;
            }
            all[number] = Some(bar);
        }
        Self {
            ranges: all,
            registers: [0; BARS],
        }
    }

    /// The ranges, by the number of their (first) register.
    pub fn ranges(&self) -> impl Iterator<Item = (usize, Bar)> + '_ {
        let all = self.ranges.iter().enumerate();
        all.filter_map(|(number, bar)| bar.map(|bar| (number, bar)))
    }

    /// Whether there is a range in I/O space, and whether there is one in memory space.
    pub fn spaces(&self) -> (bool, bool) {
        let io = |(_, bar): (usize, Bar)| bar.space == Space::Io;
        (self.ranges().any(io), self.ranges().any(|bar| !io(bar)))
    }

    /// Register `number`.
    pub fn read(&self, number: usize) -> u32 {
        let kind = self.ranges.get(number).copied().flatten();
        let kind = kind.map_or(0, Bar::kind);
        self.registers.get(number).map_or(0, |value| value | kind)
    }

    /// Writes the bits of register `number` that `mask` has. Those below the range's length stay 0, by which
    /// software finds the length: it writes ones and reads back.
    pub fn write(&mut self, number: usize, value: u32, mask: u32) {
        let mask = mask & self.address_bits(number);
        if let Some(register) = self.registers.get_mut(number) {
            *register = (*register & !mask) | (value & mask);
        }
    }

    /// The bits of register `number` that hold an address.
    fn address_bits(&self, number: usize) -> u32 {
        let own = self.ranges.get(number).copied().flatten();
        if let Some(bar) = own {
            return low(!(bar.size - 1));
        }
        let before = number.checked_sub(1).and_then(|n| self.ranges.get(n));
        match before.copied().flatten() {
            Some(bar) if bar.space == Space::Memory64 => low(!(bar.size - 1) >> 32),
            _ => 0,
        }
    }

    /// Where the range of register `number` is. `None` while it is at 0, as after a reset; at the very top,
    /// where software puts it when it asks for the length; or beyond the ports that there are.
    pub fn placed(&self, number: usize) -> Option<Range<u64>> {
        let bar = self.ranges.get(number).copied().flatten()?;
        let register = |number: usize| self.registers.get(number).copied().map_or(0, u64::from);
        let (start, end) = match bar.space {
            Space::Io => (register(number), 0x1_0000),
            Space::Memory32 => (register(number), u64::from(u32::MAX)),
            Space::Memory64 => (register(number) | register(number + 1) << 32, u64::MAX),
        };
        let range = start..start.checked_add(bar.size)?;
        (start != 0 && range.end <= end).then_some(range)
    }

    /// Back to no addresses.
    pub fn reset(&mut self) {
        self.registers = [0; BARS];
    }

    /// Writes the addresses down.
    pub fn save(&self, to: &mut Encoder) {
        self.registers.iter().for_each(|register| to.u32(*register));
    }

    /// Takes over saved addresses.
    ///
    /// # Errors
    /// If they are cut off.
    pub fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        for number in 0..BARS {
            let value = from.u32("base address register")?;
            self.write(number, value, u32::MAX);
        }
        Ok(())
    }
}

/// Bits 31:0.
#[allow(clippy::cast_possible_truncation, reason = "the lower half is wanted")]
fn low(value: u64) -> u32 {
    value as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IO: Bar = bar(Space::Io, 0x20);
    const MEMORY32: Bar = bar(Space::Memory32, 0x1000);
    const MEMORY64: Bar = bar(Space::Memory64, 0x4000);
    const LARGE: Bar = bar(Space::Memory64, 1 << 33);

    const fn bar(space: Space, size: u64) -> Bar {
        Bar { space, size }
    }

    fn bars() -> Bars {
        Bars::new(&[(0, MEMORY64), (2, MEMORY32), (3, IO), (4, LARGE)])
    }

    #[test]
    fn sizing_reads_back_the_length() {
        let mut bars = bars();
        for number in 0..8 {
            bars.write(number, u32::MAX, u32::MAX);
        }
        let read: Vec<_> = (0..8).map(|number| bars.read(number)).collect();
        assert_eq!(
            read,
            [
                0xffff_c004,
                u32::MAX,
                0xffff_f000,
                0xffff_ffe1,
                0x4,
                0xffff_fffe,
                0,
                0
            ]
        );
        for (number, _) in bars.ranges() {
            assert_eq!(bars.placed(number), None, "BAR {number} during sizing");
        }
        assert_eq!(bars.spaces(), (true, true));
        assert_eq!(Bars::new(&[(0, IO)]).spaces(), (true, false));
    }

    #[test]
    fn ranges_are_where_their_registers_say() {
        // (BAR, low, high, start if decoded)
        for (number, low, high, want) in [
            (0, 0xe000_0000, 0x12, Some(0x12_e000_0000)),
            (0, 0xe000_3fff, 0, Some(0xe000_0000)),
            (0, 0, 0, None),
            (0, 0xffff_c000, 0, Some(0xffff_c000)),
            (0, 0xffff_8000, u32::MAX, Some(0xffff_ffff_ffff_8000)),
            (0, 0xffff_c000, u32::MAX, None),
            (2, 0xc000_1234, 0, Some(0xc000_1000)),
            (2, 0xffff_f000, 0, None),
            (3, 0xc03f, 0, Some(0xc020)),
            (3, 0xffff, 0, Some(0xffe0)),
            (3, 0x1_0000, 0, None),
            (4, 0xffff_ffff, 7, Some(0x6_0000_0000)),
        ] {
            let mut bars = bars();
            bars.write(number, low, u32::MAX);
            if bars.ranges[number].unwrap().space == Space::Memory64 {
                bars.write(number + 1, high, u32::MAX);
            }
            let placed = bars.placed(number);
            assert_eq!(placed.map(|r| r.start), want, "{number} {low:#x} {high:#x}");
        }
        assert_eq!(bars().placed(1), None, "the upper half of another");
        assert_eq!(bars().placed(9), None);
    }

    #[test]
    fn bytes_are_written_alone() {
        let mut bars = bars();
        bars.write(2, 0xc0d0_e0f0, u32::MAX);
        bars.write(2, 0x1122_3344, 0x00ff_0000);
        assert_eq!(bars.read(2), 0xc022_e000);
    }

    #[test]
    #[should_panic(expected = "BAR 1 overlaps")]
    fn registers_are_used_once() {
        Bars::new(&[(0, MEMORY64), (1, MEMORY32)]);
    }

    proptest! {
        #[test]
        fn a_decoded_range_is_aligned_and_in_its_space(
            writes in proptest::collection::vec((0..8_usize, any::<u32>(), any::<u32>()), 0..32),
        ) {
            let mut bars = bars();
            for (number, value, mask) in writes {
                bars.write(number, value, mask);
            }
            for (number, bar) in bars.ranges() {
                let Some(range) = bars.placed(number) else { continue };
                prop_assert_eq!(range.end - range.start, bar.size);
                prop_assert!(range.start.is_multiple_of(bar.size) && range.start > 0);
                match bar.space {
                    Space::Io => prop_assert!(range.end <= 0x1_0000),
                    Space::Memory32 => prop_assert!(range.end < 1 << 32),
                    Space::Memory64 => {}
                }
            }
            let mut e = Encoder::new();
            bars.save(&mut e);
            let body = e.into_body();
            let mut loaded = self::bars();
            loaded.load(&mut Decoder::new("s", 1, &body)).unwrap();
            prop_assert_eq!(loaded, bars);
        }
    }
}
