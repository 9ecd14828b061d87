//! The PCI root: configuration space by ports CF8/CFC and by ECAM, over one table of functions.
//!
//! There is one bus, number 0, with one function on it: the host bridge. Whatever is added later is a [`PciFunction`] in a
//! slot; both ways of access reach it alike.

pub mod bar;
mod bridge;
pub mod caps;
pub mod header;
mod host;
pub mod msix;
mod reset_control;

pub use bridge::{DEVICE_ID, HostBridge, VENDOR_ID};
pub use host::{CONFIG_PORTS, ECAM, PORTS, PciHost};

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

    fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// One function's configuration space, in registers of four bytes.
pub trait PciFunction: Send {
    /// The register at `offset` (a multiple of 4 below 4096).
    fn read_config(&mut self, offset: u16) -> u32;

    /// Writes those bits of the register at `offset` that `mask` has; the mask consists of whole bytes. What the function
    /// does not let be written stays.
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
