//! Host CPUID and feature MSRs -> the guest's, by named masks.
//!
//! [`GuestCpuid::new`] takes what KVM supports and what the VM is to be, and refuses what cannot be; [`GuestCpuid::for_vcpu`]
//! is one vCPU's table for KVM_SET_CPUID2. All of it is pure.

pub mod feature;
mod guest;
mod level;
pub mod msrs;
pub mod topology;

pub use guest::{CpuSpec, CpuidProblem, GuestCpuid};
pub use msrs::feature_msrs;

#[cfg(test)]
mod tests;

use crate::hyperv::enlightenment::Reg;

/// One CPUID leaf or sub-leaf, as plain values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidEntry {
    /// The leaf: the guest's EAX.
    pub function: u32,
    /// The sub-leaf: the guest's ECX, where it matters.
    pub index: u32,
    /// Whether `index` matters.
    pub indexed: bool,
    /// What the guest gets in EAX.
    pub eax: u32,
    /// What the guest gets in EBX.
    pub ebx: u32,
    /// What the guest gets in ECX.
    pub ecx: u32,
    /// What the guest gets in EDX.
    pub edx: u32,
}

impl CpuidEntry {
    /// One of the four registers.
    pub fn reg(&self, reg: Reg) -> u32 {
        match reg {
            Reg::Eax => self.eax,
            Reg::Ebx => self.ebx,
            Reg::Ecx => self.ecx,
            Reg::Edx => self.edx,
        }
    }

    /// One of the four registers, to be changed.
    pub fn reg_mut(&mut self, reg: Reg) -> &mut u32 {
        match reg {
            Reg::Eax => &mut self.eax,
            Reg::Ebx => &mut self.ebx,
            Reg::Ecx => &mut self.ecx,
            Reg::Edx => &mut self.edx,
        }
    }
}

impl From<&kvm_bindings::kvm_cpuid_entry2> for CpuidEntry {
    fn from(e: &kvm_bindings::kvm_cpuid_entry2) -> Self {
        Self {
            function: e.function,
            index: e.index,
            indexed: e.flags & kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
        }
    }
}

impl From<&CpuidEntry> for kvm_bindings::kvm_cpuid_entry2 {
    fn from(e: &CpuidEntry) -> Self {
        Self {
            function: e.function,
            index: e.index,
            flags: if e.indexed {
                kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            } else {
                0
            },
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
            ..Self::default()
        }
    }
}
