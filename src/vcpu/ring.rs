//! A vCPU's dirty ring, emptied by its own thread when it is full and by the machine's when somebody wants to know.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use kvm_ioctls::{VcpuFd, VmFd};

use crate::bus;
use crate::kvm::KvmError;
use crate::kvm::dirty_ring::{self, DirtyRing, Harvest};
use crate::memory::dirty::WrittenPages;
use crate::memory::slots::RamSlots;

/// A vCPU's ring, and the VM that takes back what was harvested.
#[derive(Debug)]
pub struct Ring {
    ring: Mutex<DirtyRing>,
    vm: Arc<VmFd>,
    slots: RamSlots,
    /// Nobody knows any more what the vCPU wrote, and KVM's end of the ring and ours do not meet again.
    overflowed: AtomicBool,
}

impl Ring {
    /// The ring of `vcpu`, a vCPU of `vm` with rings of `entries` and with RAM in `slots`.
    ///
    /// # Errors
    /// If it cannot be mapped.
    pub fn of(
        vcpu: &VcpuFd,
        vm: &Arc<VmFd>,
        entries: u32,
        slots: RamSlots,
    ) -> Result<Self, KvmError> {
        Ok(Self {
            ring: Mutex::new(DirtyRing::map(vcpu, entries)?),
            vm: Arc::clone(vm),
            slots,
            overflowed: AtomicBool::new(false),
        })
    }

    /// Marks what the vCPU, which is out of the guest, has written. KVM gets it back with [`dirty_ring::reset`].
    pub fn harvest(&self, written: &WrittenPages) {
        if bus::lock(&self.ring).harvest(&self.slots, written) == Harvest::Overflowed {
            self.overflowed.store(true, Ordering::SeqCst);
        }
    }

    /// Whether it has ever lost what the vCPU wrote.
    pub fn has_overflowed(&self) -> bool {
        self.overflowed.load(Ordering::SeqCst)
    }

    /// The same, and gives it back.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn make_room(&self, written: &WrittenPages) -> Result<(), KvmError> {
        self.harvest(written);
        dirty_ring::reset(&self.vm)
    }
}
