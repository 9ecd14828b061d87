//! Computes the guest's CPUID and feature MSRs from the host's, by named masks.
//!
//! [`GuestCpuid::new`] combines KVM's support with the VM's specification, and refuses impossible ones;
//! [`GuestCpuid::for_vcpu`] returns one vCPU's table for KVM_SET_CPUID2. All of it is pure.

mod compare;
pub mod feature;
mod guest;
mod level;
mod model;
pub mod msr_feature;
pub mod msrs;
mod register;
pub mod topology;
mod width;

pub use compare::{CpuLack, lacks};
pub use guest::{CpuSpec, CpuidProblem, GuestCpuid, KVM_LEAVES_BESIDE_HYPERV, has_kvmclock};
pub use model::{CpuModel, CpuVendor, Topology};
pub use msrs::feature_msrs;
pub use register::Reg;
pub use width::address_width;

pub(crate) use guest::{is_kvm_signature, vendor};

#[cfg(test)]
pub(crate) mod tests;

use serde::{Deserialize, Serialize};

/// One CPUID leaf or sub-leaf, as plain values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidEntry {
    /// The leaf: the guest's EAX.
    pub function: u32,
    /// The sub-leaf: the guest's ECX, if significant.
    pub index: u32,
    /// Whether `index` matters.
    #[serde(rename = "flags", with = "flags")]
    pub indexed: bool,
    /// EAX as returned to the guest.
    pub eax: u32,
    /// EBX as returned to the guest.
    pub ebx: u32,
    /// ECX as returned to the guest.
    pub ecx: u32,
    /// EDX as returned to the guest.
    pub edx: u32,
}

/// JSON uses KVM's form: flags, of which only this one is significant.
mod flags {
    use kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    use serde::{Deserialize, Deserializer, Serializer};

    #[allow(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde's form of such functions"
    )]
    pub(super) fn serialize<S: Serializer>(indexed: &bool, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(u32::from(*indexed) * KVM_CPUID_FLAG_SIGNIFCANT_INDEX)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
        u32::deserialize(from).map(|flags| flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0)
    }
}

impl CpuidEntry {
    /// Returns one of the four registers.
    pub fn reg(&self, reg: Reg) -> u32 {
        match reg {
            Reg::Eax => self.eax,
            Reg::Ebx => self.ebx,
            Reg::Ecx => self.ecx,
            Reg::Edx => self.edx,
        }
    }

    /// Returns one of the four registers for modification.
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
