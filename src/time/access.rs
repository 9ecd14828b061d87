//! Access to a VM's clocks in KVM; each ioctl runs on the thread that may make it.

use kvm_ioctls::VcpuFd;

use super::error::TimeError;
use crate::kvm::{KvmError, msr};
use crate::units::{Msr, VpIndex};
use crate::vcpu::set::Vcpus;

/// IA32_TIME_STAMP_COUNTER.
pub(super) const IA32_TSC: Msr = Msr(0x10);
/// MSR_KVM_SYSTEM_TIME_NEW: the address of the guest's kvmclock; bit 0 enables it.
pub(super) const KVM_SYSTEM_TIME: Msr = Msr(0x4b56_4d01);
/// The boot vCPU.
pub(super) const BOOT: VpIndex = VpIndex(0);

/// Runs `work` on a vCPU's thread; `doing` names the step in an error.
pub(super) fn on_vcpu<R: Send + 'static>(
    vcpus: &Vcpus,
    vp: VpIndex,
    doing: &'static str,
    work: impl FnOnce(&mut VcpuFd) -> Result<R, KvmError> + Send + 'static,
) -> Result<R, TimeError> {
    vcpus
        .on_vcpu(vp, work)?
        .map_err(|source| TimeError::Vcpu { doing, vp, source })
}

/// Reads an MSR of a vCPU; `None` if it does not exist.
pub(super) fn get_msr(vcpus: &Vcpus, vp: VpIndex, which: Msr) -> Result<Option<u64>, TimeError> {
    on_vcpu(vcpus, vp, "read a register", move |fd| msr::get(fd, which))
}

/// Sets an MSR of a vCPU.
pub(super) fn set_msr(vcpus: &Vcpus, vp: VpIndex, which: Msr, value: u64) -> Result<(), TimeError> {
    let set = on_vcpu(vcpus, vp, "set a register", move |fd| {
        msr::set(fd, which, value)
    })?;
    let msr = which;
    set.then_some(()).ok_or(TimeError::Msr { vp, msr, value })
}
