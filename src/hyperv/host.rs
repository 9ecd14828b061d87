//! The Hyper-V support of a host, as plain values.

use crate::cpuid::CpuVendor;
use std::collections::BTreeSet;
use std::fmt;

use crate::cpuid::CpuidEntry;

/// The KVM capabilities that enlightenments require.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "KVM's names")]
pub enum HvCap {
    Hyperv,
    Vapic,
    Spin,
    Time,
    Synic2,
    VpIndex,
    TlbFlush,
    SendIpi,
    EnlightenedVmcs,
    UserSpaceMsr,
    MsrFilter,
    EnforceCpuid,
}

impl HvCap {
    /// All capabilities that are queried by KVM_CHECK_EXTENSION.
    pub const ALL: [Self; 12] = [
        Self::Hyperv,
        Self::Vapic,
        Self::Spin,
        Self::Time,
        Self::Synic2,
        Self::VpIndex,
        Self::TlbFlush,
        Self::SendIpi,
        Self::EnlightenedVmcs,
        Self::UserSpaceMsr,
        Self::MsrFilter,
        Self::EnforceCpuid,
    ];

    /// The number for KVM_CHECK_EXTENSION and KVM_ENABLE_CAP.
    pub fn number(self) -> u32 {
        match self {
            Self::Hyperv => kvm_bindings::KVM_CAP_HYPERV,
            Self::Vapic => kvm_bindings::KVM_CAP_HYPERV_VAPIC,
            Self::Spin => kvm_bindings::KVM_CAP_HYPERV_SPIN,
            Self::Time => kvm_bindings::KVM_CAP_HYPERV_TIME,
            Self::Synic2 => kvm_bindings::KVM_CAP_HYPERV_SYNIC2,
            Self::VpIndex => kvm_bindings::KVM_CAP_HYPERV_VP_INDEX,
            Self::TlbFlush => kvm_bindings::KVM_CAP_HYPERV_TLBFLUSH,
            Self::SendIpi => kvm_bindings::KVM_CAP_HYPERV_SEND_IPI,
            Self::EnlightenedVmcs => kvm_bindings::KVM_CAP_HYPERV_ENLIGHTENED_VMCS,
            Self::UserSpaceMsr => kvm_bindings::KVM_CAP_X86_USER_SPACE_MSR,
            Self::MsrFilter => kvm_bindings::KVM_CAP_X86_MSR_FILTER,
            Self::EnforceCpuid => kvm_bindings::KVM_CAP_HYPERV_ENFORCE_CPUID,
        }
    }

    /// Its name in KVM's headers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hyperv => "KVM_CAP_HYPERV",
            Self::Vapic => "KVM_CAP_HYPERV_VAPIC",
            Self::Spin => "KVM_CAP_HYPERV_SPIN",
            Self::Time => "KVM_CAP_HYPERV_TIME",
            Self::Synic2 => "KVM_CAP_HYPERV_SYNIC2",
            Self::VpIndex => "KVM_CAP_HYPERV_VP_INDEX",
            Self::TlbFlush => "KVM_CAP_HYPERV_TLBFLUSH",
            Self::SendIpi => "KVM_CAP_HYPERV_SEND_IPI",
            Self::EnlightenedVmcs => "KVM_CAP_HYPERV_ENLIGHTENED_VMCS",
            Self::UserSpaceMsr => "KVM_CAP_X86_USER_SPACE_MSR",
            Self::MsrFilter => "KVM_CAP_X86_MSR_FILTER",
            Self::EnforceCpuid => "KVM_CAP_HYPERV_ENFORCE_CPUID",
        }
    }
}

impl fmt::Display for HvCap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Linux version: major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// 6 of 6.12.
    pub major: u16,
    /// 12 of 6.12.
    pub minor: u16,
}

impl KernelVersion {
    /// `major.minor`.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    /// From a release such as `6.12.95-cloud-amd64`.
    pub fn parse(release: &str) -> Option<Self> {
        let mut parts = release.split(|c: char| !c.is_ascii_digit());
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        Some(Self { major, minor })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.major == 2 {
            write!(f, "2.6.{}", self.minor)
        } else {
            write!(f, "{}.{}", self.major, self.minor)
        }
    }
}

/// The Hyper-V support of a host's KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostHv {
    /// The processor's vendor.
    pub vendor: CpuVendor,
    /// The host's kernel, if its release could be read.
    pub kernel: Option<KernelVersion>,
    /// The capabilities of [`HvCap::ALL`] for which KVM_CHECK_EXTENSION returned more than 0.
    pub caps: BTreeSet<HvCap>,
    /// KVM_GET_SUPPORTED_HV_CPUID at system scope; empty if KVM does not support that
    /// (KVM_CAP_SYS_HYPERV_CPUID).
    pub hv_cpuid: Vec<CpuidEntry>,
    /// KVM_GET_SUPPORTED_CPUID shows VMX or SVM: the module was loaded with `nested=1` on a CPU that
    /// supports it.
    pub nested: bool,
    /// KVM uses APICv or AVIC (the module's `enable_apicv` or `avic` parameter reads Y).
    pub apicv: bool,
    /// `CPUID 0x80000007.EDX[8]` in KVM_GET_SUPPORTED_CPUID.
    pub invariant_tsc: bool,
}

impl HostHv {
    /// Leaf `function` of KVM's supported Hyper-V CPUID; all zero if it is missing.
    pub fn leaf(&self, function: u32) -> CpuidEntry {
        self.hv_cpuid
            .iter()
            .find(|e| e.function == function)
            .copied()
            .unwrap_or(CpuidEntry {
                function,
                ..CpuidEntry::default()
            })
    }

    /// The enlightened VMCS versions that KVM supports: the minimum in the low byte, the maximum in the
    /// high byte; 0 for none.
    pub fn evmcs_version(&self) -> u16 {
        (self.leaf(0x4000_000a).eax & 0xffff) as u16
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn leaf(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuidEntry {
        CpuidEntry {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..CpuidEntry::default()
        }
    }

    /// The report of Linux 6.12 (kvm_get_hv_cpuid), on a host where SMT is possible.
    fn linux_6_12(vendor: CpuVendor, evmcs: u16) -> HostHv {
        let evmcs_bit = if evmcs == 0 { 0 } else { 1 << 14 };
        HostHv {
            vendor,
            kernel: Some(KernelVersion::new(6, 12)),
            caps: HvCap::ALL
                .into_iter()
                .filter(|c| *c != HvCap::EnlightenedVmcs || vendor == CpuVendor::Intel)
                .collect(),
            hv_cpuid: vec![
                leaf(
                    0x4000_0000,
                    0x4000_0082,
                    0x756e_694c,
                    0x564b_2078,
                    0x7648_204d,
                ),
                leaf(0x4000_0001, 0x3123_7648, 0, 0, 0),
                leaf(0x4000_0002, 0x3839, 0x000a_0000, 0, 0),
                leaf(0x4000_0003, 0xaaff, 0x0010_0830, 0, 0x0008_4d12),
                leaf(0x4000_0004, 0x0000_0e2c | evmcs_bit, 0xfff, 0, 0),
                leaf(0x4000_0005, 4096, 64, 0, 0),
                leaf(0x4000_0080, 0, 0x756e_694c, 0x564b_2078, 0x7648_204d),
                leaf(0x4000_0081, 0x3123_5356, 0, 0, 0),
                leaf(0x4000_0082, 2, 0, 0, 0),
                leaf(0x4000_000a, 0x000a_0000 | u32::from(evmcs), 1, 0, 0),
            ],
            nested: true,
            apicv: false,
            invariant_tsc: true,
        }
    }

    /// An Intel host with everything but APICv.
    pub(crate) fn intel() -> HostHv {
        linux_6_12(CpuVendor::Intel, 0x0101)
    }

    /// An AMD host.
    pub(crate) fn amd() -> HostHv {
        linux_6_12(CpuVendor::Amd, 0)
    }

    /// A KVM without Hyper-V, and without nesting.
    pub(crate) fn without_hyperv() -> HostHv {
        HostHv {
            vendor: CpuVendor::Intel,
            kernel: Some(KernelVersion::new(6, 6)),
            caps: [HvCap::UserSpaceMsr, HvCap::MsrFilter].into(),
            hv_cpuid: Vec::new(),
            nested: false,
            apicv: false,
            invariant_tsc: false,
        }
    }

    #[test]
    fn kernel_releases_are_parsed() {
        for (text, version) in [
            ("6.12.95+deb12-cloud-amd64", Some(KernelVersion::new(6, 12))),
            ("5.0", Some(KernelVersion::new(5, 0))),
            ("6.8-rc1", Some(KernelVersion::new(6, 8))),
            ("6", None),
            ("", None),
            ("x.y", None),
        ] {
            assert_eq!(KernelVersion::parse(text), version, "{text}");
        }
        assert!(KernelVersion::new(6, 2) < KernelVersion::new(6, 12));
        assert_eq!(KernelVersion::new(2, 34).to_string(), "2.6.34");
    }

    #[test]
    fn the_evmcs_version_is_the_low_word_of_leaf_a() {
        assert_eq!(intel().evmcs_version(), 0x0101);
        assert_eq!(amd().evmcs_version(), 0);
        assert_eq!(without_hyperv().evmcs_version(), 0);
    }
}
