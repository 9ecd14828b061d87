//! A resolved set as a request that names all of it: what a saved VM is asked for again on another host.

use super::cpuid::NESTED_FEATURES;
use super::enlightenment::Enlightenment as E;
use super::profile::Profile;
use super::request::{Request, Value};
use super::resolve::Resolved;
use crate::cpuid::CpuidEntry;

/// NESTED_FEATURES EBX: the enlightened VMCS holds PERF_GLOBAL_CTRL.
const PERF_GLOBAL_CTRL: u32 = 1 << 0;

/// What a guest was told of the enlightened VMCS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ToldEvmcs {
    /// Lowest and greatest version, in the low and the high byte; 0 for none.
    pub version: u16,
    /// It holds PERF_GLOBAL_CTRL.
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
    /// A request for exactly what is on, with its values, that does not depend on what profiles hold.
    pub fn explicit(&self) -> Request {
        if !self.is_on() {
            return Request::profile(Profile::None);
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
        Request {
            wanted: wanted.collect(),
            ..Request::default()
        }
    }

    /// What the guest is told of the enlightened VMCS.
    pub fn evmcs(&self) -> ToldEvmcs {
        ToldEvmcs {
            version: self.evmcs_version,
            perf_global_ctrl: self.perf_global_ctrl,
        }
    }

    /// The same, but the guest was told less of the enlightened VMCS elsewhere, and goes by that.
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
    fn the_explicit_request_comes_to_the_same() {
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
                let Ok(request) = Request::parse(&list, Profile::None) else {
                    continue;
                };
                let resolved = resolve(&request, &host, true).unwrap();
                let explicit = resolved.explicit();
                let text = explicit.to_string();
                assert_eq!(Request::parse(&text, Profile::All), Ok(explicit.clone()));
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
