//! How another thread gets a vCPU out of `KVM_RUN`.
//!
//! Set [`ImmediateExit`], then send the vCPU's thread a signal: if the thread is inside `KVM_RUN` the signal ends it, and if
//! it is about to enter, the flag makes the entry fail. Both look like `EINTR`. The thread clears the flag before it looks
//! at what it was interrupted for.

use std::fmt;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::ioctl::SignalMask;
use super::{KvmError, ioctl, ioctl_error};

const PAGE: usize = 4096;
const IMMEDIATE_EXIT: usize = std::mem::offset_of!(kvm_run, immediate_exit);
const _: () = assert!(IMMEDIATE_EXIT < PAGE);

/// The `immediate_exit` flag of one vCPU, for other threads and for signal handlers. It has a mapping of its own, so it
/// may outlive the vCPU.
pub struct ImmediateExit {
    page: NonNull<AtomicU8>,
}

// SAFETY: the mapping belongs to this value alone and is reached only through an atomic.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above; `set` works on a shared reference to an atomic.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    /// The flag of `vcpu`.
    ///
    /// # Errors
    /// If the page cannot be mapped.
    pub fn of(vcpu: &VcpuFd) -> Result<Self, KvmError> {
        // SAFETY: `vcpu` keeps its descriptor open for longer than this borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let length = NonZeroUsize::new(PAGE).expect("a page is not empty");
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing. The first page of a vCPU's mapping
        // is its kvm_run.
        let page = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                fd.as_fd(),
                0,
            )
        }
        .map_err(ioctl_error("mmap", "map a vCPU's kvm_run page"))?;
        Ok(Self { page: page.cast() })
    }

    /// Sets or clears the flag.
    pub fn set(&self, on: bool) {
        // SAFETY: the offset is within the mapped page, checked above at compile time.
        let flag = unsafe { self.page.add(IMMEDIATE_EXIT) };
        // SAFETY: the mapping lives as long as `self`; a byte is always aligned; user space reaches this byte only through
        // atomics here, and the kernel reads it once per KVM_RUN.
        let flag = unsafe { flag.as_ref() };
        flag.store(u8::from(on), Ordering::SeqCst);
    }
}

impl Drop for ImmediateExit {
    fn drop(&mut self) {
        // SAFETY: the page was mapped with this length by `of` and nothing else refers to it. Failing would mean that it is
        // not mapped, and there is nothing to do about it.
        let _gone = unsafe { munmap(self.page.cast(), PAGE) };
    }
}

impl fmt::Debug for ImmediateExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImmediateExit").finish_non_exhaustive()
    }
}

/// Blocks exactly the signals in `blocked` (bit n-1 is signal n) while the vCPU is in `KVM_RUN`, whatever the thread's own
/// mask says: a signal blocked outside and not inside ends `KVM_RUN` without ever being lost or handled elsewhere.
///
/// # Errors
/// If KVM refuses, which it does not for a valid vCPU.
pub fn set_run_signal_mask(vcpu: &VcpuFd, blocked: u64) -> Result<(), KvmError> {
    let mask = SignalMask {
        len: 8,
        sigset: blocked.to_ne_bytes(),
    };
    // SAFETY: the descriptor is a vCPU's; the structure is a live local whose tail holds the `len` bytes that it announces.
    unsafe { ioctl::set_signal_mask(vcpu.as_raw_fd(), &raw const mask) }
        .map(drop)
        .map_err(ioctl_error(
            "KVM_SET_SIGNAL_MASK",
            "choose the signals that end KVM_RUN",
        ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_keeps_a_vcpu_from_entering_the_guest() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            return eprintln!("skipped: /dev/kvm does not open");
        };
        let vm = kvm.create_vm().unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        let flag = ImmediateExit::of(&vcpu).unwrap();
        set_run_signal_mask(&vcpu, 0).unwrap();
        flag.set(true);
        assert_eq!(vcpu.get_kvm_run().immediate_exit, 1);
        let error = vcpu.run().unwrap_err();
        assert_eq!(error.errno(), libc::EINTR);
        flag.set(false);
        assert_eq!(vcpu.get_kvm_run().immediate_exit, 0);
        drop(vcpu);
        flag.set(true);
    }
}
