//! MSRs that are part of the processor's description: set once by firmware, or fixed by KVM's feature MSRs.

use thiserror::Error;

use super::CpuidEntry;
use super::feature::{self as f, Feature};
use super::msr_feature::{self, MsrFeature, is_control};
use crate::cpuid::CpuModel;
use crate::cpuid::CpuVendor;
use crate::units::Msr;

/// The firmware's settings, with a lock bit.
pub const IA32_FEATURE_CONTROL: Msr = Msr(0x3a);
/// The microcode's revision.
pub const IA32_BIOS_SIGN_ID: Msr = Msr(0x8b);
/// The processor's vulnerabilities that are fixed in hardware.
pub const IA32_ARCH_CAPABILITIES: Msr = Msr(0x10a);
/// Switches for processor features.
pub const IA32_MISC_ENABLE: Msr = Msr(0x1a0);

/// FEATURE_CONTROL: locked, VMXON allowed outside SMX (SDM vol. 3, "Enabling and Entering VMX Operation").
/// Hyper-V treats any other value as virtualization disabled by the firmware.
const LOCKED_WITH_VMXON: u64 = 1 << 0 | 1 << 2;
/// MISC_ENABLE: fast strings; no branch trace, no PEBS. Linux distrusts REP MOVSB without the first.
const MISC_ENABLE: u64 = 1 << 0 | 1 << 11 | 1 << 12;

/// The VMX capability MSRs that user space may write (vmx_set_vmx_msr): KVM derives CR0_FIXED1, CR4_FIXED1
/// and the controls that have a TRUE form.
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

/// The feature MSRs to read from KVM (KVM_GET_MSRS on /dev/kvm) for [`feature_msrs`]; those missing in
/// KVM_GET_MSR_FEATURE_INDEX_LIST are skipped.
pub fn wanted() -> impl Iterator<Item = Msr> {
    [IA32_BIOS_SIGN_ID, IA32_ARCH_CAPABILITIES]
        .into_iter()
        .chain(VMX_CAPABILITIES)
}

/// The MSR writes for every vCPU after KVM_SET_CPUID2 and before it runs. `guest` is its CPUID, `host`
/// KVM's values of [`wanted`].
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
    // A level has another processor's signature, so the host's microcode revision would be meaningless.
    if model == CpuModel::Host {
        msrs.extend(of_host(IA32_BIOS_SIGN_ID));
    }
    msrs
}

/// MSRs that a guest has only with one of some features: the first, the last, the features. KVM denies them
/// to other guests (kvm_get_msr_common, kvm_set_msr_common, vmx_get_msr, svm_get_msr and their neighbours),
/// and their values then belong to the host.
const GATED: [(u32, u32, &[Feature]); 14] = [
    (
        0x48,
        0x48,
        &[
            f::SPEC_CTRL,
            f::STIBP,
            f::SSBD,
            f::AMD_IBRS,
            f::AMD_STIBP,
            f::AMD_SSBD,
        ],
    ),
    (0xe1, 0xe1, &[f::WAITPKG]),
    (
        IA32_ARCH_CAPABILITIES.0,
        IA32_ARCH_CAPABILITIES.0,
        &[f::ARCH_CAPABILITIES],
    ),
    // TSX_CTRL: a bit of ARCH_CAPABILITIES reports it.
    (0x122, 0x122, &[f::ARCH_CAPABILITIES]),
    (0x1c4, 0x1c5, &[f::XFD]),
    // PERF_CAPABILITIES.
    (0x345, 0x345, &[f::PDCM]),
    // Intel PT.
    (0x560, 0x58f, &[f::INTEL_PT]),
    // CET.
    (0x6a0, 0x6a8, &[f::SHSTK, f::IBT]),
    // BNDCFGS.
    (0xd90, 0xd90, &[f::MPX]),
    (0xda0, 0xda0, &[f::XSAVES]),
    // TSC_AUX.
    (0xc000_0103, 0xc000_0103, &[f::RDTSCP, f::RDPID]),
    (0xc000_0104, 0xc000_0104, &[f::TSC_SCALE]),
    (0xc000_0300, 0xc000_0303, &[f::PERFMON_V2]),
    (0xc001_011f, 0xc001_011f, &[f::VIRT_SSBD]),
];

/// Whether a guest with this CPUID has `msr`, as far as CPUID decides that.
pub fn is_visible(guest: &[CpuidEntry], msr: Msr) -> bool {
    let gate = GATED
        .iter()
        .find(|(first, last, _)| (*first..=*last).contains(&msr.0));
    gate.is_none_or(|(.., features)| features.iter().any(|feature| feature.is_in(guest)))
}

/// A feature MSR whose promised value KVM cannot provide.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{}{}: the guest was shown {promised:#x}, this host has {}",
    self.missing(), describe(*.msr), .host.map_or("none".to_owned(), |v| format!("{v:#x}"))
)]
pub struct MsrLack {
    /// The MSR.
    pub msr: Msr,
    /// The guest's value.
    pub promised: u64,
    /// This host's value.
    pub host: Option<u64>,
}

impl MsrLack {
    /// The features with a name that the guest was shown and this host lacks.
    pub fn features(&self) -> impl Iterator<Item = MsrFeature> + use<> {
        let (msr, missing) = (self.msr, self.promised & !self.host.unwrap_or(0));
        let bits = (0..64).filter(move |bit| missing >> bit & 1 != 0);
        bits.filter_map(move |bit| msr_feature::at(msr, bit))
    }

    /// The names of the missing features, and of controls that this host cannot disable.
    fn missing(&self) -> String {
        let mut names: Vec<_> = self.features().map(|f| f.name.to_owned()).collect();
        if is_control(self.msr) {
            let forced = self.host.unwrap_or(0) & !self.promised;
            for bit in (0..32).filter(|bit| forced >> bit & 1 != 0) {
                let name = msr_feature::at(self.msr, bit + 32);
                let name = name.map_or(format!("control {bit}"), |f| f.name.to_owned());
                names.push(format!("a guest without {name}"));
            }
        }
        match names.is_empty() {
            true => String::new(),
            false => format!("{}; ", names.join(", ")),
        }
    }
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

/// Returns the MSRs of `promised` that KVM on a host with `host` cannot provide (by vmx_restore_vmx_basic
/// and its neighbours).
pub fn lacks(promised: &[(Msr, u64)], host: &[(Msr, u64)]) -> Vec<MsrLack> {
    promised
        .iter()
        .filter_map(|&(msr, promised)| {
            let host = host
                .iter()
                .find(|(m, _)| *m == msr)
                .map(|(_, value)| *value);
            let given = host.is_some_and(|host| gives(msr, promised, host));
            // The microcode's revision is a number that KVM accepts unchecked.
            (!given && msr != IA32_BIOS_SIGN_ID).then_some(MsrLack {
                msr,
                promised,
                host,
            })
        })
        .collect()
}

/// Whether KVM with its own value `host` accepts `promised` for a guest.
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
        // Low half: controls that must be 1. High half: controls that may be 1 (A.3).
        _ if is_control(msr) => {
            within(host & 0xffff_ffff, promised & 0xffff_ffff) && within(promised >> 32, host >> 32)
        }
        // The highest index of a VMCS field: KVM accepts any.
        0x48a => true,
        // Features, or vulnerabilities that the processor does not have.
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

    #[test]
    fn a_missing_feature_is_named_before_the_raw_values() {
        for (msr, promised, host, expected) in [
            (
                0x48b,
                0x0213_7bff_0000_0000,
                Some(0x0213_7b5f_0000_0000),
                "vmx-vpid, vmx-unrestricted-guest; IA32_VMX_PROCBASED_CTLS2 (0x48b): the guest was shown \
                 0x2137bff00000000, this host has 0x2137b5f00000000",
            ),
            (
                0x48d,
                0x007f_0000_0016,
                Some(0x007f_0000_0056),
                "a guest without vmx-preemption-timer; IA32_VMX_TRUE_PINBASED_CTLS (0x48d)",
            ),
            (
                0x491,
                1,
                None,
                "vmx-eptp-switching; IA32_VMX_VMFUNC (0x491): the guest was shown 0x1, this host has none",
            ),
            (
                0x48c,
                0x0f01_0633_4141,
                Some(0x0633_4141),
                "vmx-invvpid, vmx-invvpid-single-addr, ",
            ),
            (0x10a, 1 << 26, Some(0), "gds-no; IA32_ARCH_CAPABILITIES"),
            (
                0x486,
                0x21,
                Some(0x8000_0021),
                "IA32_VMX_CR0_FIXED0 (0x486)",
            ),
        ] {
            let lack = MsrLack {
                msr: Msr(msr),
                promised,
                host,
            };
            let said = lack.to_string();
            assert!(said.starts_with(expected), "{said}");
        }
    }

    #[test]
    fn an_msr_is_visible_with_one_of_its_features() {
        let with = guest(true, true);
        assert!(is_visible(&with, IA32_ARCH_CAPABILITIES));
        let without = guest(true, false);
        assert!(!is_visible(&without, IA32_ARCH_CAPABILITIES));
        assert!(!is_visible(&without, Msr(0xda0)));
        // CPUID does not report SYSENTER_CS or DEBUGCTL.
        assert!(is_visible(&without, Msr(0x174)));
        assert!(is_visible(&without, Msr(0x1d9)));
    }

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
