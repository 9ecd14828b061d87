//! The state that the vCPUs of one machine share.

use std::sync::{Arc, Mutex};

use crate::bus::{Bus, View};
use crate::hyperv::{GuestBytes, Partition, UserHypercalls};
use crate::irq::ioapic::IoApic;
use crate::kvm::memory::MemorySlots;
use crate::life::GuestEvents;
use crate::memory::GuestRam;
use crate::memory::dirty_log::DirtyLog;
use crate::units::Gpa;

/// The state that the vCPUs of one machine share. It outlives resets of the machine.
#[derive(Debug)]
pub struct VcpuPlatform {
    /// Port I/O.
    pub ports: Bus,
    /// MMIO.
    pub mmio: Bus,
    /// Guest RAM.
    pub ram: GuestRam,
    /// The dirty log of RAM.
    pub dirty: DirtyLog,
    /// RAM and all other guest memory, as memory slots.
    pub slots: MemorySlots,
    /// The synthetic MSRs that hypernest owns.
    pub partition: Mutex<Partition>,
    /// The hypercalls that KVM exits for.
    pub hypercalls: UserHypercalls,
    /// Reports guest events that concern the VM as a whole.
    pub events: GuestEvents,
    /// The user-space I/O APIC of the split irqchip.
    pub ioapic: Option<Arc<IoApic>>,
}

/// The buses as one vCPU's thread accesses them.
#[derive(Debug)]
pub struct Buses {
    /// Port I/O.
    pub ports: View,
    /// MMIO.
    pub mmio: View,
}

impl VcpuPlatform {
    /// For a vCPU.
    pub fn buses(&self) -> Buses {
        Buses {
            ports: self.ports.view(),
            mmio: self.mmio.view(),
        }
    }
}

impl GuestBytes for GuestRam {
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> bool {
        self.read(gpa, bytes).is_ok()
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> bool {
        self.write(gpa, bytes).is_ok()
    }
}
