//! MSRs that belong to the processor's description: what a firmware or KVM's feature MSRs decide once.

use super::CpuidEntry;
use super::feature as f;
use crate::config::CpuModel;
use crate::hyperv::CpuVendor;
use crate::units::Msr;

/// Locked by the firmware, with what it allows.
pub const IA32_FEATURE_CONTROL: Msr = Msr(0x3a);
/// The microcode's revision.
pub const IA32_BIOS_SIGN_ID: Msr = Msr(0x8b);
/// Which of the processor's weaknesses are mended.
pub const IA32_ARCH_CAPABILITIES: Msr = Msr(0x10a);
/// Switches for processor features.
pub const IA32_MISC_ENABLE: Msr = Msr(0x1a0);

/// FEATURE_CONTROL: locked, VMXON allowed outside SMX (SDM vol. 3, "Enabling and Entering VMX Operation"). Hyper-V takes
/// anything else for virtualization switched off in the firmware.
const LOCKED_WITH_VMXON: u64 = 1 << 0 | 1 << 2;
/// MISC_ENABLE: fast strings; no branch trace, no PEBS. Linux distrusts REP MOVSB without the first.
const MISC_ENABLE: u64 = 1 << 0 | 1 << 11 | 1 << 12;

/// The VMX capability MSRs that user space may write (vmx_set_vmx_msr): KVM derives CR0_FIXED1, CR4_FIXED1 and the controls
/// that have a TRUE form.
const VMX_CAPABILITIES: [Msr; 12] = [
    Msr(0x480),
    Msr(0x485),
    Msr(0x486),
    Msr(0x488),
    Msr(0x48a),
    Msr(0x48b),
    Msr(0x48c),
    Msr(0x48d),
    Msr(0x48e),
    Msr(0x48f),
    Msr(0x490),
    Msr(0x491),
];

/// The feature MSRs to read from KVM (KVM_GET_MSRS on /dev/kvm) for [`feature_msrs`]; those that
/// KVM_GET_MSR_FEATURE_INDEX_LIST does not name are left out.
pub fn wanted() -> impl Iterator<Item = Msr> {
    [IA32_BIOS_SIGN_ID, IA32_ARCH_CAPABILITIES]
        .into_iter()
        .chain(VMX_CAPABILITIES)
}

/// What to write on every vCPU after KVM_SET_CPUID2 and before it runs. `guest` is its CPUID, `host` what KVM answered for
/// [`wanted`].
pub fn feature_msrs(
    guest: &[CpuidEntry],
    vendor: CpuVendor,
    model: CpuModel,
    host: &[(Msr, u64)],
) -> Vec<(Msr, u64)> {
    let of_host = |msr: Msr| host.iter().copied().find(|(m, _)| *m == msr);
    let mut msrs = Vec::new();
    if vendor == CpuVendor::Intel {
        msrs.push((IA32_MISC_ENABLE, MISC_ENABLE));
    }
    if f::VMX.is_in(guest) {
        msrs.extend(VMX_CAPABILITIES.into_iter().filter_map(of_host));
        msrs.push((IA32_FEATURE_CONTROL, LOCKED_WITH_VMXON));
    }
    if f::ARCH_CAPABILITIES.is_in(guest) {
        msrs.extend(of_host(IA32_ARCH_CAPABILITIES));
    }
    // A level's signature is another processor's, so the host's microcode means nothing.
    if model == CpuModel::Host {
        msrs.extend(of_host(IA32_BIOS_SIGN_ID));
    }
    msrs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(vmx: bool, arch_capabilities: bool) -> Vec<CpuidEntry> {
        let mut entries = [1, 7].map(|function| CpuidEntry {
            function,
            ..CpuidEntry::default()
        });
        f::VMX.set(&mut entries, vmx);
        f::ARCH_CAPABILITIES.set(&mut entries, arch_capabilities);
        entries.to_vec()
    }

    #[test]
    fn vmx_comes_with_a_locked_feature_control() {
        let host = [(Msr(0x480), 7), (Msr(0x10a), 8), (Msr(0x8b), 9)];
        assert_eq!(
            feature_msrs(&guest(true, true), CpuVendor::Intel, CpuModel::Host, &host),
            [
                (Msr(0x1a0), 0x1801),
                (Msr(0x480), 7),
                (Msr(0x3a), 5),
                (Msr(0x10a), 8),
                (Msr(0x8b), 9)
            ]
        );
        assert_eq!(
            feature_msrs(
                &guest(false, false),
                CpuVendor::Intel,
                CpuModel::X86_64V3,
                &host
            ),
            [(Msr(0x1a0), 0x1801)]
        );
        assert_eq!(
            feature_msrs(&guest(false, false), CpuVendor::Amd, CpuModel::Host, &host),
            [(Msr(0x8b), 9)]
        );
    }
}
