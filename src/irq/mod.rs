//! Interrupts: how a device raises one without knowing who delivers it.
//!
//! - [`IrqLine`]: a line into an interrupt controller; [`SharedLine`]: one that several functions share (PCI
//!   INTx)
//! - [`Vector`]: a message-signalled interrupt, with an irqfd where a device wants one; [`Sint`]: one of
//!   Hyper-V's sources
//! - [`Routes`]: the owner of all GSIs, across resets
//! - [`Doorbell`]: the other direction, a driver's write as an eventfd
//! - [`ioapic`]: the I/O APIC in user space

mod doorbell;
pub mod ioapic;
mod routes;
mod shared;
mod table;
mod vector;

pub use doorbell::{Doorbell, Doorbells, IoAddress, Match};
pub use routes::{NoVector, Routes};
pub use shared::{LineHolder, SharedLine};
pub use table::Controllers;
pub use vector::{Sint, Vector};

use std::fmt;
use std::sync::Arc;

pub use crate::kvm::route::Msi;
use crate::units::Gsi;

/// Delivers level changes of interrupt lines to the interrupt controller.
///
/// Implemented by KVM's in-kernel controllers (`KVM_IRQ_LINE`), by the user-space I/O APIC of the split
/// irqchip, and by recorders in device tests.
pub trait IrqSink: Send + Sync {
    /// Sets the level of line `gsi`. Must not block on a device.
    fn set_level(&self, gsi: Gsi, high: bool);
}

/// One interrupt line, given to the device that drives it.
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn IrqSink>,
    gsi: Gsi,
}

impl IrqLine {
    /// The line `gsi` of `sink`.
    pub fn new(sink: Arc<dyn IrqSink>, gsi: Gsi) -> Self {
        Self { sink, gsi }
    }

    /// Drives the line high or low. Level-triggered devices call this whenever their condition changes.
    pub fn set(&self, high: bool) {
        self.sink.set_level(self.gsi, high);
    }

    /// Raises and lowers the line: one edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IrqLine")
            .field("gsi", &self.gsi)
            .finish_non_exhaustive()
    }
}
