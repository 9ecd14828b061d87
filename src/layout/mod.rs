//! Where everything lies in the guest: RAM, MMIO windows, ports, interrupt lines. Plain values, so that the
//! ACPI tables, the boot protocols and the wiring cannot disagree. What machine types have in common are
//! constants here; the rest is in their [`AddressMap`].

mod machine_type;
mod map;

use std::ops::Range;

pub use machine_type::MachineType;
pub use map::{AddressMap, AddressWidth};

use crate::units::{Gpa, Gsi};

/// 1 MiB: where loadable RAM begins for kernels.
pub const HIGH_MEMORY: Gpa = Gpa(0x10_0000);

/// Where RAM above the PCI hole begins.
pub const RAM_ABOVE_4G: Gpa = Gpa(1 << 32);

/// The number of PCI buses that the ECAM window covers.
pub const PCI_BUSES: u16 = 256;

/// PCI configuration mechanism 1: address and data ports, with the reset control register inside.
pub const PCI_CONFIG_PORTS: Range<u16> = 0xcf8..0xd00;

/// The reset control register (inside [`PCI_CONFIG_PORTS`]); ACPI's reset register points here too.
pub const RESET_PORT: u16 = 0xcf9;

/// What to write to [`RESET_PORT`] for a full reset: system reset (bit 1), reset CPU (bit 2).
pub const RESET_VALUE: u8 = 0x06;

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

/// System control port B: PIT channel 2's gate and the refresh toggle. KVM's PIT claims it in the kernel
/// irqchip.
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
