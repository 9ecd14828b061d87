//! KVM's own PIT.

use std::os::fd::AsRawFd as _;

use kvm_bindings::kvm_reinject_control;
use kvm_ioctls::VmFd;

use super::{KvmError, ioctl, ioctl_error};

/// Makes the PIT of `vm` drop ticks that the guest has missed, instead of delivering them later.
///
/// # Errors
/// If the VM has no PIT in KVM.
pub fn do_not_reinject(vm: &VmFd) -> Result<(), KvmError> {
    let control = kvm_reinject_control::default();
    // SAFETY: the descriptor is a VM's, and the kernel reads a kvm_reinject_control from the live local that
    // the pointer refers to.
    unsafe { ioctl::reinject_control(vm.as_raw_fd(), &control) }
        .map_err(ioctl_error(
            "KVM_REINJECT_CONTROL",
            "disable the PIT's re-injection",
        ))
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn re_injection_is_switched_off_where_there_is_a_pit() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            return eprintln!("skipped: /dev/kvm does not open");
        };
        let vm = kvm.create_vm().unwrap();
        assert!(do_not_reinject(&vm).is_err());
        vm.create_irq_chip().unwrap();
        vm.create_pit2(Default::default()).unwrap();
        do_not_reinject(&vm).unwrap();
    }
}
