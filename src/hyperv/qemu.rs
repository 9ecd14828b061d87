//! Where a guest can see that it runs on hypernest and not on QEMU with the same enlightenments, on purpose.
//!
//! Everything else in CPUID 0x40000000-0x400000FF and in the synthetic MSRs at power-on is the same
//! (`cargo lab test differential` compares them), if QEMU shows Hyper-V at all: it hides it where only the vendor string, the
//! version, hv-enforce-cpuid or hv-no-nonarch-coresharing is set. hypernest shows Hyper-V as soon as anything of it is asked for.

use super::cpuid::{FEATURES, NESTED_FEATURES};
use super::enlightenment::{Enlightenment as E, Reg};
use super::msr;
use crate::units::Msr;

/// One difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// In which VMs.
    pub when: When,
    /// What differs.
    pub place: Place,
    /// What there is on either side.
    pub what: &'static str,
    /// Why.
    pub reason: &'static str,
}

/// In which VMs something differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// With this enlightenment.
    With(E),
    /// With Hyper-V, but without this enlightenment.
    Without(E),
}

/// Bits that may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Of a CPUID leaf.
    Cpuid {
        /// The leaf.
        leaf: u32,
        /// The register.
        reg: Reg,
        /// The bits.
        mask: u32,
    },
    /// Of an MSR's value.
    Msr {
        /// The MSR.
        msr: Msr,
        /// The bits.
        mask: u64,
    },
}

/// The differences.
pub const DIFFERENCES: [Difference; 5] = [
    Difference {
        when: When::With(E::Evmcs),
        place: Place::Cpuid {
            leaf: NESTED_FEATURES,
            reg: Reg::Ebx,
            mask: 1,
        },
        what: "1 where KVM offers it; QEMU: 0",
        reason: "without it KVM takes the load-PERF_GLOBAL_CTRL controls from the guest's VMX, and a hypervisor inside cannot give its guests a PMU",
    },
    Difference {
        when: When::With(E::TscInvariant),
        place: Place::Cpuid {
            leaf: FEATURES,
            reg: Reg::Eax,
            mask: 1 << 15,
        },
        what: "1; QEMU: 0",
        reason: "QEMU has no flag for hv-tsc-invariant",
    },
    Difference {
        when: When::With(E::ExtHypercalls),
        place: Place::Cpuid {
            leaf: FEATURES,
            reg: Reg::Ebx,
            mask: 1 << 20,
        },
        what: "1; QEMU: 0",
        reason: "QEMU has no flag for hv-ext-hypercalls",
    },
    Difference {
        when: When::With(E::Crash),
        place: Place::Msr {
            msr: msr::CRASH_CTL,
            mask: 1 << 62,
        },
        what: "1; QEMU: 0",
        reason: "hypernest takes crash messages, and guests send one only if this bit reads 1",
    },
    Difference {
        when: When::Without(E::Crash),
        place: Place::Msr {
            msr: msr::CRASH_CTL,
            mask: 1 << 63,
        },
        what: "0; QEMU: 1",
        reason: "QEMU announces that it takes crash reports even if hv-crash is off",
    },
];

/// MSRs whose value is never the same twice.
pub const MOVING: [Msr; 2] = [msr::TIME_REF_COUNT, msr::VP_RUNTIME];
