//! A vCPU's TSC offset (`KVM_VCPU_TSC_CTRL`, Linux 5.16): guest TSC = scaled host TSC + offset.
//!
//! Equal offsets on all vCPUs keep KVM's master clock; writing `IA32_TSC` per vCPU loses it.

use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr};
use kvm_ioctls::VcpuFd;

use super::{KvmError, ioctl, ioctl_error};

/// This CPU's TSC, now: half the price of a look at the clock.
#[inline]
pub fn host_tsc() -> u64 {
    // SAFETY: RDTSC touches no memory. It faults only if CR4.TSD is set, which Linux does on request of the process
    // alone (PR_SET_TSC), and this process never asks for it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

fn offset_attr(addr: u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr,
    }
}

/// Whether this KVM shows the offset.
pub fn has_tsc_offset(vcpu: &VcpuFd) -> bool {
    // SAFETY: the descriptor is a vCPU's, the structure is a live local, and the kernel does not follow `addr` here.
    unsafe { ioctl::has_device_attr(vcpu.as_raw_fd(), &offset_attr(0)) }.is_ok()
}

/// The vCPU's TSC offset in guest ticks; two's complement, as the kernel keeps it.
///
/// # Errors
/// If KVM is older than Linux 5.16.
pub fn tsc_offset(vcpu: &VcpuFd) -> Result<u64, KvmError> {
    let mut offset: u64 = 0;
    let attr = offset_attr((&raw mut offset).expose_provenance() as u64);
    // SAFETY: the descriptor is a vCPU's, and `attr.addr` points to a live local of the size of this attribute, a u64
    // (kvm_arch_tsc_get_attr), that nothing else refers to.
    unsafe { ioctl::get_device_attr(vcpu.as_raw_fd(), &attr) }.map_err(ioctl_error(
        "KVM_GET_DEVICE_ATTR",
        "read a vCPU's TSC offset",
    ))?;
    // SAFETY: a live, aligned, initialised local; the kernel has written it behind the compiler's back.
    Ok(unsafe { (&raw const offset).read_volatile() })
}

/// Sets the vCPU's TSC offset.
///
/// # Errors
/// If KVM is older than Linux 5.16.
pub fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> Result<(), KvmError> {
    let attr = offset_attr((&raw const offset).expose_provenance() as u64);
    // SAFETY: the descriptor is a vCPU's, and `attr.addr` points to a live local that the kernel reads 8 bytes from.
    unsafe { ioctl::set_device_attr(vcpu.as_raw_fd(), &attr) }
        .map_err(ioctl_error(
            "KVM_SET_DEVICE_ATTR",
            "set a vCPU's TSC offset",
        ))
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_reads_back_as_it_was_set() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            return eprintln!("skipped: /dev/kvm does not open");
        };
        let vm = kvm.create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        if !has_tsc_offset(&vcpu) {
            return eprintln!("skipped: no KVM_VCPU_TSC_CTRL");
        }
        // KVM starts a guest's TSC near 0, so the offset of a fresh vCPU is a large negative number.
        let fresh = tsc_offset(&vcpu).unwrap();
        if fresh == 0 {
            return eprintln!("skipped: this KVM does not offset the TSC");
        }
        let offset = fresh.wrapping_sub(1_000_000);
        set_tsc_offset(&vcpu, offset).unwrap();
        assert_eq!(tsc_offset(&vcpu).unwrap(), offset);
    }
}
