//! The host's facts in the form that the enlightenments are resolved against.

use crate::cpuid::CpuVendor;
use crate::hyperv::{HostHv, HvCap, KernelVersion};

use super::HostCaps;

impl From<&HostCaps> for HostHv {
    fn from(host: &HostCaps) -> Self {
        let there = host.kvm.caps.list();
        let vendor = host.kvm.vendor();
        Self {
            vendor,
            kernel: KernelVersion::parse(&host.system.kernel),
            caps: HvCap::ALL
                .into_iter()
                .filter(|cap| there.iter().any(|(n, _, on)| *n == cap.number() && *on))
                .collect(),
            hv_cpuid: host.kvm.hv_cpuid.iter().flatten().copied().collect(),
            nested: host.kvm.guest_vmx() || host.kvm.guest_svm(),
            apicv: match vendor {
                CpuVendor::Intel => host.system.flag("kvm_intel", "enable_apicv"),
                CpuVendor::Amd => host.system.flag("kvm_amd", "avic"),
                CpuVendor::Other => None,
            }
            .unwrap_or(false),
            invariant_tsc: host.kvm.guest_invariant_tsc(),
        }
    }
}
