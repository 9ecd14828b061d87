//! Single MSRs of a vCPU, and the MSR accesses that exit to user space.

use std::io;

use kvm_bindings::{
    KVM_MSR_FILTER_MAX_BITMAP_SIZE, KVM_MSR_FILTER_MAX_RANGES, Msrs, kvm_msr_entry,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};

use super::{KvmError, ioctl_error};
use crate::units::Msr;

/// `KVM_MSR_FILTER_MAX_BITMAP_SIZE` is in bytes; a bit is an MSR.
pub const MAX_MSRS_PER_RANGE: usize = KVM_MSR_FILTER_MAX_BITMAP_SIZE as usize * 8;

/// Consecutive MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrRange {
    /// The first MSR.
    pub first: Msr,
    /// The number of MSRs.
    pub count: u32,
}

/// Sends the guest's reads and writes of `ranges` to user space: KVM exits with reason
/// [`MsrExitReason::Filter`](kvm_ioctls::MsrExitReason) if [`super::cap::user_space_msrs`] enabled it. KVM
/// handles all other MSRs. Replaces an earlier filter. x2APIC MSRs cannot be filtered.
///
/// # Errors
/// If the ranges do not fit a filter, or KVM is older than Linux 5.10.
pub fn send_to_user_space(vm: &VmFd, ranges: &[MsrRange]) -> Result<(), KvmError> {
    let largest = ranges
        .iter()
        .map(|r| usize::try_from(r.count).unwrap_or(usize::MAX))
        .max()
        .unwrap_or(0);
    if ranges.len() > KVM_MSR_FILTER_MAX_RANGES as usize || largest > MAX_MSRS_PER_RANGE {
        return Err(KvmError::TooManyMsrs {
            ranges: ranges.len(),
            largest,
        });
    }
    // A clear bit denies.
    let denied = vec![0u8; largest.div_ceil(8)];
    let filter: Vec<_> = ranges
        .iter()
        .filter(|r| r.count > 0)
        .map(|r| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base: r.first.0,
            msr_count: r.count,
            bitmap: &denied,
        })
        .collect();
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &filter)
        .map_err(ioctl_error("KVM_X86_SET_MSR_FILTER", "set the MSR filter"))
}

fn one(msr: Msr, data: u64) -> io::Result<Msrs> {
    let entry = kvm_msr_entry {
        index: msr.0,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[entry]).map_err(|_| io::ErrorKind::OutOfMemory.into())
}

/// The value of `msr`; `None` if the vCPU has no such register. The access is the host's: filters do not
/// apply.
///
/// # Errors
/// If the ioctl fails.
pub fn get(vcpu: &VcpuFd, msr: Msr) -> Result<Option<u64>, KvmError> {
    let mut msrs = one(msr, 0).map_err(ioctl_error("KVM_GET_MSRS", "read a register"))?;
    let done = vcpu
        .get_msrs(&mut msrs)
        .map_err(ioctl_error("KVM_GET_MSRS", "read a register"))?;
    Ok((done == 1)
        .then(|| msrs.as_slice().first().map(|entry| entry.data))
        .flatten())
}

/// Sets `msr`. `false` if KVM refuses that value, or there is no such register.
///
/// # Errors
/// If the ioctl fails.
pub fn set(vcpu: &VcpuFd, msr: Msr, value: u64) -> Result<bool, KvmError> {
    let msrs = one(msr, value).map_err(ioctl_error("KVM_SET_MSRS", "set a register"))?;
    let done = vcpu
        .set_msrs(&msrs)
        .map_err(ioctl_error("KVM_SET_MSRS", "set a register"))?;
    Ok(done == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_beyond_kvms_limits_is_refused_with_the_limits() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            return eprintln!("skipped: /dev/kvm does not open");
        };
        let vm = kvm.create_vm().unwrap();
        let one = MsrRange {
            first: Msr(0x4000_0106),
            count: 3,
        };
        send_to_user_space(&vm, &[one; 16]).unwrap();
        send_to_user_space(&vm, &[]).unwrap();
        let many = send_to_user_space(&vm, &[one; 17]).unwrap_err();
        assert!(many.to_string().contains("17 MSR ranges"), "{many}");
        let large = MsrRange {
            first: Msr(0),
            count: u32::MAX,
        };
        let large = send_to_user_space(&vm, &[large]).unwrap_err();
        assert!(matches!(large, KvmError::TooManyMsrs { .. }));
    }

    #[test]
    fn single_registers_are_read_and_set() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            return eprintln!("skipped: /dev/kvm does not open");
        };
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let sysenter_cs = Msr(0x174);
        assert!(set(&vcpu, sysenter_cs, 0x10).unwrap());
        assert_eq!(get(&vcpu, sysenter_cs).unwrap(), Some(0x10));
        let none = Msr(0x4141_4141);
        assert_eq!(get(&vcpu, none).unwrap(), None);
        assert!(!set(&vcpu, none, 1).unwrap());
    }
}
