//! The capabilities of this host's TSC, from KVM's capabilities.

use super::plan::HostTsc;
use super::ratio::Scaling;
use crate::cpuid::CpuVendor;
use crate::kvm::host::HostCaps;
use crate::units::TscKhz;

impl From<&HostCaps> for HostTsc {
    fn from(host: &HostCaps) -> Self {
        let caps = &host.kvm.caps;
        // Without the VM's own frequency, a vCPU that comes later would have another than the first.
        let scales = caps.tsc_control && caps.vm_tsc_control;
        Self {
            native: host.kvm.tsc_khz.map(TscKhz),
            instead: None,
            fixed: host.kvm.tsc_offset == Some(false),
            scaling: scales.then(|| match host.kvm.vendor() {
                CpuVendor::Amd => Scaling::Svm,
                _ => Scaling::Vmx,
            }),
        }
    }
}
