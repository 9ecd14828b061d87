//! The host bridge at 00:00.0.
//!
//! Its identity is Intel's 0d57, which names a bridge without chipset registers: no operating system has a
//! quirk or a chipset driver for it, and firmware made for virtual machines knows it. q35's 29c0 would
//! promise registers (PCIEXBAR, SMRAM control) that are not here. Operating systems drive a host bridge by
//! its class alone.

use super::PciFunction;
use crate::state::{Decoder, Encoder, StateError};

/// Intel.
pub const VENDOR_ID: u16 = 0x8086;
/// A virtual host bridge.
pub const DEVICE_ID: u16 = 0x0d57;

/// Class 06 (bridge), subclass 00 (host), revision 0.
const CLASS_REVISION: u32 = 0x0600_0000;
/// Memory space and bus master: hard-wired, for the bridge always forwards.
const COMMAND: u32 = 0x0006;

// Register offsets (PCI Local Bus 3.0, 6.1).
const REG_ID: u16 = 0x00;
const REG_COMMAND_STATUS: u16 = 0x04;
const REG_CLASS: u16 = 0x08;
const REG_INTERRUPT: u16 = 0x3c;

/// The interrupt line byte is scratch space for software; the bridge has no interrupt pin.
const INTERRUPT_LINE_MASK: u32 = 0xff;

/// The bridge: no BARs, no capabilities.
#[derive(Debug, Default)]
pub struct HostBridge {
    interrupt_line: u32,
}

impl PciFunction for HostBridge {
    fn read_config(&mut self, offset: u16) -> u32 {
        match offset {
            REG_ID => u32::from(DEVICE_ID) << 16 | u32::from(VENDOR_ID),
            REG_COMMAND_STATUS => COMMAND,
            REG_CLASS => CLASS_REVISION,
            REG_INTERRUPT => self.interrupt_line,
            _ => 0,
        }
    }

    fn write_config(&mut self, offset: u16, value: u32, mask: u32) {
        if offset == REG_INTERRUPT {
            let mask = mask & INTERRUPT_LINE_MASK;
            self.interrupt_line = (self.interrupt_line & !mask) | (value & mask);
        }
    }

    fn reset(&mut self) {
        self.interrupt_line = 0;
    }

    fn save(&self, to: &mut Encoder) {
        to.u32(self.interrupt_line);
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        self.interrupt_line = from.u32("interrupt line")? & INTERRUPT_LINE_MASK;
        Ok(())
    }
}
