//! The host bridge of a Q35 chipset at 00:00.0.
//!
//! The id promises registers, and firmware for virtual machines takes the machine for QEMU's `q35` by it
//! alone. PCIEXBAR moves the ECAM window. PAM and SMRAM control store what is written, with their locks;
//! there is RAM at all addresses that they name, and no SMRAM.

use std::ops::Range;

use super::PowerOn;
use super::registers::{Registers, Row, row};
use crate::bus::Window;
use crate::layout;
use crate::pci::PciFunction;
use crate::state::{Decoder, Encoder, StateError};

// Register offsets.
/// QEMU's own: how large TSEG is, in MiB.
const EXT_TSEG: u16 = 0x50;
const PCIEXBAR: u16 = 0x60;
const PCIEXBAR_HIGH: u16 = 0x64;
/// SMRAM is the second byte, ESMRAMC the third.
const SMRAM_ESMRAMC: u16 = 0x9c;

const ROWS: &[Row; 10] = &[
    row(0x00, 0x29c0_8086, 0),
    // Memory space and bus master: hard-wired, as the bridge always forwards.
    row(0x04, 0x0006, 0),
    // Class 06 (bridge), subclass 00 (host), revision 0.
    row(0x08, 0x0600_0000, 0),
    // The interrupt line is scratch space; the bridge has no interrupt pin.
    row(0x3c, 0, 0xff),
    row(EXT_TSEG, 0, 0xffff),
    row(PCIEXBAR, 0xb000_0000, 0xfc00_0000 | LENGTH | ENABLE),
    row(PCIEXBAR_HIGH, 0, 0xf),
    // PAM0 to PAM3: read and write enable of a segment in bits 5:4 and 1:0 of each; PAM0 has one segment.
    row(0x90, 0, 0x3333_3330),
    // PAM4 to PAM6.
    row(0x94, 0, 0x0033_3333),
    row(SMRAM_ESMRAMC, 0x0038_0200, 0x0087_7800),
];

// PCIEXBAR.
const ENABLE: u32 = 1 << 0;
const LENGTH: u32 = 3 << 1;

/// The lengths of the ECAM window, by the length bits of PCIEXBAR: 256, 128 or 64 buses of 1 MiB.
pub const ECAM_SIZES: [u64; 3] = [256 << 20, 128 << 20, 64 << 20];

/// What a TSEG size register reads after all ones were written to it, as QEMU's unless told otherwise.
const TSEG_MIB: u32 = 16;

// SMRAM, in the register at 0x9c.
const D_OPEN: u32 = 1 << (8 + 6);
const D_CLS: u32 = 1 << (8 + 5);
const D_LCK: u32 = 1 << (8 + 4);

/// The bridge.
#[derive(Debug)]
pub struct Q35HostBridge {
    registers: Registers<10>,
    windows: [Window; 3],
    power_on: PowerOn,
    ecam: u32,
}

impl Q35HostBridge {
    /// `windows` are the ECAM window in each of [`ECAM_SIZES`]; firmware would place it at `ecam`, below 4
    /// GiB.
    pub fn new(windows: [Window; 3], power_on: PowerOn, ecam: u32) -> Self {
        let mut bridge = Self {
            registers: Registers::new(ROWS),
            windows,
            power_on,
            ecam,
        };
        bridge.reset();
        bridge
    }

    /// Where the ECAM window is, and which.
    fn ecam(&self) -> Option<(u64, usize)> {
        let low = self.registers.get(PCIEXBAR);
        let which = length(low);
        let size = ECAM_SIZES.get(which)?;
        let high = u64::from(self.registers.get(PCIEXBAR_HIGH)) << 32;
        let base = (high | u64::from(low)) & !(size - 1);
        (low & ENABLE != 0).then_some((base, which))
    }

    /// Where the ECAM window is, if it is one for 256 buses and below the I/O APIC.
    pub fn ecam_of_all_buses(&self) -> Option<Range<u64>> {
        let (base, which) = self.ecam()?;
        let window = base..base + ECAM_SIZES[0];
        (which == 0 && window.end <= layout::IOAPIC.0).then_some(window)
    }

    fn apply(&self) {
        let ecam = self.ecam();
        for (n, window) in self.windows.iter().enumerate() {
            window.place(ecam.filter(|(_, which)| *which == n).map(|(base, _)| base));
        }
    }
}

/// The length bits of PCIEXBAR; 3 is reserved.
fn length(low: u32) -> usize {
    usize::try_from((low & LENGTH) >> 1).unwrap_or(3)
}

impl PciFunction for Q35HostBridge {
    fn read_config(&mut self, offset: u16) -> u32 {
        self.registers.get(offset)
    }

    fn write_config(&mut self, offset: u16, value: u32, mask: u32) {
        match offset {
            EXT_TSEG if value & mask & 0xffff == 0xffff => self.registers.set(EXT_TSEG, TSEG_MIB),
            EXT_TSEG => {}
            PCIEXBAR | PCIEXBAR_HIGH => {
                self.registers.write(offset, value, mask);
                let low = self.registers.get(PCIEXBAR);
                // Address bits below the length read as 0.
                if let Some(size) = ECAM_SIZES.get(length(low)) {
                    let address = !u32::try_from(size - 1).unwrap_or(u32::MAX);
                    let kept = address | LENGTH | ENABLE;
                    self.registers.set(PCIEXBAR, low & kept);
                }
                self.apply();
            }
            SMRAM_ESMRAMC => {
                let locked = self.registers.get(SMRAM_ESMRAMC) & D_LCK != 0;
                let mask = if locked { mask & D_CLS } else { mask };
                self.registers.write(offset, value, mask);
                let now = self.registers.get(SMRAM_ESMRAMC);
                if now & D_LCK != 0 {
                    self.registers.set(SMRAM_ESMRAMC, now & !D_OPEN);
                }
            }
            _ => self.registers.write(offset, value, mask),
        }
    }

    fn reset(&mut self) {
        self.registers.reset();
        if self.power_on == PowerOn::AfterFirmware {
            self.registers.set(PCIEXBAR, self.ecam | ENABLE);
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
