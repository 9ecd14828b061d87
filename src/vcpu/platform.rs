//! What the vCPUs of one machine share.

use std::sync::Arc;

use crate::bus::Bus;
use crate::life::LifeHandle;
use crate::memory::GuestRam;

/// Takes the end-of-interrupt that a local APIC broadcast; implemented by the user-space I/O APIC.
pub trait EoiSink: Send + Sync + std::fmt::Debug {
    /// The guest finished handling `vector`.
    fn end_of_interrupt(&self, vector: u8);
}

/// What the vCPUs of one machine share. It outlives resets of the machine.
#[derive(Debug)]
pub struct Platform {
    /// Port I/O.
    pub ports: Bus,
    /// MMIO.
    pub mmio: Bus,
    /// Guest RAM.
    pub ram: GuestRam,
    /// Where life-cycle events go.
    pub life: LifeHandle,
    /// The user-space I/O APIC of the split irqchip.
    pub ioapic: Option<Arc<dyn EoiSink>>,
    /// A port where the guest reads how often KVM has left the guest on the vCPU that asks.
    pub exit_counter: Option<u16>,
}
