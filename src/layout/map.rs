//! Where a machine type has RAM and the windows of PCI.

use std::ops::Range;

use super::{IOAPIC, RAM_ABOVE_4G};
use crate::units::{Gpa, Gsi};

const GIB: u64 = 1 << 30;

/// What machine types do not have in common.
#[derive(Debug, PartialEq, Eq)]
pub struct AddressMap {
    /// The first size at which RAM is split.
    split_from: u64,
    /// How much of RAM that is split lies below the 32-bit PCI hole. The rest is at [`RAM_ABOVE_4G`].
    split_at: u64,
    /// The lowest address of a BAR of 32 bits.
    mmio32: u64,
    /// PCI Express configuration space (ECAM): 256 buses of 1 MiB.
    pub ecam: Range<u64>,
    /// The port window for PCI BARs.
    pub pci_io: Range<u32>,
    mmio64: Mmio64,
    interrupts: Interrupts,
    /// Whether fw_cfg has DMA.
    pub fw_cfg_dma: bool,
    /// SLP_TYP for S5 in PM1a control and in the DSDT's \_S5 package.
    pub sleep_type_s5: u8,
}

/// How the 64-bit window is chosen.
#[derive(Debug, PartialEq, Eq)]
enum Mmio64 {
    /// 64 GiB right above RAM.
    AboveRam,
    /// As OVMF chooses it (OvmfPkg/Library/PlatformInitLib/MemDetect.c).
    AsFirmware,
}

/// How devices' interrupt pins are connected to the I/O APIC's lines.
#[derive(Debug, PartialEq, Eq)]
enum Interrupts {
    /// All lines above the legacy ones, so that neighbours do not share.
    Rotating,
    /// The chipset's PIRQA to PIRQH, as QEMU connects them.
    Pirq,
}

/// How wide physical addresses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressWidth {
    /// Bits, by CPUID.
    pub bits: u8,
    /// How many of them firmware uses; none if it does not trust CPUID.
    pub firmware: Option<u8>,
}

impl AddressMap {
    /// Of the machine type `pc-1`. The split of RAM and the port window are those of QEMU's Q35, which
    /// firmware made for it takes for granted.
    pub const PC_1: Self = Self {
        split_from: 0xb000_0000,
        split_at: 0x8000_0000,
        mmio32: 0x8000_0000,
        ecam: 0xe000_0000..0xf000_0000,
        pci_io: 0x6000..0x1_0000,
        mmio64: Mmio64::AsFirmware,
        interrupts: Interrupts::Pirq,
        fw_cfg_dma: true,
        sleep_type_s5: 0,
    };

    /// Of the machine type `direct-1`.
    pub const DIRECT_1: Self = Self {
        split_from: 0xc000_0000,
        split_at: 0xc000_0000,
        mmio32: 0xc000_0000,
        ecam: 0xe000_0000..0xf000_0000,
        pci_io: 0xc000..0x1_0000,
        mmio64: Mmio64::AboveRam,
        interrupts: Interrupts::Rotating,
        fw_cfg_dma: false,
        sleep_type_s5: 5,
    };

    /// How much of RAM of `size` bytes lies below the 32-bit PCI hole.
    pub fn low_ram(&self, size: u64) -> u64 {
        if size < self.split_from {
            size
        } else {
            self.split_at
        }
    }

    /// How many bytes of addresses RAM that is split leaves out.
    pub fn hole(&self) -> u64 {
        RAM_ABOVE_4G.0 - self.split_at
    }

    /// The pieces of guest RAM of `size` bytes, low to high: (first address, length).
    ///
    /// `size` must be a multiple of the page size.
    pub fn ram_ranges(&self, size: u64) -> Vec<(Gpa, u64)> {
        let low = self.low_ram(size);
        let high = size - low;
        let mut ranges = vec![(Gpa(0), low)];
        if high > 0 {
            ranges.push((RAM_ABOVE_4G, high));
        }
        ranges
    }

    /// The first address after all RAM of `size` bytes.
    pub fn ram_end(&self, size: u64) -> Gpa {
        self.ram_ranges(size)
            .last()
            .map_or(Gpa(0), |&(start, len)| Gpa(start.0 + len))
    }

    /// The 32-bit window for PCI BARs: from RAM to the ECAM window.
    pub fn pci_mmio32(&self, ram_size: u64) -> Range<u64> {
        self.pci_mmio32_beside(ram_size, &self.ecam)
    }

    /// The same where firmware has placed the ECAM window at `ecam`: between RAM and the I/O APIC, the larger
    /// part beside it.
    pub fn pci_mmio32_beside(&self, ram_size: u64, ecam: &Range<u64>) -> Range<u64> {
        const ALIGNMENT: u64 = 256 << 20;
        let ram = self.low_ram(ram_size).next_multiple_of(ALIGNMENT);
        let (first, last) = (self.mmio32.max(ram), IOAPIC.0);
        let below = first..ecam.start.clamp(first, last);
        let above = ecam.end.clamp(first, last)..last;
        let len = |range: &Range<u64>| range.end - range.start;
        if len(&below) >= len(&above) {
            below
        } else {
            above
        }
    }

    /// The 64-bit window for PCI BARs, above 4 GiB and all RAM; `None` if no address is left there.
    pub fn pci_mmio64(&self, ram_size: u64, width: AddressWidth) -> Option<Range<u64>> {
        let addresses = |bits: u8| 1_u64.checked_shl(bits.into()).unwrap_or(u64::MAX);
        let free = self.ram_end(ram_size).0.max(RAM_ABOVE_4G.0);
        let (start, len) = match self.mmio64 {
            Mmio64::AboveRam => (free.next_multiple_of(GIB), 64 * GIB),
            Mmio64::AsFirmware => {
                let classic = (free.next_multiple_of(32 * GIB), 32 * GIB);
                let all = width.firmware.map_or(0, addresses);
                let eighth = all / 8;
                if classic.1 < eighth && classic.0 + eighth < all {
                    (all - eighth, eighth)
                } else {
                    classic
                }
            }
        };
        let end = (start + len).min(addresses(width.bits));
        (start < end).then_some(start..end)
    }

    /// The interrupt line of pin `pin` (0 is INTA) of the PCI device `device` on the root bus.
    pub fn pci_interrupt(&self, device: u8, pin: u8) -> Gsi {
        /// PIRQA's line, the first above the legacy ones.
        const FIRST: u32 = 16;
        const PIRQ_E: u32 = FIRST + 4;
        let (device, pin) = (u32::from(device), u32::from(pin));
        Gsi(match (&self.interrupts, device) {
            (Interrupts::Rotating, _) => FIRST + (device + pin) % 8,
            (Interrupts::Pirq, 25..=29 | 31) => FIRST + pin % 4,
            (Interrupts::Pirq, 30) => PIRQ_E + pin % 4,
            (Interrupts::Pirq, _) => PIRQ_E + (device + pin) % 4,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{IOAPIC_LEN, KVM_IDENTITY_MAP, KVM_TSS, LAPIC, PM1A_EVENT};
    use super::*;

    const PC: AddressMap = AddressMap::PC_1;
    const DIRECT: AddressMap = AddressMap::DIRECT_1;

    fn width(bits: u8) -> AddressWidth {
        AddressWidth {
            bits,
            firmware: None,
        }
    }

    fn trusted(bits: u8, firmware: u8) -> AddressWidth {
        AddressWidth {
            bits,
            firmware: Some(firmware),
        }
    }

    #[test]
    fn ram_is_split_around_the_pci_hole() {
        const MIB: u64 = 1 << 20;
        // (size in MiB, low RAM of pc-1, of direct-1), all in MiB.
        for (size, pc, direct) in [
            (1, 1, 1),
            (1024, 1024, 1024),
            (2048, 2048, 2048),
            (2815, 2815, 2815),
            (2816, 2048, 2816),
            (3072, 2048, 3072),
            (4096, 2048, 3072),
            (1 << 20, 2048, 3072),
        ] {
            for (map, low) in [(&PC, pc), (&DIRECT, direct)] {
                let mut expected = vec![(Gpa(0), low * MIB)];
                if low < size {
                    expected.push((Gpa(4 * GIB), (size - low) * MIB));
                }
                assert_eq!(map.ram_ranges(size * MIB), expected, "{size} MiB");
            }
        }
        assert_eq!(PC.ram_end(GIB), Gpa(GIB));
        assert_eq!(PC.ram_end(4 * GIB), Gpa(6 * GIB));
        assert_eq!(DIRECT.ram_end(4 * GIB), Gpa(5 * GIB));
        assert_eq!((PC.hole(), DIRECT.hole()), (2 * GIB, GIB));
    }

    #[test]
    fn the_32_bit_window_begins_above_ram() {
        let ecam = 0xe000_0000;
        for (size, pc) in [
            (GIB, 0x8000_0000),
            (2 * GIB, 0x8000_0000),
            (2 * GIB + 4096, 0x9000_0000),
            (0xafff_f000, 0xb000_0000),
            (0xb000_0000, 0x8000_0000),
            (64 * GIB, 0x8000_0000),
        ] {
            assert_eq!(PC.pci_mmio32(size), pc..ecam, "{size:#x}");
            assert_eq!(DIRECT.pci_mmio32(size), 0xc000_0000..ecam);
        }
    }

    /// SeaBIOS and older OVMF place the ECAM window at 0xb0000000, and BARs above it.
    #[test]
    fn the_32_bit_window_is_where_firmware_has_room() {
        let beside = |start: u64| PC.pci_mmio32_beside(GIB, &(start..start + (256 << 20)));
        assert_eq!(beside(0xe000_0000), 0x8000_0000..0xe000_0000);
        assert_eq!(beside(0xb000_0000), 0xc000_0000..IOAPIC.0);
        for anywhere in [0, 0x4000_0000, 0xfff0_0000, 4 * GIB, 64 * GIB] {
            let window = beside(anywhere);
            assert!(window.start >= 0x8000_0000 && window.end <= IOAPIC.0);
        }
    }

    #[test]
    fn the_64_bit_window_lies_above_ram_and_within_the_address_width() {
        let of = |map: &AddressMap, size, width| map.pci_mmio64(size, width);
        assert_eq!(of(&DIRECT, GIB, width(39)), Some(4 * GIB..68 * GIB));
        let odd = 4 * GIB + 4096;
        assert_eq!(of(&DIRECT, odd, width(39)), Some(6 * GIB..70 * GIB));
        assert_eq!(of(&DIRECT, GIB, trusted(36, 36)), Some(4 * GIB..64 * GIB));
        assert_eq!(of(&DIRECT, 63 * GIB, width(36)), None);
        assert_eq!(of(&DIRECT, GIB, width(64)), Some(4 * GIB..68 * GIB));

        // As OVMF: the last eighth of what it trusts, or 32 GiB above RAM, aligned.
        for (size, width, start, end) in [
            (GIB, trusted(39, 39), 448, 512),
            (GIB, trusted(40, 40), 896, 1024),
            (GIB, trusted(48, 46), 56 << 10, 64 << 10),
            (GIB, trusted(52, 40), 896, 1024),
            // An eighth is no more than the 32 GiB.
            (GIB, trusted(36, 36), 32, 64),
            (GIB, trusted(38, 38), 32, 64),
            (GIB, width(40), 32, 64),
            (28 * GIB, width(40), 32, 64),
            (30 * GIB + 4096, width(40), 64, 96),
            // RAM reaches into the last eighth.
            (440 * GIB, trusted(39, 39), 448, 480),
        ] {
            let expected = Some(start * GIB..end * GIB);
            assert_eq!(of(&PC, size, width), expected, "{size:#x} {width:?}");
        }
        assert_eq!(of(&PC, 40 * GIB, trusted(36, 36)), None);
    }

    #[test]
    fn fixed_ranges_do_not_overlap() {
        for (map, ram) in [(&PC, GIB), (&PC, 4 * GIB), (&DIRECT, 4 * GIB)] {
            let mmio32 = map.pci_mmio32(ram);
            let mut mmio = [
                (mmio32.start, mmio32.end),
                (map.ecam.start, map.ecam.end),
                (IOAPIC.0, IOAPIC.0 + IOAPIC_LEN),
                (LAPIC.0, LAPIC.0 + 0x10_0000),
                (KVM_IDENTITY_MAP.0, KVM_TSS.0),
                (KVM_TSS.0, KVM_TSS.0 + 0x3000),
            ];
            mmio.sort_unstable();
            assert!(mmio.windows(2).all(|w| w[0].1 <= w[1].0));
            assert!(mmio[0].0 >= map.low_ram(ram) && mmio[5].1 <= RAM_ABOVE_4G.0);
            assert!(map.pci_io.start > u32::from(PM1A_EVENT.end));
        }
    }

    #[test]
    fn pins_are_connected_to_lines() {
        // (device, pin, line of pc-1, of direct-1); PIRQA is 16.
        for (device, pin, pc, direct) in [
            (0, 0, 20, 16),
            (1, 0, 21, 17),
            (2, 1, 23, 19),
            (3, 1, 20, 20),
            (24, 3, 23, 19),
            (25, 0, 16, 17),
            (29, 3, 19, 16),
            (30, 0, 20, 22),
            (30, 3, 23, 17),
            (31, 1, 17, 16),
        ] {
            let lines = [&PC, &DIRECT].map(|map| map.pci_interrupt(device, pin).0);
            assert_eq!(lines, [pc, direct], "device {device} pin {pin}");
        }
    }

    proptest! {
        #[test]
        fn windows_and_ram_never_overlap(
            pages in 1_u64..(4 << 40 >> 12), bits in 32_u8..=64, firmware in proptest::option::of(32_u8..=46),
        ) {
            let size = pages << 12;
            let width = AddressWidth { bits, firmware: firmware.map(|f| f.min(bits)) };
            for map in [&PC, &DIRECT] {
                let ranges = map.ram_ranges(size);
                prop_assert_eq!(ranges.iter().map(|(_, len)| len).sum::<u64>(), size);
                let mmio32 = map.pci_mmio32(size);
                prop_assert!(ranges[0].1 <= mmio32.start && mmio32.start < mmio32.end);
                if let Some(mmio64) = map.pci_mmio64(size, width) {
                    prop_assert!(mmio64.start >= map.ram_end(size).0 && mmio64.start >= 4 * GIB);
                    prop_assert!(bits >= 63 || mmio64.end <= 1 << bits);
                }
            }
        }
    }
}
