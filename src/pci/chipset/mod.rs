//! The functions of a Q35 chipset that software looks for: host bridge and LPC bridge.
//!
//! Numbers of registers, their values after a reset and their bits are those of Intel's 3 Series (Q35) and
//! ICH9 datasheets, as far as QEMU's `q35` has them.

mod host_bridge;
mod lpc;
mod registers;

use std::ops::Range;
use std::sync::Mutex;

pub use host_bridge::{ECAM_SIZES, Q35HostBridge};
pub use lpc::{Lpc, RCBA_LEN, RootComplexRegisters};

use super::{ConfigSpace, DevFn, PciFunction};
use crate::bus::{Device, lock};
use crate::state::{Decoder, Encoder, StateError};

/// What the chipset's registers have at power-on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerOn {
    /// The values after a reset, for firmware to change.
    Reset,
    /// What firmware would have made of them: there is none before a kernel that is booted directly.
    AfterFirmware,
}

/// A function of the chipset in its place, with its own section in a saved VM.
#[derive(Debug)]
pub struct OnBoard<F> {
    name: String,
    function: Mutex<F>,
}

impl<F: PciFunction> OnBoard<F> {
    /// `function` at `place`.
    pub fn new(place: DevFn, function: F) -> Self {
        Self {
            name: format!("pci-{place}"),
            function: Mutex::new(function),
        }
    }
}

impl OnBoard<Q35HostBridge> {
    /// See [`Q35HostBridge::ecam_of_all_buses`].
    pub fn ecam_of_all_buses(&self) -> Option<Range<u64>> {
        lock(&self.function).ecam_of_all_buses()
    }
}

impl<F: PciFunction> ConfigSpace for OnBoard<F> {
    fn read_config(&self, offset: u16) -> u32 {
        lock(&self.function).read_config(offset)
    }

    fn write_config(&self, offset: u16, value: u32, mask: u32) {
        lock(&self.function).write_config(offset, value, mask);
    }
}

impl<F: PciFunction> Device for OnBoard<F> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn reset(&self) {
        lock(&self.function).reset();
    }

    fn save(&self, to: &mut Encoder) {
        lock(&self.function).save(to);
    }

    fn load(&self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        lock(&self.function).load(from)
    }
}

#[cfg(test)]
mod tests;
