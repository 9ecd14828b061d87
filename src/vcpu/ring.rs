//! A vCPU's dirty ring: its own thread harvests it when it is full, the main thread when it collects dirty
//! pages.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use kvm_ioctls::{VcpuFd, VmFd};

use crate::bus;
use crate::kvm::KvmError;
use crate::kvm::dirty_ring::{self, DirtyRing, Harvest};
use crate::memory::dirty::WrittenPages;
use crate::memory::slots::RamSlots;

/// A vCPU's ring, and the VM that resets the harvested entries.
#[derive(Debug)]
pub struct Ring {
    ring: Mutex<DirtyRing>,
    vm: Arc<VmFd>,
    slots: RamSlots,
    /// Writes of the vCPU have been lost, and KVM's position in the ring and this one have diverged.
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

    /// Marks the pages that the vCPU, which is out of the guest, has written. [`dirty_ring::reset`] returns
    /// the entries to KVM.
    pub fn harvest(&self, written: &WrittenPages) {
        if bus::lock(&self.ring).harvest(&self.slots, written) == Harvest::Overflowed {
            self.overflowed.store(true, Ordering::SeqCst);
        }
    }

    /// Whether the ring has ever lost writes of the vCPU.
    pub fn has_overflowed(&self) -> bool {
        self.overflowed.load(Ordering::SeqCst)
    }

    /// Harvests the ring and returns its entries to KVM.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn make_room(&self, written: &WrittenPages) -> Result<(), KvmError> {
        self.harvest(written);
        dirty_ring::reset(&self.vm)
    }
}
