//! Features that MSRs report and CPUID does not, by QEMU's names.

use crate::units::Msr;

/// A bit of a feature MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrFeature {
    /// Its name.
    pub name: &'static str,
    /// The MSR.
    pub msr: Msr,
    /// The bit. For VMX controls, the bit that allows the control to be 1.
    pub bit: u8,
}

/// VMX controls: the low half has a bit for each control that must be 1, the high half one for each that
/// may be 1 (SDM vol. 3, A.3 to A.5).
pub(super) fn is_control(msr: Msr) -> bool {
    matches!(msr.0, 0x48b | 0x48d..=0x490)
}

/// The feature of bit `bit` of `msr`.
pub(super) fn at(msr: Msr, bit: u8) -> Option<MsrFeature> {
    let mut features = ALL.iter();
    features.find(|f| (f.msr, f.bit) == (msr, bit)).copied()
}

/// Clears the features called `without` in `values`.
pub fn hide(values: &mut [(Msr, u64)], without: &[&str]) {
    for feature in ALL.iter().filter(|f| without.contains(&f.name)) {
        for (_, value) in values.iter_mut().filter(|(msr, _)| *msr == feature.msr) {
            *value &= !(1 << feature.bit);
        }
    }
}

macro_rules! msr_features {
    ($($msr:literal + $first:literal { $($bit:literal $name:literal)* })*) => {
        /// All named bits.
        pub const ALL: &[MsrFeature] = &[$($(MsrFeature {
            name: $name,
            msr: Msr($msr),
            bit: $first + $bit,
        }),*),*];
    };
}

// Intel SDM vol. 3, appendix A, and vol. 4, "IA32_ARCH_CAPABILITIES".
msr_features! {
    // IA32_ARCH_CAPABILITIES
    0x10a + 0 {
        0 "rdctl-no" 1 "ibrs-all" 2 "rsba" 3 "skip-l1dfl-vmentry" 4 "ssb-no" 5 "mds-no"
        6 "pschange-mc-no" 7 "tsx-ctrl" 8 "taa-no" 13 "sbdr-ssdp-no" 14 "fbsdp-no" 15 "psdp-no"
        17 "fb-clear" 19 "rrsba" 20 "bhi-no" 24 "pbrsb-no" 26 "gds-no" 27 "rfds-no" 28 "rfds-clear"
        62 "its-no"
    }
    // IA32_VMX_BASIC
    0x480 + 0 { 54 "vmx-ins-outs" 55 "vmx-true-ctls" 56 "vmx-any-errcode" }
    // IA32_VMX_MISC
    0x485 + 0 {
        5 "vmx-store-lma" 6 "vmx-activity-hlt" 7 "vmx-activity-shutdown" 8 "vmx-activity-wait-sipi"
        14 "vmx-intel-pt" 29 "vmx-vmwrite-vmexit-fields" 30 "vmx-zero-len-inject"
    }
    // IA32_VMX_PROCBASED_CTLS2
    0x48b + 32 {
        0 "vmx-apicv-xapic" 1 "vmx-ept" 2 "vmx-desc-exit" 3 "vmx-rdtscp-exit" 4 "vmx-apicv-x2apic"
        5 "vmx-vpid" 6 "vmx-wbinvd-exit" 7 "vmx-unrestricted-guest" 8 "vmx-apicv-register"
        9 "vmx-apicv-vid" 10 "vmx-ple" 11 "vmx-rdrand-exit" 12 "vmx-invpcid-exit" 13 "vmx-vmfunc"
        14 "vmx-shadow-vmcs" 15 "vmx-encls-exit" 16 "vmx-rdseed-exit" 17 "vmx-pml"
        18 "vmx-ept-violation-ve" 20 "vmx-xsaves" 22 "vmx-mbec" 25 "vmx-tsc-scaling"
        26 "vmx-enable-user-wait-pause" 28 "vmx-enclv-exit"
    }
    // IA32_VMX_EPT_VPID_CAP
    0x48c + 0 {
        0 "vmx-ept-execonly" 6 "vmx-page-walk-4" 7 "vmx-page-walk-5" 8 "vmx-ept-uc" 14 "vmx-ept-wb"
        16 "vmx-ept-2mb" 17 "vmx-ept-1gb" 20 "vmx-invept" 21 "vmx-eptad" 22 "vmx-ept-advanced-exitinfo"
        25 "vmx-invept-single-context" 26 "vmx-invept-all-context" 32 "vmx-invvpid"
        40 "vmx-invvpid-single-addr" 41 "vmx-invvpid-single-context" 42 "vmx-invvpid-all-context"
        43 "vmx-invvpid-single-context-noglobals"
    }
    // IA32_VMX_TRUE_PINBASED_CTLS
    0x48d + 32 {
        0 "vmx-intr-exit" 3 "vmx-nmi-exit" 5 "vmx-vnmi" 6 "vmx-preemption-timer" 7 "vmx-posted-intr"
    }
    // IA32_VMX_TRUE_PROCBASED_CTLS
    0x48e + 32 {
        2 "vmx-vintr-pending" 3 "vmx-tsc-offset" 7 "vmx-hlt-exit" 9 "vmx-invlpg-exit" 10 "vmx-mwait-exit"
        11 "vmx-rdpmc-exit" 12 "vmx-rdtsc-exit" 15 "vmx-cr3-load-exit" 16 "vmx-cr3-store-exit"
        19 "vmx-cr8-load-exit" 20 "vmx-cr8-store-exit" 21 "vmx-flexpriority" 22 "vmx-vnmi-pending"
        23 "vmx-movdr-exit" 24 "vmx-io-exit" 25 "vmx-io-bitmap" 27 "vmx-mtf" 28 "vmx-msr-bitmap"
        29 "vmx-monitor-exit" 30 "vmx-pause-exit" 31 "vmx-secondary-ctls"
    }
    // IA32_VMX_TRUE_EXIT_CTLS
    0x48f + 32 {
        2 "vmx-exit-save-debugctl" 9 "vmx-exit-host-addr-space-size" 12 "vmx-exit-load-perf-global-ctrl"
        15 "vmx-exit-ack-intr" 18 "vmx-exit-save-pat" 19 "vmx-exit-load-pat" 20 "vmx-exit-save-efer"
        21 "vmx-exit-load-efer" 22 "vmx-exit-save-preemption-timer" 23 "vmx-exit-clear-bndcfgs"
        25 "vmx-exit-clear-rtit-ctl" 28 "vmx-exit-load-cet" 29 "vmx-exit-load-pkrs"
    }
    // IA32_VMX_TRUE_ENTRY_CTLS
    0x490 + 32 {
        2 "vmx-entry-load-debugctl" 9 "vmx-entry-ia32e-mode" 13 "vmx-entry-load-perf-global-ctrl"
        14 "vmx-entry-load-pat" 15 "vmx-entry-load-efer" 16 "vmx-entry-load-bndcfgs"
        18 "vmx-entry-load-rtit-ctl" 20 "vmx-entry-load-cet" 22 "vmx-entry-load-pkrs"
    }
    // IA32_VMX_VMFUNC
    0x491 + 0 { 0 "vmx-eptp-switching" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_and_names_of_features_are_unique() {
        for (place, feature) in ALL.iter().enumerate() {
            for other in &ALL[..place] {
                assert_ne!((feature.msr, feature.bit), (other.msr, other.bit));
                assert_ne!(feature.name, other.name);
            }
            let cpuid = super::super::feature::ALL.iter();
            assert!(cpuid.clone().all(|f| f.name != feature.name), "{feature:?}");
        }
    }

    #[test]
    fn a_hidden_control_may_not_be_1() {
        let mut values = [(Msr(0x48b), 0x00a2 << 32), (Msr(0x10a), 0b11)];
        hide(&mut values, &["vmx-vpid", "rdctl-no", "avx2"]);
        assert_eq!(values, [(Msr(0x48b), 0x0082 << 32), (Msr(0x10a), 0b10)]);
    }
}
