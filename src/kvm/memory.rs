//! Guest RAM as KVM's memory slots.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

use super::{KvmError, ioctl_error};
use crate::memory::GuestRam;

/// Gives the VM all pieces of `ram`, a slot each from 0. The VM must be gone before the last clone of `ram`'s mapping.
///
/// # Errors
/// If KVM refuses: too large for its slots, or overlapping.
pub fn add_ram(vm: &VmFd, ram: &GuestRam) -> Result<(), KvmError> {
    for (slot, piece) in (0..).zip(ram.pieces()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: piece.gpa.0,
            memory_size: piece.len,
            userspace_addr: piece.host,
        };
        // SAFETY: the piece is a live mapping of that length, used by nobody as Rust memory. Should it be unmapped while the
        // VM lives, the guest gets faults; KVM holds no reference to the pages past the mapping.
        unsafe { vm.set_user_memory_region(region) }.map_err(ioctl_error(
            "KVM_SET_USER_MEMORY_REGION",
            "give the guest its RAM",
        ))?;
    }
    Ok(())
}
