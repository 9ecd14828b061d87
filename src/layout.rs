//! Where everything lies in the guest: RAM, MMIO windows, ports, interrupt lines. Constants only, so that the ACPI tables,
//! the boot protocols and the wiring cannot disagree.

use std::ops::Range;

use crate::units::{Gpa, Gsi};

/// 1 MiB: where loadable RAM begins for kernels.
pub const HIGH_MEMORY: Gpa = Gpa(0x10_0000);

/// End of RAM below the 32-bit PCI hole, at most. The rest of the RAM continues at [`RAM_ABOVE_4G`].
pub const LOW_RAM_MAX: u64 = 0xc000_0000;

/// Where RAM above the PCI hole begins.
pub const RAM_ABOVE_4G: Gpa = Gpa(1 << 32);

/// The 32-bit window for PCI BARs.
pub const PCI_MMIO32: Range<u64> = 0xc000_0000..0xe000_0000;

/// PCI Express configuration space (ECAM): 256 buses of 1 MiB.
pub const PCI_ECAM: Range<u64> = 0xe000_0000..0xf000_0000;

/// The number of PCI buses that the ECAM window covers.
pub const PCI_BUSES: u16 = 256;

/// PCI configuration mechanism 1: address and data ports, with the reset control register inside.
pub const PCI_CONFIG_PORTS: Range<u16> = 0xcf8..0xd00;

/// The reset control register (inside [`PCI_CONFIG_PORTS`]); ACPI's reset register points here too.
pub const RESET_PORT: u16 = 0xcf9;

/// What to write to [`RESET_PORT`] for a full reset: system reset (bit 1), reset CPU (bit 2).
pub const RESET_VALUE: u8 = 0x06;

/// The port window for PCI BARs.
pub const PCI_IO: Range<u32> = 0xc000..0x1_0000;

/// The I/O APIC.
pub const IOAPIC: Gpa = Gpa(0xfec0_0000);

/// Length of the I/O APIC's registers.
pub const IOAPIC_LEN: u64 = 0x1000;

/// The I/O APIC's pins.
pub const IOAPIC_PINS: usize = 24;

/// The local APICs.
pub const LAPIC: Gpa = Gpa(0xfee0_0000);

/// One page for KVM's real-mode identity map on Intel (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: Gpa = Gpa(0xfeff_c000);

/// Three pages for KVM's real-mode task state segment on Intel (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: Gpa = Gpa(0xfeff_d000);

/// Length of a 16550's registers.
pub const SERIAL_LEN: u64 = 8;

/// COM1 and COM2: first port and interrupt line.
pub const SERIAL: [(u16, Gsi); 2] = [(0x3f8, Gsi(4)), (0x2f8, Gsi(3))];

/// The keyboard controller's data and command ports.
pub const I8042_PORTS: [u16; 2] = [0x60, 0x64];

/// The keyboard's interrupt line.
pub const KEYBOARD_IRQ: Gsi = Gsi(1);

/// System control port B: PIT channel 2's gate and the refresh toggle. KVM's PIT claims it in the kernel irqchip.
pub const SYSTEM_CONTROL_B: u16 = 0x61;

/// System control port A: fast A20 and fast reset.
pub const SYSTEM_CONTROL_A: u16 = 0x92;

/// The 8254 timer's interrupt line.
pub const TIMER_IRQ: Gsi = Gsi(0);

/// The I/O APIC's pin for [`TIMER_IRQ`], as on every PC: its own pin is the 8259's output there.
pub const TIMER_PIN: Gsi = Gsi(2);

/// CMOS: index and data ports.
pub const CMOS_PORTS: Range<u16> = 0x70..0x72;

/// The real-time clock's interrupt line.
pub const RTC_IRQ: Gsi = Gsi(8);

/// ACPI PM1a event block: status and enable, two bytes each.
pub const PM1A_EVENT: Range<u16> = 0x600..0x604;

/// ACPI PM1a control block.
pub const PM1A_CONTROL: Range<u16> = 0x604..0x606;

/// ACPI power management timer.
pub const PM_TIMER: Range<u16> = 0x608..0x60c;

/// ACPI general purpose event block 0: status and enable, two bytes each.
pub const GPE0: Range<u16> = 0x620..0x624;

/// The system control interrupt: level-triggered, active high.
pub const SCI: Gsi = Gsi(9);

/// SLP_TYP for S5 in PM1a control and in the DSDT's \_S5 package.
pub const SLEEP_TYPE_S5: u8 = 5;

/// pvpanic's port.
pub const PVPANIC_PORT: u16 = 0x505;

/// The debug console's port.
pub const DEBUGCON_PORT: u16 = 0x402;

/// The firmware configuration device's selector port; data is one above it.
pub const FW_CFG_PORT: u16 = 0x510;

/// The debug-exit device's port unless told otherwise.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;

/// The POST code port, which software also writes to for a short delay.
pub const POST_PORT: u16 = 0x80;

/// The extended BIOS data area and everything up to 640 KiB that we keep for ourselves.
pub const EBDA: Range<u64> = 0x9_f000..0xa_0000;

/// The area that a PC's firmware occupies: RSDP and SMBIOS are searched for here.
pub const BIOS_AREA: Range<u64> = 0xe_0000..0x10_0000;

/// The pieces of guest RAM of `size` bytes, low to high: (first address, length).
///
/// `size` must be a multiple of the page size; all of it below [`LOW_RAM_MAX`] comes first.
pub fn ram_ranges(size: u64) -> Vec<(Gpa, u64)> {
    let low = size.min(LOW_RAM_MAX);
    let high = size - low;
    let mut ranges = vec![(Gpa(0), low)];
    if high > 0 {
        ranges.push((RAM_ABOVE_4G, high));
    }
    ranges
}

/// The first address after all RAM of `size` bytes.
pub fn ram_end(size: u64) -> Gpa {
    ram_ranges(size)
        .last()
        .map_or(Gpa(0), |&(start, len)| Gpa(start.0 + len))
}

/// The 64-bit window for PCI BARs: above 4 GiB and all RAM, aligned to 1 GiB, up to 64 GiB long or the end of what
/// `phys_bits` can address; `None` if nothing is left there.
pub fn pci_mmio64(ram_size: u64, phys_bits: u8) -> Option<Range<u64>> {
    const GIB: u64 = 1 << 30;
    let start = ram_end(ram_size)
        .0
        .max(RAM_ABOVE_4G.0)
        .next_multiple_of(GIB);
    let end = (start + 64 * GIB).min(1_u64.checked_shl(u32::from(phys_bits)).unwrap_or(u64::MAX));
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn ram_is_split_around_the_pci_hole() {
        assert_eq!(ram_ranges(GIB), [(Gpa(0), GIB)]);
        assert_eq!(ram_ranges(3 * GIB), [(Gpa(0), 3 * GIB)]);
        assert_eq!(
            ram_ranges(4 * GIB),
            [(Gpa(0), 3 * GIB), (Gpa(4 * GIB), GIB)]
        );
        assert_eq!(ram_end(GIB), Gpa(GIB));
        assert_eq!(ram_end(4 * GIB), Gpa(5 * GIB));
    }

    #[test]
    fn the_64_bit_window_lies_above_ram_and_within_the_address_width() {
        assert_eq!(pci_mmio64(GIB, 39), Some(4 * GIB..68 * GIB));
        assert_eq!(pci_mmio64(4 * GIB + 4096, 39), Some(6 * GIB..70 * GIB));
        assert_eq!(pci_mmio64(GIB, 36), Some(4 * GIB..64 * GIB));
        assert_eq!(pci_mmio64(63 * GIB, 36), None);
        assert_eq!(pci_mmio64(GIB, 64), Some(4 * GIB..68 * GIB));
    }

    #[test]
    fn fixed_ranges_do_not_overlap() {
        let mut mmio = [
            (PCI_MMIO32.start, PCI_MMIO32.end),
            (PCI_ECAM.start, PCI_ECAM.end),
            (IOAPIC.0, IOAPIC.0 + IOAPIC_LEN),
            (LAPIC.0, LAPIC.0 + 0x10_0000),
            (KVM_IDENTITY_MAP.0, KVM_TSS.0),
            (KVM_TSS.0, KVM_TSS.0 + 0x3000),
        ];
        mmio.sort_unstable();
        assert!(mmio.windows(2).all(|w| w[0].1 <= w[1].0));
        assert!(mmio[0].0 >= LOW_RAM_MAX && mmio[5].1 <= RAM_ABOVE_4G.0);
    }
}
