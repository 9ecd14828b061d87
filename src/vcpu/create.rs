//! The initial state of a vCPU, in the order that KVM requires.

use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use thiserror::Error;

use crate::boot::Entry;
use crate::kvm::KvmError;
use crate::units::{Msr, VpIndex};

/// IA32_MTRR_DEF_TYPE (Intel SDM vol. 3, 12.11.2.1): MTRRs enabled, default type write-back, as firmware
/// leaves it. Without it Linux treats all memory as uncacheable.
const MTRR_DEF_TYPE: (Msr, u64) = (Msr(0x2ff), 1 << 11 | 6);

/// Local APIC register offsets and delivery modes (Intel SDM vol. 3, 11.5.1), as firmware programs them for
/// virtual wire mode.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVERY_EXTINT: u32 = 0b111 << 8;
const DELIVERY_NMI: u32 = 0b100 << 8;

/// Why a vCPU could not be brought into its initial state.
#[derive(Debug, Error)]
pub enum CreateError {
    /// An ioctl failed.
    #[error("cannot set up vCPU {vp}: {ioctl} failed")]
    Ioctl {
        /// Which vCPU.
        vp: VpIndex,
        /// The ioctl's name.
        ioctl: &'static str,
        /// The kernel's error.
        source: kvm_ioctls::Error,
    },
    /// One of our own KVM wrappers failed.
    #[error("cannot set up vCPU {vp}")]
    Kvm {
        /// Which vCPU.
        vp: VpIndex,
        /// The cause.
        source: KvmError,
    },
    /// KVM refused an MSR.
    #[error("cannot set up vCPU {vp}: KVM refuses the value {value:#x} for MSR {msr}")]
    Msr {
        /// Which vCPU.
        vp: VpIndex,
        /// The MSR.
        msr: Msr,
        /// The value.
        value: u64,
    },
    /// KVM does not give an MSR.
    #[error("KVM does not let MSR {msr} of vCPU {vp} be read")]
    NoMsr {
        /// Which vCPU.
        vp: VpIndex,
        /// The MSR.
        msr: Msr,
    },
    /// KVM enabled another eVMCS version than it had reported.
    #[error(
        "cannot set up vCPU {vp}: KVM enabled eVMCS version {got:#x} where it had offered {version:#x}"
    )]
    Evmcs {
        /// Which vCPU.
        vp: VpIndex,
        /// The version reported to the guest.
        version: u16,
        /// The version that KVM enabled.
        got: u16,
    },
    /// More entries than an ioctl takes.
    #[error("cannot set up vCPU {vp}: {what} has too many entries")]
    TooMany {
        /// Which vCPU.
        vp: VpIndex,
        /// The list.
        what: &'static str,
    },
}

/// Makes an error of a failed ioctl of vCPU `vp`.
pub(crate) fn ioctl_failed(
    vp: VpIndex,
    ioctl: &'static str,
) -> impl FnOnce(kvm_ioctls::Error) -> CreateError {
    move |source| CreateError::Ioctl { vp, ioctl, source }
}

/// KVM_SET_CPUID2. After the capabilities that change how KVM interprets it (eVMCS, enforcement), before
/// any MSR.
///
/// # Errors
/// If KVM refuses.
pub fn set_cpuid(
    vp: VpIndex,
    fd: &VcpuFd,
    entries: &[kvm_cpuid_entry2],
) -> Result<(), CreateError> {
    let cpuid =
        CpuId::from_entries(entries).map_err(|_| CreateError::TooMany { vp, what: "CPUID" })?;
    fd.set_cpuid2(&cpuid)
        .map_err(ioctl_failed(vp, "KVM_SET_CPUID2"))
}

/// KVM_SET_MSRS for all values at once.
///
/// # Errors
/// If KVM refuses one; the error names it.
pub fn set_msrs(vp: VpIndex, fd: &VcpuFd, values: &[(Msr, u64)]) -> Result<(), CreateError> {
    let entries: Vec<_> = values
        .iter()
        .map(|&(msr, data)| kvm_msr_entry {
            index: msr.0,
            data,
            ..Default::default()
        })
        .collect();
    let msrs =
        Msrs::from_entries(&entries).map_err(|_| CreateError::TooMany { vp, what: "MSRs" })?;
    let done = fd
        .set_msrs(&msrs)
        .map_err(ioctl_failed(vp, "KVM_SET_MSRS"))?;
    // KVM stops at the first MSR that it refuses.
    match values.get(done) {
        Some(&(msr, value)) => Err(CreateError::Msr { vp, msr, value }),
        None => Ok(()),
    }
}

/// KVM_GET_MSRS for exactly these MSRs.
///
/// # Errors
/// If KVM refuses one; the error names it.
pub fn get_msrs<const N: usize>(
    vp: VpIndex,
    fd: &VcpuFd,
    which: &[Msr; N],
) -> Result<[u64; N], CreateError> {
    let entries = which.map(|msr| kvm_msr_entry {
        index: msr.0,
        ..Default::default()
    });
    let mut msrs =
        Msrs::from_entries(&entries).map_err(|_| CreateError::TooMany { vp, what: "MSRs" })?;
    let done = fd
        .get_msrs(&mut msrs)
        .map_err(ioctl_failed(vp, "KVM_GET_MSRS"))?;
    if let Some(&msr) = which.get(done) {
        return Err(CreateError::NoMsr { vp, msr });
    }
    let mut values = [0; N];
    for (value, entry) in values.iter_mut().zip(msrs.as_slice()) {
        *value = entry.data;
    }
    Ok(values)
}

/// Sets what firmware sets on every processor: MTRRs on, LINT0 and LINT1 wired.
///
/// # Errors
/// If KVM refuses.
pub fn set_firmware_state(vp: VpIndex, fd: &VcpuFd) -> Result<(), CreateError> {
    set_msrs(vp, fd, &[MTRR_DEF_TYPE])?;
    let mut lapic = fd.get_lapic().map_err(ioctl_failed(vp, "KVM_GET_LAPIC"))?;
    for (offset, value) in [(LVT_LINT0, DELIVERY_EXTINT), (LVT_LINT1, DELIVERY_NMI)] {
        for (register, byte) in lapic.regs[offset..offset + 4]
            .iter_mut()
            .zip(value.to_le_bytes())
        {
            *register = byte.cast_signed();
        }
    }
    fd.set_lapic(&lapic)
        .map_err(ioctl_failed(vp, "KVM_SET_LAPIC"))
}

/// The boot vCPU's registers.
///
/// # Errors
/// If KVM refuses.
pub fn set_entry(vp: VpIndex, fd: &VcpuFd, entry: &Entry) -> Result<(), CreateError> {
    let reset = fd.get_sregs().map_err(ioctl_failed(vp, "KVM_GET_SREGS"))?;
    fd.set_sregs(&entry.sregs(&reset))
        .map_err(ioctl_failed(vp, "KVM_SET_SREGS"))?;
    fd.set_regs(&entry.regs())
        .map_err(ioctl_failed(vp, "KVM_SET_REGS"))
}
