//! MSRs that belong to the processor's description: what a firmware or KVM's feature MSRs decide once.

use thiserror::Error;

use super::CpuidEntry;
use super::feature as f;
use crate::cpuid::CpuModel;
use crate::cpuid::CpuVendor;
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

/// A feature MSR whose promised value KVM cannot give.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}: the guest was shown {promised:#x}, this host has {}", describe(*.msr), .host.map_or("none".to_owned(), |v| format!("{v:#x}")))]
pub struct MsrLack {
    /// Which one.
    pub msr: Msr,
    /// In the guest.
    pub promised: u64,
    /// Here.
    pub host: Option<u64>,
}

fn describe(msr: Msr) -> String {
    let name = match msr.0 {
        0x10a => "IA32_ARCH_CAPABILITIES",
        0x480 => "IA32_VMX_BASIC",
        0x485 => "IA32_VMX_MISC",
        0x486 => "IA32_VMX_CR0_FIXED0",
        0x488 => "IA32_VMX_CR4_FIXED0",
        0x48b => "IA32_VMX_PROCBASED_CTLS2",
        0x48c => "IA32_VMX_EPT_VPID_CAP",
        0x48d => "IA32_VMX_TRUE_PINBASED_CTLS",
        0x48e => "IA32_VMX_TRUE_PROCBASED_CTLS",
        0x48f => "IA32_VMX_TRUE_EXIT_CTLS",
        0x490 => "IA32_VMX_TRUE_ENTRY_CTLS",
        0x491 => "IA32_VMX_VMFUNC",
        _ => return format!("feature MSR {msr}"),
    };
    format!("{name} ({msr})")
}

/// Which of `promised` KVM on a host with `host` cannot give (what vmx_restore_vmx_basic and its neighbours take).
pub fn lacks(promised: &[(Msr, u64)], host: &[(Msr, u64)]) -> Vec<MsrLack> {
    promised
        .iter()
        .filter_map(|&(msr, promised)| {
            let host = host
                .iter()
                .find(|(m, _)| *m == msr)
                .map(|(_, value)| *value);
            let given = host.is_some_and(|host| gives(msr, promised, host));
            // The microcode's revision is a number that KVM takes as it is.
            (!given && msr != IA32_BIOS_SIGN_ID).then_some(MsrLack {
                msr,
                promised,
                host,
            })
        })
        .collect()
}

/// Whether KVM with the value `host` of its own takes `promised` for a guest.
fn gives(msr: Msr, promised: u64, host: u64) -> bool {
    let within = |a: u64, b: u64| a & !b == 0;
    let field = |value: u64, first: u32, bits: u32| value >> first & ((1 << bits) - 1);
    match msr.0 {
        // The revision; a region at least as large; features (SDM vol. 3, A.1).
        0x480 => {
            field(promised, 0, 31) == field(host, 0, 31)
                && field(promised, 32, 13) >= field(host, 32, 13)
                && within(promised >> 48, host >> 48)
        }
        // The preemption timer's rate; features; numbers of CR3 targets and MSRs; MSEG's revision (A.6).
        0x485 => {
            const FEATURES: u64 = 1 << 5 | 0b111 << 6 | 1 << 14 | 1 << 15 | 0b111 << 28;
            field(promised, 0, 5) == field(host, 0, 5)
                && within(promised & FEATURES, host)
                && field(promised, 16, 9) <= field(host, 16, 9)
                && field(promised, 25, 3) <= field(host, 25, 3)
                && promised >> 32 == host >> 32
        }
        // Bits that must be 1 (A.7, A.8).
        0x486 | 0x488 => within(host, promised),
        // Low half: what must be 1. High half: what may be 1 (A.3).
        0x48b | 0x48d..=0x490 => {
            within(host & 0xffff_ffff, promised & 0xffff_ffff) && within(promised >> 32, host >> 32)
        }
        // The highest index of a VMCS field: KVM takes any.
        0x48a => true,
        // Features, or weaknesses that are not there.
        _ => within(promised, host),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_promised_value_must_be_within_what_kvm_has() {
        for (msr, promised, host, given) in [
            (0x10a, 0b0101, 0b1101, true),
            (0x10a, 0b0101, 0b1001, false),
            (0x48b, 0x00ff_0000_0000, 0x0fff_0000_0000, true),
            (0x48b, 0x1000_0000_0000, 0x0fff_0000_0000, false),
            (0x48d, 0x007f_0000_0016, 0x00ff_0000_0016, true),
            (0x48d, 0x007f_0000_0000, 0x00ff_0000_0016, false),
            (0x486, 0x8000_0021, 0x8000_0021, true),
            (0x486, 0x0000_0021, 0x8000_0021, false),
            (0x480, 0x00da_0400_11e5_7ed0, 0x00da_0400_11e5_7ed0, true),
            (0x480, 0x00da_0400_11e5_7ed1, 0x00da_0400_11e5_7ed0, false),
            (0x485, 0x2000_41e5, 0x2000_41e5, true),
            (0x485, 0x2000_41e4, 0x2000_41e5, false),
            (0x48a, 0x2e, 0x2c, true),
            (0x8b, 7, 8, true),
        ] {
            let msr = Msr(msr);
            let lacks = lacks(&[(msr, promised)], &[(msr, host)]);
            assert_eq!(lacks.is_empty(), given, "{msr} {promised:#x} {host:#x}");
        }
        assert!(lacks(&[(IA32_BIOS_SIGN_ID, 1)], &[]).is_empty());
        let lack = lacks(&[(Msr(0x491), 1)], &[]).remove(0).to_string();
        assert!(
            lack.contains("IA32_VMX_VMFUNC") && lack.contains("has none"),
            "{lack}"
        );
    }

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
