//! The Hyper-V leaves that KVM supports.

use std::os::fd::{AsRawFd, RawFd};

use kvm_bindings::{CpuId, KVM_CAP_SYS_HYPERV_CPUID, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Kvm, VcpuFd};
use nix::errno::Errno;

use super::{KvmError, ioctl, ioctl_error};

/// KVM writes ten leaves today; it returns `E2BIG` if there is no room for all.
const FIRST_TRY: usize = 16;

/// The Hyper-V leaves 0x40000000.. that this host's KVM supports, read from the system
/// (`KVM_GET_SUPPORTED_HV_CPUID` with `KVM_CAP_SYS_HYPERV_CPUID`). `None` if KVM needs a vCPU for them, or
/// has no Hyper-V support: the older form needs [`vcpu_supported_hv_cpuid`].
///
/// # Errors
/// If KVM offers the ioctl, but it fails.
pub fn supported_hv_cpuid(kvm: &Kvm) -> Result<Option<Vec<kvm_cpuid_entry2>>, KvmError> {
    if kvm.check_extension_raw(KVM_CAP_SYS_HYPERV_CPUID.into()) <= 0 {
        return Ok(None);
    }
    hv_cpuid(kvm.as_raw_fd()).map(Some)
}

/// The same, read from a vCPU: the only form before Linux 5.11. It includes eVMCS only after
/// [`super::cap::enable_evmcs`] on that vCPU, and features that need a local APIC only if the vCPU has one in
/// the kernel.
///
/// # Errors
/// If KVM does not have `KVM_CAP_HYPERV_CPUID`, or fails.
pub fn vcpu_supported_hv_cpuid(vcpu: &VcpuFd) -> Result<Vec<kvm_cpuid_entry2>, KvmError> {
    hv_cpuid(vcpu.as_raw_fd())
}

fn hv_cpuid(fd: RawFd) -> Result<Vec<kvm_cpuid_entry2>, KvmError> {
    let mut room = FIRST_TRY;
    loop {
        // `room` stays within KVM_MAX_CPUID_ENTRIES, the limit of the type.
        let mut leaves = CpuId::new(room).expect("room for CPUID entries within the limit");
        // SAFETY: `fd` is an open KVM or vCPU descriptor, and `leaves` is a kvm_cpuid2 whose `nent` is the
        // number of entries it has room for; the kernel writes no more than that.
        let done = unsafe { ioctl::get_supported_hv_cpuid(fd, leaves.as_mut_fam_struct_ptr()) };
        match done {
            Ok(_) => return Ok(leaves.as_slice().to_vec()),
            Err(Errno::E2BIG) if room < KVM_MAX_CPUID_ENTRIES => {
                room = (room * 2).min(KVM_MAX_CPUID_ENTRIES);
            }
            Err(errno) => {
                return Err(ioctl_error(
                    "KVM_GET_SUPPORTED_HV_CPUID",
                    "read the Hyper-V leaves that KVM supports",
                )(errno));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kvm_with_hyperv_gives_its_interface_leaf() {
        let Ok(kvm) = Kvm::new() else {
            return eprintln!("skipped: /dev/kvm does not open");
        };
        let Some(leaves) = supported_hv_cpuid(&kvm).unwrap() else {
            return eprintln!("skipped: no KVM_CAP_SYS_HYPERV_CPUID");
        };
        assert!(
            leaves
                .iter()
                .any(|l| l.function == 0x4000_0001 && l.eax == 0x3123_7648)
        );
    }
}
