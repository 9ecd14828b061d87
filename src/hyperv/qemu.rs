//! The intended differences, visible to a guest, between hypernest and QEMU with the same enlightenments.
//!
//! Everything else in CPUID 0x40000000-0x400000FF and in the synthetic MSRs at power-on is the same (`cargo
//! lab test differential` compares them), if QEMU shows Hyper-V at all: it hides it where only the vendor
//! string, the version, hv-enforce-cpuid or hv-no-nonarch-coresharing is set. hypernest shows Hyper-V as
//! soon as any part of it is requested.

use super::cpuid::{FEATURES, NESTED_FEATURES};
use super::enlightenment::Enlightenment as E;
use super::msr;
use super::request::{EnlightenmentRequest, Value};
use super::resolve::Resolved;
use crate::cpuid::Reg;
use crate::units::Msr;

/// One difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The VMs that it concerns.
    pub when: When,
    /// The CPUID register or MSR.
    pub place: DifferencePlace,
    /// The values on both sides.
    pub what: &'static str,
    /// The reason.
    pub reason: &'static str,
}

/// The VMs in which something differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// With this enlightenment.
    With(E),
    /// With Hyper-V, but without this enlightenment.
    Without(E),
}

/// Bits that may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DifferencePlace {
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
        place: DifferencePlace::Cpuid {
            leaf: NESTED_FEATURES,
            reg: Reg::Ebx,
            mask: 1,
        },
        what: "1 where KVM offers it; QEMU: 0",
        reason: "without it KVM removes the load-PERF_GLOBAL_CTRL controls from the guest's VMX, and a \
                 hypervisor in the guest cannot give its guests a PMU",
    },
    Difference {
        when: When::With(E::TscInvariant),
        place: DifferencePlace::Cpuid {
            leaf: FEATURES,
            reg: Reg::Eax,
            mask: 1 << 15,
        },
        what: "1; QEMU: 0",
        reason: "QEMU has no flag for hv-tsc-invariant",
    },
    Difference {
        when: When::With(E::ExtHypercalls),
        place: DifferencePlace::Cpuid {
            leaf: FEATURES,
            reg: Reg::Ebx,
            mask: 1 << 20,
        },
        what: "1; QEMU: 0",
        reason: "QEMU has no flag for hv-ext-hypercalls",
    },
    Difference {
        when: When::With(E::Crash),
        place: DifferencePlace::Msr {
            msr: msr::CRASH_CTL,
            mask: 1 << 62,
        },
        what: "1; QEMU: 0",
        reason: "hypernest accepts crash messages, and guests send one only if this bit reads 1",
    },
    Difference {
        when: When::Without(E::Crash),
        place: DifferencePlace::Msr {
            msr: msr::CRASH_CTL,
            mask: 1 << 63,
        },
        what: "0; QEMU: 1",
        reason: "QEMU announces that it accepts crash reports even if hv-crash is off",
    },
];

/// The enlightenments without a QEMU flag.
pub const UNKNOWN_TO_QEMU: [E; 2] = [E::TscInvariant, E::ExtHypercalls];

/// The text after `-cpu MODEL,` that requests from QEMU what `request` resolved to.
pub fn flags(request: &EnlightenmentRequest, resolved: &Resolved) -> String {
    let members = request.profiles.iter().flat_map(|p| p.members());
    let numbers: Vec<_> = members.filter_map(|m| Some((m.id, m.number?))).collect();
    let passthrough = resolved.has(E::Passthrough);
    let mut flags = Vec::new();
    for id in resolved.enabled().iter() {
        let number = || numbers.iter().find(|(of, _)| *of == id);
        let value = match (request.wanted.get(&id), number()) {
            (Some(Value::Auto), _) if id == E::NoNonarchCoresharing => "auto".to_owned(),
            // hypernest's `auto` resolved to on.
            (Some(Value::Auto), _) if id == E::Spinlocks => resolved
                .spin_count
                .map_or_else(|| "on".to_owned(), |count| count.to_string()),
            (Some(Value::Number(number)), _) | (None, Some((_, number))) => number.to_string(),
            (Some(Value::Text(text)), _) => text.clone(),
            // Covered by the passthrough flag.
            (None, None) if passthrough && id != E::Passthrough => continue,
            _ => "on".to_owned(),
        };
        if !UNKNOWN_TO_QEMU.contains(&id) {
            flags.push(format!("{id}={value}"));
        }
    }
    flags.join(",")
}

/// MSRs whose value differs between any two reads.
pub const MOVING: [Msr; 2] = [msr::TIME_REF_COUNT, msr::VP_RUNTIME];

#[cfg(test)]
mod tests {
    use super::super::host::tests::intel;
    use super::super::{Profile, resolve};
    use super::*;

    #[test]
    fn flags_ask_for_the_same() {
        for (list, wanted) in [
            ("none", ""),
            (
                "stimer",
                "hv-vpindex=on,hv-time=on,hv-synic=on,hv-stimer=on",
            ),
            ("spinlocks=0x10,relaxed", "hv-relaxed=on,hv-spinlocks=16"),
            (
                "relaxed,vendor-id=a b,no-nonarch-coresharing=on",
                "hv-relaxed=on,hv-no-nonarch-coresharing=on,hv-vendor-id=a b",
            ),
            ("relaxed,ext-hypercalls", "hv-relaxed=on"),
            ("passthrough", "hv-passthrough=on"),
        ] {
            let request = EnlightenmentRequest::parse(list, Profile::None).unwrap();
            let resolved = resolve(&request, &intel(), true).unwrap();
            let flags = flags(&request, &resolved);
            // Requirements come in the table's order.
            assert_eq!(flags, wanted, "{list}");
        }
        let request = EnlightenmentRequest::parse("windows", Profile::None).unwrap();
        let resolved = resolve(&request, &intel(), true).unwrap();
        assert!(flags(&request, &resolved).contains(",hv-spinlocks=8191,"));
    }

    #[test]
    fn the_walk_through_has_the_flags_of_its_modes() {
        let book = include_str!("../../docs/measure-wsl2.md");
        let book: String = book.split_whitespace().collect();
        for list in ["nested", "nested,-evmcs,-emsr-bitmap,-tlbflush-direct"] {
            let request = EnlightenmentRequest::parse(list, Profile::None).unwrap();
            let resolved = resolve(&request, &intel(), true).unwrap();
            let flags = flags(&request, &resolved);
            assert!(book.contains(&flags), "{list}: {flags}");
        }
    }
}
