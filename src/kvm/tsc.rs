//! A vCPU's TSC: its frequency (`KVM_SET_TSC_KHZ`) and its offset (`KVM_VCPU_TSC_CTRL`, Linux 5.16).
//!
//! Guest TSC = scaled host TSC + offset. Equal frequencies and offsets on all vCPUs keep KVM's master clock;
//! writing `IA32_TSC` per vCPU loses it.

use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr};
use kvm_ioctls::{VcpuFd, VmFd};

use super::{KvmError, ioctl, ioctl_error};
use crate::units::TscKhz;

/// KVM treats a frequency as the host's own within this tolerance (`tsc_tolerance_ppm`, its module
/// parameter's default).
const TOLERANCE_PPM: u64 = 250;

/// Whether KVM runs a guest that asks for `guest` on a host with `host` without scaling (`kvm_set_tsc_khz`).
pub fn within_tolerance(guest: TscKhz, host: TscKhz) -> bool {
    let (guest, host) = (u64::from(guest.0), u64::from(host.0));
    let low = host * (1_000_000 - TOLERANCE_PPM) / 1_000_000;
    let high = host * (1_000_000 + TOLERANCE_PPM) / 1_000_000;
    (low..=high).contains(&guest)
}

/// This CPU's TSC, now: half the cost of reading the clock.
#[inline]
pub fn host_tsc() -> u64 {
    // SAFETY: RDTSC accesses no memory. It faults only if CR4.TSD is set, which Linux does only at the
    // request of the process (PR_SET_TSC), and this process never requests it.
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

/// Whether this KVM supports the offset.
pub fn has_tsc_offset(vcpu: &VcpuFd) -> bool {
    // SAFETY: the descriptor is a vCPU's, the structure is a live local, and the kernel does not follow
    // `addr` here.
    unsafe { ioctl::has_device_attr(vcpu.as_raw_fd(), &offset_attr(0)) }.is_ok()
}

/// The vCPU's TSC offset in guest ticks; two's complement, as the kernel keeps it.
///
/// # Errors
/// If KVM is older than Linux 5.16.
pub fn tsc_offset(vcpu: &VcpuFd) -> Result<u64, KvmError> {
    let mut offset: u64 = 0;
    let attr = offset_attr((&raw mut offset).expose_provenance() as u64);
    // SAFETY: the descriptor is a vCPU's, and `attr.addr` points to a live local of the size of this
    // attribute, a u64 (kvm_arch_tsc_get_attr), that nothing else refers to.
    unsafe { ioctl::get_device_attr(vcpu.as_raw_fd(), &attr) }.map_err(ioctl_error(
        "KVM_GET_DEVICE_ATTR",
        "read a vCPU's TSC offset",
    ))?;
    // SAFETY: a live, aligned, initialised local; the kernel has written it without the compiler's knowledge.
    Ok(unsafe { (&raw const offset).read_volatile() })
}

/// Sets the vCPU's TSC offset.
///
/// # Errors
/// If KVM is older than Linux 5.16.
pub fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> Result<(), KvmError> {
    let attr = offset_attr((&raw const offset).expose_provenance() as u64);
    // SAFETY: the descriptor is a vCPU's, and `attr.addr` points to a live local that the kernel reads 8
    // bytes from.
    unsafe { ioctl::set_device_attr(vcpu.as_raw_fd(), &attr) }
        .map_err(ioctl_error(
            "KVM_SET_DEVICE_ATTR",
            "set a vCPU's TSC offset",
        ))
        .map(drop)
}

/// The vCPU's frequency as set in KVM, which TSC_FREQUENCY shows to the guest.
///
/// # Errors
/// If the host's TSC is unstable.
pub fn khz(vcpu: &VcpuFd) -> Result<TscKhz, KvmError> {
    vcpu.get_tsc_khz().map(TscKhz).map_err(ioctl_error(
        "KVM_GET_TSC_KHZ",
        "read a vCPU's TSC frequency",
    ))
}

/// Sets the vCPU's frequency, at once. The offset stays, so the guest's TSC jumps; nothing else follows:
/// timers that count TSC ticks are not re-armed.
///
/// # Errors
/// If the host cannot scale to it.
pub fn set_khz(vcpu: &VcpuFd, khz: TscKhz) -> Result<(), KvmError> {
    vcpu.set_tsc_khz(khz.0)
        .map_err(ioctl_error("KVM_SET_TSC_KHZ", "set a vCPU's TSC frequency"))
}

/// The frequency with which the VM's vCPUs are created: in a new VM, the host's.
///
/// # Errors
/// If KVM is older than Linux 5.17.
pub fn vm_khz(vm: &VmFd) -> Result<TscKhz, KvmError> {
    // SAFETY: the descriptor is a VM's; the ioctl takes no argument.
    let khz = unsafe { ioctl::get_tsc_khz(vm.as_raw_fd()) }.map_err(ioctl_error(
        "KVM_GET_TSC_KHZ",
        "read the VM's TSC frequency",
    ))?;
    Ok(TscKhz(u32::try_from(khz).unwrap_or(0)))
}

/// Sets the frequency with which the VM's vCPUs are created from now on; KVM barely validates it.
///
/// # Errors
/// If KVM is older than Linux 5.17.
pub fn set_vm_khz(vm: &VmFd, khz: TscKhz) -> Result<(), KvmError> {
    // Above it KVM refuses anyway (`max_guest_tsc_khz`).
    let argument = i32::try_from(khz.0).unwrap_or(i32::MAX);
    // SAFETY: the descriptor is a VM's; the argument is a number.
    unsafe { ioctl::set_tsc_khz(vm.as_raw_fd(), argument) }
        .map_err(ioctl_error(
            "KVM_SET_TSC_KHZ",
            "set the frequency of the VM's TSC",
        ))
        .map(drop)
}

/// The frequency that the host's kernel has for its TSC now. On a host without an invariant TSC, KVM keeps
/// the frequency at the time when it was loaded (`kvm_timer_init`: `max_tsc_khz`, `cpu_tsc_khz`), which the
/// kernel may have refined since. The vCPU keeps its own.
///
/// # Errors
/// If the frequency is unknown to KVM.
pub fn kernel_khz(vcpu: &VcpuFd) -> Result<TscKhz, KvmError> {
    let own = khz(vcpu)?;
    // 0 means the kernel's `tsc_khz`.
    set_khz(vcpu, TscKhz(0))?;
    let current = khz(vcpu)?;
    if current != own {
        // Fails if KVM cannot run the vCPU at that frequency: then it could not before either.
        let _unchanged = set_khz(vcpu, own);
    }
    Ok(if current.0 == 0 { own } else { current })
}

/// The same for a VM without vCPUs.
///
/// # Errors
/// If KVM is older than Linux 5.17.
pub fn kernel_khz_of_vm(vm: &VmFd) -> Result<TscKhz, KvmError> {
    let own = vm_khz(vm)?;
    set_vm_khz(vm, TscKhz(0))?;
    let current = vm_khz(vm)?;
    if current != own {
        set_vm_khz(vm, own)?;
    }
    Ok(if current.0 == 0 { own } else { current })
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

    #[test]
    fn asking_for_the_kernels_frequency_changes_none() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            return eprintln!("skipped: /dev/kvm does not open");
        };
        let vm = kvm.create_vm().unwrap();
        let Ok(of_vm) = vm_khz(&vm) else {
            return eprintln!("skipped: no KVM_GET_TSC_KHZ for a VM");
        };
        let near = TscKhz(of_vm.0 + 1);
        set_vm_khz(&vm, near).unwrap();
        let kernel = kernel_khz_of_vm(&vm).unwrap();
        assert_eq!(vm_khz(&vm).unwrap(), near);
        let vcpu = vm.create_vcpu(0).unwrap();
        assert_eq!(kernel_khz(&vcpu).unwrap(), kernel);
        assert_eq!(khz(&vcpu).unwrap(), near);
    }

    #[test]
    fn a_new_vcpu_has_the_frequency_of_its_vm() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            return eprintln!("skipped: /dev/kvm does not open");
        };
        let vm = kvm.create_vm().unwrap();
        let Ok(of_vm) = vm_khz(&vm) else {
            return eprintln!("skipped: no KVM_GET_TSC_KHZ for a VM");
        };
        // A slightly higher frequency is within the range that KVM does not scale.
        let near = TscKhz(of_vm.0 + 1);
        set_vm_khz(&vm, near).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        assert_eq!(khz(&vcpu).unwrap(), near);
        set_khz(&vcpu, of_vm).unwrap();
        assert_eq!(khz(&vcpu).unwrap(), of_vm);
        assert_eq!(vm_khz(&vm).unwrap(), near);
    }
}
