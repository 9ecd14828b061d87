//! Makes a vCPU leave KVM_RUN from another thread, without a race.

use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::raw::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Interrupts KVM_RUN. SIGUSR2 has no other use in hypernest (SIGUSR1 requests statistics).
pub(super) const KICK: Signal = Signal::SIGUSR2;

/// The size of the mapping: `immediate_exit` is in the first page of `kvm_run`.
const PAGE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Makes the kick signal interrupt system calls instead of killing the process. Once per process, before any
/// [`Kicker`].
///
/// # Errors
/// If sigaction fails.
pub fn install_handler() -> nix::Result<()> {
    extern "C" fn interrupt(_signal: std::os::raw::c_int) {}
    // No SA_RESTART: KVM_RUN must return EINTR.
    let action = SigAction::new(
        SigHandler::Handler(interrupt),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing, so it is async-signal-safe.
    unsafe { sigaction(KICK, &action) }?;
    Ok(())
}

/// A second view of one vCPU's `immediate_exit`, and the thread that runs it.
#[derive(Debug)]
pub struct Kicker {
    page: NonNull<c_void>,
    thread: Pthread,
}

// SAFETY: the page is only accessed through an atomic, and a pthread id may be used from any thread.
unsafe impl Send for Kicker {}
// SAFETY: as for Send.
unsafe impl Sync for Kicker {}

impl Kicker {
    /// For the vCPU that the calling thread runs. It must be dropped before that thread ends.
    ///
    /// # Errors
    /// If the `kvm_run` page cannot be mapped.
    pub fn for_this_thread(vcpu: &VcpuFd) -> nix::Result<Self> {
        // SAFETY: the descriptor is open as long as `vcpu` is borrowed, which is longer than this call.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        // SAFETY: a fresh shared mapping of a kernel-owned page at an address that the kernel chooses.
        let page = unsafe {
            mmap(
                None,
                PAGE,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                fd,
                0,
            )
        }?;
        Ok(Self {
            page,
            thread: pthread_self(),
        })
    }

    /// Makes the current or the next KVM_RUN return at once. Stays in force until [`Kicker::clear`].
    pub fn kick(&self) {
        // The flag first: if the signal arrives before KVM_RUN is entered, KVM sees the flag there
        // (kvm_arch_vcpu_ioctl_run).
        self.immediate_exit().store(1, Ordering::SeqCst);
        // In a process that is shutting down the thread may have ended; then there is nothing to interrupt.
        let _gone = pthread_kill(self.thread, KICK);
    }

    /// Makes the next KVM_RUN of the calling thread, which runs this vCPU, return before it enters the guest.
    /// Stays in force until [`Kicker::clear`].
    pub fn hold(&self) {
        self.immediate_exit().store(1, Ordering::SeqCst);
    }

    /// Lets KVM_RUN run again. Called by the vCPU thread before it reads the requests behind the kick.
    pub fn clear(&self) {
        self.immediate_exit().store(0, Ordering::SeqCst);
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        let offset = std::mem::offset_of!(kvm_run, immediate_exit);
        // SAFETY: the offset is inside the mapped page.
        let byte = unsafe { self.page.cast::<u8>().add(offset) };
        // SAFETY: the byte is mapped as long as self lives; the kernel and kvm-ioctls treat it as a plain
        // flag byte, and an AtomicU8 has the layout of u8.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }
    }
}

impl Drop for Kicker {
    fn drop(&mut self) {
        // SAFETY: this object mapped the page with this length, and no reference to it is left.
        let _unmapped = unsafe { munmap(self.page, PAGE.get()) };
    }
}
