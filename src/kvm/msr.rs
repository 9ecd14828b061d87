//! Which MSR accesses come to user space.

use kvm_bindings::{KVM_MSR_FILTER_MAX_BITMAP_SIZE, KVM_MSR_FILTER_MAX_RANGES};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

use super::{KvmError, ioctl_error};
use crate::units::Msr;

/// `KVM_MSR_FILTER_MAX_BITMAP_SIZE` is in bytes; a bit is an MSR.
pub const MAX_MSRS_PER_RANGE: usize = KVM_MSR_FILTER_MAX_BITMAP_SIZE as usize * 8;

/// Consecutive MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrRange {
    /// The first.
    pub first: Msr,
    /// How many.
    pub count: u32,
}

/// The guest's reads and writes of `ranges` are denied to KVM, which then exits with reason
/// [`MsrExitReason::Filter`](kvm_ioctls::MsrExitReason) where [`super::cap::user_space_msrs`] asked for it. All other MSRs
/// stay KVM's. Replaces an earlier filter. x2APIC MSRs cannot be filtered.
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
        .map_err(ioctl_error(
            "KVM_X86_SET_MSR_FILTER",
            "take MSRs over from KVM",
        ))
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
}
