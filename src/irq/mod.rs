//! Interrupt lines: how a device raises an interrupt without knowing who delivers it.

pub mod ioapic;

use std::fmt;
use std::sync::Arc;

use crate::units::Gsi;

/// Delivers level changes of interrupt lines to the interrupt controller.
///
/// Implemented by KVM's in-kernel controllers (`KVM_IRQ_LINE`), by the user-space I/O APIC of the split irqchip, and by
/// recorders in device tests.
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
