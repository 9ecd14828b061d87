//! The LPC bridge of an ICH9 at 00:1f.0, behind which a PC has its ISA devices.
//!
//! PMBASE and ACPI_CNTL place the power management registers, RCBA the chipset configuration registers. The
//! interrupt routing registers store what is written: interrupt pins reach the I/O APIC, which they do not
//! affect.

use super::PowerOn;
use super::registers::{Registers, Row, row};
use crate::bus::{Handler, Region, Window};
use crate::layout;
use crate::pci::PciFunction;
use crate::state::{Decoder, Encoder, StateError};

// Register offsets.
const PMBASE: u16 = 0x40;
const ACPI_CNTL: u16 = 0x44;
const GEN_PMCON_1: u16 = 0xa0;
const RCBA: u16 = 0xf0;

/// PIRQA to PIRQD, or PIRQE to PIRQH: not routed to the 8259 (bit 7).
const PIRQ_RESET: u32 = 0x8080_8080;
const PIRQ_BITS: u32 = 0x8f8f_8f8f;

const ROWS: &[Row; 11] = &[
    row(0x00, 0x2918_8086, 0),
    // I/O space, memory space and bus master: hard-wired (ICH9, 13.1.3).
    row(0x04, 0x0007, 0),
    // Class 06 (bridge), subclass 01 (ISA), revision 2.
    row(0x08, 0x0601_0002, 0),
    // A device with more than one function.
    row(0x0c, 0x0080_0000, 0),
    row(0x3c, 0, 0xff),
    row(PMBASE, IO_SPACE, PMBASE_ADDRESS),
    // Besides, which interrupt the SCI is: it is 9 here, whatever is written.
    row(ACPI_CNTL, 0, ACPI_EN | 7),
    row(0x60, PIRQ_RESET, PIRQ_BITS),
    row(0x68, PIRQ_RESET, PIRQ_BITS),
    row(GEN_PMCON_1, 0, SMI_LOCK),
    row(RCBA, 0, RCBA_ADDRESS | RCBA_EN),
];

const IO_SPACE: u32 = 1 << 0;
const PMBASE_ADDRESS: u32 = 0xff80;
const ACPI_EN: u32 = 1 << 7;
/// Stays set until a reset.
const SMI_LOCK: u32 = 1 << 4;
const RCBA_EN: u32 = 1 << 0;
const RCBA_ADDRESS: u32 = 0xffff_c000;

/// Length of the chipset configuration registers.
pub const RCBA_LEN: u64 = 0x4000;

/// The bridge.
#[derive(Debug)]
pub struct Lpc {
    registers: Registers<11>,
    pm: Vec<(u64, Window)>,
    rcba: Window,
    power_on: PowerOn,
}

impl Lpc {
    /// `pm` are the blocks of power management registers with their offsets from PMBASE (below its alignment
    /// of 128), `rcba` the chipset configuration registers.
    pub fn new(pm: Vec<(u64, Window)>, rcba: Window, power_on: PowerOn) -> Self {
        let mut bridge = Self {
            registers: Registers::new(ROWS),
            pm,
            rcba,
            power_on,
        };
        bridge.reset();
        bridge
    }

    fn apply(&self) {
        let enabled = self.registers.get(ACPI_CNTL) & ACPI_EN != 0;
        let base = u64::from(self.registers.get(PMBASE) & PMBASE_ADDRESS);
        for (offset, window) in &self.pm {
            window.place(enabled.then_some(base + offset));
        }
        let rcba = self.registers.get(RCBA);
        let at = (rcba & RCBA_EN != 0).then_some(u64::from(rcba & RCBA_ADDRESS));
        self.rcba.place(at);
    }
}

impl PciFunction for Lpc {
    fn read_config(&mut self, offset: u16) -> u32 {
        self.registers.get(offset)
    }

    fn write_config(&mut self, offset: u16, value: u32, mask: u32) {
        let before = self.registers.get(GEN_PMCON_1) & SMI_LOCK;
        self.registers.write(offset, value, mask);
        let now = self.registers.get(GEN_PMCON_1);
        self.registers.set(GEN_PMCON_1, now | before);
        if matches!(offset, PMBASE | ACPI_CNTL | RCBA) {
            self.apply();
        }
    }

    fn reset(&mut self) {
        self.registers.reset();
        if self.power_on == PowerOn::AfterFirmware {
            let base = u32::from(layout::PM1A_EVENT.start) | IO_SPACE;
            self.registers.set(PMBASE, base);
            self.registers.set(ACPI_CNTL, ACPI_EN);
        }
        self.apply();
    }

    fn save(&self, to: &mut Encoder) {
        self.registers.save(to);
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        self.registers.load(from)?;
        self.apply();
        Ok(())
    }
}

/// General Control and Status (ICH9, 10.1.75), and its bit NO_REBOOT: the watchdog does not reset the
/// machine, as there is none.
const GCS: u64 = 0x3410;
const NO_REBOOT: u32 = 1 << 5;

/// The chipset configuration registers: all zero but `GCS`. Firmware writes them and does not read them.
#[derive(Debug)]
pub struct RootComplexRegisters;

impl Handler for RootComplexRegisters {
    fn read(&self, _region: Region, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset == GCS
            && let Some(low) = data.first_chunk_mut()
        {
            *low = NO_REBOOT.to_le_bytes();
        }
    }

    fn write(&self, _region: Region, _offset: u64, _data: &[u8]) {}
}
