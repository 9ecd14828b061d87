//! The PCI root: configuration space by ports CF8/CFC and by ECAM, over one table of functions.
//!
//! There is one bus, number 0. The host bridge is on it, and devices that the configuration asks for: each is
//! a [`Function`] in a [`Slot`], which has what all functions have: configuration space, BARs that move,
//! MSI-X and an interrupt pin. What a function does by itself, it does through its [`Requester`].
//!
//! ```text
//!   CF8/CFC, ECAM ──► PciHost ──► Slot: header, capabilities ──► Requester: Bus Master, MSI-X masks, pin
//!   BARs ──► Window ──► Slot: MSI-X table ──────┘       │                │
//!                        └──► Function::{read,write}_bar ──────────────────┴──► memory, Vector, SharedLine
//! ```

pub mod bar;
mod bridge;
pub mod caps;
pub mod chipset;
mod function;
pub mod header;
mod host;
pub mod msix;
mod reset_control;
mod slot;
#[cfg(test)]
pub(crate) mod testing;

pub use bridge::{DEVICE_ID, HostBridge, VENDOR_ID};
pub use function::{Function, Requester};
pub use host::{CONFIG_PORTS, ECAM, PORTS, PciHost};
pub use slot::{Shape, Slot, msix_bar_len};

use std::fmt;

use crate::state::{Decoder, Encoder, StateError};

/// A function's place on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DevFn(u8);

impl DevFn {
    /// Device 0..=31, function 0..=7; `None` if out of range.
    pub const fn new(device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self(device << 3 | function))
        } else {
            None
        }
    }

    /// The host bridge's place.
    pub const HOST_BRIDGE: Self = Self(0);

    /// The place of the bridge to the ISA devices, where a PC has it: 00:1f.0.
    pub const LPC: Self = Self(31 << 3);

    fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// As lspci(8) writes it, without the domain.
impl fmt::Display for DevFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.{}", self.0 >> 3, self.0 & 7)
    }
}

/// A device's configuration space, in registers of four bytes. It chooses its own locks.
pub trait ConfigSpace: Send + Sync {
    /// As [`PciFunction::read_config`].
    fn read_config(&self, offset: u16) -> u32;

    /// As [`PciFunction::write_config`].
    fn write_config(&self, offset: u16, value: u32, mask: u32);
}

/// A function of the chipset, with its configuration space in registers of four bytes. The root complex's
/// lock guards it.
pub trait PciFunction: Send {
    /// The register at `offset` (a multiple of 4 below 4096).
    fn read_config(&mut self, offset: u16) -> u32;

    /// Writes those bits of the register at `offset` that `mask` has; the mask consists of whole bytes. What
    /// the function does not let be written stays.
    fn write_config(&mut self, offset: u16, value: u32, mask: u32);

    /// Back to the power-on state.
    fn reset(&mut self);

    /// Writes down what can change.
    fn save(&self, to: &mut Encoder);

    /// Takes over what was saved.
    ///
    /// # Errors
    /// If something is missing, or cannot be.
    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError>;
}
