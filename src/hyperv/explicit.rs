//! A resolved set as an explicit request: the request of a saved VM on another host.

use super::cpuid::NESTED_FEATURES;
use super::enlightenment::Enlightenment as E;
use super::profile::Profile;
use super::request::{EnlightenmentRequest, Value};
use super::resolve::Resolved;
use crate::cpuid::CpuidEntry;

/// NESTED_FEATURES EBX: the enlightened VMCS holds PERF_GLOBAL_CTRL.
const PERF_GLOBAL_CTRL: u32 = 1 << 0;

/// The enlightened VMCS as reported to a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ToldEvmcs {
    /// The lowest and highest version, in the low and the high byte; 0 for none.
    pub version: u16,
    /// Whether it contains PERF_GLOBAL_CTRL.
    pub perf_global_ctrl: bool,
}

impl ToldEvmcs {
    /// From the guest's CPUID.
    pub fn in_cpuid(entries: &[CpuidEntry]) -> Self {
        let leaf = entries.iter().find(|e| e.function == NESTED_FEATURES);
        leaf.map_or(Self::default(), |leaf| Self {
            version: (leaf.eax & 0xffff) as u16,
            perf_global_ctrl: leaf.ebx & PERF_GLOBAL_CTRL != 0,
        })
    }
}

impl Resolved {
    /// A request for exactly the enabled set with its values, independent of the content of profiles.
    pub fn explicit(&self) -> EnlightenmentRequest {
        if !self.is_on() {
            return EnlightenmentRequest::profile(Profile::None);
        }
        let id = &self.identity;
        let wanted = self.enabled.iter().map(|enlightenment| {
            let value = match enlightenment {
                E::Spinlocks => self.spin_count.map_or(Value::On, Value::Number),
                E::NoNonarchCoresharing if self.coresharing_auto => Value::Auto,
                E::VendorId => Value::Text(id.vendor_text()),
                E::VersionIdBuild => Value::Number(id.build),
                E::VersionIdMajor => Value::Number(id.major.into()),
                E::VersionIdMinor => Value::Number(id.minor.into()),
                E::VersionIdSpack => Value::Number(id.spack),
                E::VersionIdSbranch => Value::Number(id.sbranch.into()),
                E::VersionIdSnumber => Value::Number(id.snumber),
                _ => Value::On,
            };
            (enlightenment, value)
        });
        EnlightenmentRequest {
            wanted: wanted.collect(),
            ..EnlightenmentRequest::default()
        }
    }

    /// The enlightened VMCS as reported to the guest.
    pub fn evmcs(&self) -> ToldEvmcs {
        ToldEvmcs {
            version: self.evmcs_version,
            perf_global_ctrl: self.perf_global_ctrl,
        }
    }

    /// Restricts the enlightened VMCS to the one reported to the guest on another host, which it relies on.
    pub fn told(self, evmcs: ToldEvmcs) -> Self {
        Self {
            evmcs_version: evmcs.version,
            perf_global_ctrl: evmcs.perf_global_ctrl,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::tests::{amd, intel};
    use super::super::resolve;
    use super::*;

    #[test]
    fn explicit_request_resolves_to_the_same_set() {
        for list in [
            "none",
            "windows",
            "linux",
            "nested",
            "all",
            "windows,-stimer,spinlocks=0x1fff,version-id-build=20348,vendor-id=KVM Hv",
            "nested,enforce-cpuid,no-nonarch-coresharing=auto",
            "time",
        ] {
            for (host, list) in [
                (intel(), list.to_owned()),
                (amd(), list.replace("nested", "nested,-evmcs")),
            ] {
                let Ok(request) = EnlightenmentRequest::parse(&list, Profile::None) else {
                    continue;
                };
                let resolved = resolve(&request, &host, true).unwrap();
                let explicit = resolved.explicit();
                let text = explicit.to_string();
                assert_eq!(
                    EnlightenmentRequest::parse(&text, Profile::All),
                    Ok(explicit.clone())
                );
                let again = resolve(&explicit, &host, true).unwrap();
                assert_eq!(again.enabled(), resolved.enabled(), "{list}");
                assert_eq!(again.cpuid_leaves(), resolved.cpuid_leaves(), "{list}");
                assert_eq!(again.saved_msrs(), resolved.saved_msrs(), "{list}");
                assert_eq!(again.migration_blockers(), resolved.migration_blockers());
                assert_eq!(again.explicit(), explicit);
                assert_eq!(ToldEvmcs::in_cpuid(&again.cpuid_leaves()), again.evmcs());
            }
        }
    }
}
