//! Guest RAM as KVM's memory slots.

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use super::{KvmError, ioctl_error};
use crate::memory::dirty::PageSet;
use crate::memory::{GuestRam, RamPiece};

/// Gives the VM all pieces of `ram`, a slot each from 0. The VM must be gone before the last clone of `ram`'s mapping.
///
/// # Errors
/// If KVM refuses: too large for its slots, or overlapping.
pub fn add_ram(vm: &VmFd, ram: &GuestRam) -> Result<(), KvmError> {
    for (slot, piece) in (0..).zip(ram.pieces()) {
        set_slot(vm, slot, piece, 0, "give the guest its RAM")?;
    }
    Ok(())
}

/// Adds all pieces of `more` to the VM, in slots behind those of `ram`, until [`remove_temporary_slots`].
///
/// # Errors
/// If KVM refuses: too high for its addresses, or overlapping.
pub fn add_temporary_slots(vm: &VmFd, ram: &GuestRam, more: &GuestRam) -> Result<(), KvmError> {
    for (slot, piece) in temporary_slots(ram, more) {
        set_slot(vm, slot, piece, 0, "add temporary guest memory")?;
    }
    Ok(())
}

/// Removes what [`add_temporary_slots`] added.
///
/// # Errors
/// If KVM refuses.
pub fn remove_temporary_slots(vm: &VmFd, ram: &GuestRam, more: &GuestRam) -> Result<(), KvmError> {
    for (slot, piece) in temporary_slots(ram, more) {
        // KVM deletes a slot whose length is set to 0.
        let none = RamPiece { len: 0, ..piece };
        set_slot(vm, slot, none, 0, "remove temporary guest memory")?;
    }
    Ok(())
}

fn temporary_slots(ram: &GuestRam, more: &GuestRam) -> impl Iterator<Item = (u32, RamPiece)> {
    (0..).skip(ram.pieces().count()).zip(more.pieces())
}

/// Begins or ends to log which pages of `ram` are written, by the guest and by KVM.
///
/// # Errors
/// If KVM refuses.
pub fn log_writes(vm: &VmFd, ram: &GuestRam, on: bool) -> Result<(), KvmError> {
    let flags = if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
    for (slot, piece) in (0..).zip(ram.pieces()) {
        let doing = "log which pages the guest writes";
        set_slot(vm, slot, piece, flags, doing)?;
    }
    Ok(())
}

/// Adds the pages that were written since the last call, or since the log began, to `set`.
///
/// # Errors
/// If KVM refuses: nothing is logged.
pub fn take_log(vm: &VmFd, ram: &GuestRam, set: &mut PageSet) -> Result<(), KvmError> {
    for (slot, piece) in (0..).zip(ram.pieces()) {
        let bytes = usize::try_from(piece.len).expect("it is mapped");
        let bitmap = vm.get_dirty_log(slot, bytes).map_err(ioctl_error(
            "KVM_GET_DIRTY_LOG",
            "read which pages the guest wrote",
        ))?;
        let number = usize::try_from(slot).expect("few slots");
        set.insert_bitmap(number, &bitmap);
    }
    Ok(())
}

fn set_slot(
    vm: &VmFd,
    slot: u32,
    piece: RamPiece,
    flags: u32,
    doing: &'static str,
) -> Result<(), KvmError> {
    let region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: piece.gpa.0,
        memory_size: piece.len,
        userspace_addr: piece.host,
    };
    // SAFETY: the piece is a live mapping of that length, used by nobody as Rust memory. Should it be unmapped while the
    // VM lives, the guest gets faults; KVM holds no reference to the pages past the mapping.
    unsafe { vm.set_user_memory_region(region) }
        .map_err(ioctl_error("KVM_SET_USER_MEMORY_REGION", doing))
}
