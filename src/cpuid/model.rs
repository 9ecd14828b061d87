//! The requested CPU model of a guest, and the vendor of the host's processor.

use std::fmt;

/// The grouping of vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Packages.
    pub sockets: u32,
    /// Cores per package.
    pub cores: u32,
    /// Threads per core.
    pub threads: u32,
}

/// The CPU that the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuModel {
    /// Everything that the host's KVM supports, without the features masked by name.
    Host,
    /// The x86-64-v2 level: for migration between different hosts.
    X86_64V2,
    /// The x86-64-v3 level.
    X86_64V3,
    /// The x86-64-v4 level.
    X86_64V4,
}

/// The vendor of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuVendor {
    /// `GenuineIntel`: VMX.
    Intel,
    /// `AuthenticAMD` or `HygonGenuine`: SVM.
    Amd,
    /// Any other vendor.
    Other,
}

impl CpuVendor {
    /// From the twelve bytes of CPUID leaf 0 in EBX, EDX, ECX.
    pub fn from_id(id: &[u8; 12]) -> Self {
        match id {
            b"GenuineIntel" => Self::Intel,
            b"AuthenticAMD" | b"HygonGenuine" => Self::Amd,
            _ => Self::Other,
        }
    }

    /// The KVM module for it.
    pub fn module(self) -> &'static str {
        match self {
            Self::Intel => "kvm_intel",
            Self::Amd => "kvm_amd",
            Self::Other => "kvm",
        }
    }
}

impl fmt::Display for CpuVendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Intel => "Intel",
            Self::Amd => "AMD",
            Self::Other => "other",
        })
    }
}
