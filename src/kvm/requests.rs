//! KVM's work before a guest entry, without the entry.
//!
//! KVM defers much work to the next entry (`vcpu_enter_guest`: writing the reference TSC page, for one). With
//! `immediate_exit` it returns before any of it; with a pending signal that only KVM_RUN unblocks, right
//! after it.

use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::ptr;

use kvm_bindings::kvm_signal_mask;
use kvm_ioctls::VcpuFd;
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::exit::{self, Exit};
use super::kick::KICK;
use super::{KvmError, ioctl, ioctl_error};

/// `kvm_signal_mask` with its flexible array member: the kernel's signal set has 64 bits.
#[repr(C)]
struct SignalMask {
    head: kvm_signal_mask,
    set: [u8; 8],
}

/// Makes KVM do the work that is pending for this vCPU's next guest entry. The guest does not run. On the
/// vCPU's own thread, with the vCPU's last exit completed, and while no other thread kicks it. Returns
/// `false` if KVM had another exit first, which the next KVM_RUN reports again; or if the vCPU is halted,
/// since KVM then defers all of it.
///
/// # Errors
/// If the signal mask cannot be set.
pub fn process(vcpu: &mut VcpuFd) -> Result<bool, KvmError> {
    const DOING: &str = "process KVM's requests for the next entry";
    let failed = |e: nix::Error| ioctl_error("KVM_SET_SIGNAL_MASK", DOING)(e);
    let mut kick = SigSet::empty();
    kick.add(KICK);
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&kick), Some(&mut before)).map_err(failed)?;
    let mut during = before;
    during.remove(KICK);
    let processed = mask_in_run(vcpu, Some(&during))
        .and_then(|()| pthread_kill(pthread_self(), KICK))
        .map(|()| {
            vcpu.set_kvm_immediate_exit(0);
            matches!(exit::run(vcpu), Exit::Interrupted)
        });
    take(&kick);
    let unmasked = mask_in_run(vcpu, None);
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None).map_err(failed)?;
    unmasked.map_err(failed)?;
    processed.map_err(failed)
}

/// Sets the thread's signal mask in KVM_RUN; `None`: the mask outside.
fn mask_in_run(vcpu: &VcpuFd, mask: Option<&SigSet>) -> nix::Result<()> {
    let mask = mask.map(|mask| SignalMask {
        head: kvm_signal_mask {
            len: 8,
            ..Default::default()
        },
        set: first_64(mask),
    });
    let argument = mask.as_ref().map_or(ptr::null(), ptr::from_ref).cast();
    // SAFETY: the descriptor is a vCPU's; the argument is null, or points to a live structure with as many
    // bytes behind its head as the head states.
    unsafe { ioctl::set_signal_mask(vcpu.as_raw_fd(), argument) }.map(drop)
}

/// The kernel's form of a signal set: bit n for signal n + 1.
fn first_64(set: &SigSet) -> [u8; 8] {
    let bits = set
        .iter()
        .fold(0u64, |bits, signal| bits | 1 << (signal as i32 - 1));
    bits.to_le_bytes()
}

/// Consumes the pending signal.
fn take(set: &SigSet) {
    let now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut info = MaybeUninit::uninit();
    // SAFETY: set and time are live; the kernel writes the third argument, which has room for what it writes.
    let _none_was_pending =
        unsafe { libc::sigtimedwait(set.as_ref(), info.as_mut_ptr(), ptr::from_ref(&now)) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::kick;

    #[test]
    fn signal_sets_are_written_as_the_kernel_reads_them() {
        let mut set = SigSet::empty();
        assert_eq!(first_64(&set), [0; 8]);
        set.add(nix::sys::signal::Signal::SIGHUP);
        set.add(KICK);
        // SIGHUP is 1, SIGUSR2 is 12.
        assert_eq!(first_64(&set), 0x801u64.to_le_bytes());
    }

    #[test]
    fn the_guest_does_not_run_and_the_mask_is_as_before() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            return eprintln!("skipped: /dev/kvm does not open");
        };
        kick::install_handler().unwrap();
        let vm = kvm.create_vm().unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        let rip = vcpu.get_regs().unwrap().rip;
        for _ in 0..3 {
            // Whether it is done depends on KVM (one that interprets the guest reports another exit first),
            // the rest does not.
            process(&mut vcpu).unwrap();
            assert_eq!(vcpu.get_regs().unwrap().rip, rip);
        }
        assert!(!SigSet::thread_get_mask().unwrap().contains(KICK));
    }
}
