//! The hypervisor's CPUID leaves.

use super::enlightenment::Enlightenment as E;
use super::host::HostHv;
use super::request::Value;
use super::resolve::Resolved;
use crate::cpuid::CpuidEntry;

/// The vendor string and the highest leaf.
pub const VENDOR: u32 = 0x4000_0000;
/// The interface's signature.
pub const INTERFACE: u32 = 0x4000_0001;
/// The hypervisor's version.
pub const VERSION: u32 = 0x4000_0002;
/// The features that the partition may use.
pub const FEATURES: u32 = 0x4000_0003;
/// The recommendations to the guest.
pub const RECOMMENDATIONS: u32 = 0x4000_0004;
/// The implementation limits.
pub const LIMITS: u32 = 0x4000_0005;
/// The nested features that a hypervisor inside may use.
pub const NESTED_FEATURES: u32 = 0x4000_000a;

/// "Hv#1": guests, and KVM itself (`kvm_cpuid_has_hyperv`), detect Hyper-V by it.
const INTERFACE_SIGNATURE: u32 = 0x3123_7648;
/// Features EAX: the hypercall MSRs, which every Hyper-V guest needs.
const ACCESS_HYPERCALL_MSRS: u32 = 1 << 5;
/// Features EDX: lets Windows accept CPUs that are added while it runs. KVM does not report it.
const CPU_DYNAMIC_PARTITIONING: u32 = 1 << 3;
/// Recommendations EAX: APIC accesses by MSR.
const APIC_MSRS_RECOMMENDED: u32 = 1 << 3;
/// Recommendations EBX: never report a long spin.
const NEVER_NOTIFY: u32 = u32::MAX;

/// Leaves 0x40000000, 2 and 5: the hypervisor's identity. The default is QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HypervisorIdentity {
    /// The vendor string, padded with zeros.
    pub vendor: [u8; 12],
    /// The version leaf's EAX.
    pub build: u32,
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
    /// Service pack.
    pub spack: u32,
    /// Service branch.
    pub sbranch: u8,
    /// Service number, 24 bits.
    pub snumber: u32,
    /// The limits leaf: virtual processors, logical processors, interrupt vectors for remapping.
    pub limits: [u32; 3],
}

impl Default for HypervisorIdentity {
    /// "Microsoft Hv" 10.0.14393 (Windows Server 2016); unlimited virtual processors, 64 logical ones.
    fn default() -> Self {
        Self {
            vendor: *b"Microsoft Hv",
            build: 14393,
            major: 10,
            minor: 0,
            spack: 0,
            sbranch: 0,
            snumber: 0,
            limits: [u32::MAX, 64, 0],
        }
    }
}

impl HypervisorIdentity {
    /// KVM's own identity.
    pub(super) fn of_host(host: &HostHv) -> Self {
        let (vendor, version, limits) = (host.leaf(VENDOR), host.leaf(VERSION), host.leaf(LIMITS));
        Self {
            vendor: vendor_bytes([vendor.ebx, vendor.ecx, vendor.edx]),
            build: version.eax,
            major: (version.ebx >> 16) as u16,
            minor: (version.ebx & 0xffff) as u16,
            spack: version.ecx,
            sbranch: (version.edx >> 24) as u8,
            snumber: version.edx & 0x00ff_ffff,
            limits: [limits.eax, limits.ebx, limits.ecx],
        }
    }

    /// Sets a field that the user named. Values have been checked against the table.
    pub(super) fn set(&mut self, id: E, value: &Value) {
        match (id, value) {
            (E::VendorId, Value::Text(text)) => {
                self.vendor = [0; 12];
                for (to, from) in self.vendor.iter_mut().zip(text.bytes()) {
                    *to = from;
                }
            }
            (E::VersionIdBuild, Value::Number(n)) => self.build = *n,
            (E::VersionIdMajor, Value::Number(n)) => self.major = (*n & 0xffff) as u16,
            (E::VersionIdMinor, Value::Number(n)) => self.minor = (*n & 0xffff) as u16,
            (E::VersionIdSpack, Value::Number(n)) => self.spack = *n,
            (E::VersionIdSbranch, Value::Number(n)) => self.sbranch = (*n & 0xff) as u8,
            (E::VersionIdSnumber, Value::Number(n)) => self.snumber = *n & 0x00ff_ffff,
            _ => {}
        }
    }

    /// The vendor string without its trailing zeros.
    pub(super) fn vendor_text(&self) -> String {
        String::from_utf8_lossy(&self.vendor)
            .trim_end_matches('\0')
            .to_owned()
    }

    fn vendor_registers(&self) -> [u32; 3] {
        let mut registers = [0; 3];
        for (register, bytes) in registers.iter_mut().zip(self.vendor.chunks_exact(4)) {
            for (shift, byte) in bytes.iter().enumerate() {
                *register |= u32::from(*byte) << (8 * shift);
            }
        }
        registers
    }
}

fn vendor_bytes(registers: [u32; 3]) -> [u8; 12] {
    let mut bytes = [0; 12];
    for (chunk, register) in bytes.chunks_exact_mut(4).zip(registers) {
        chunk.copy_from_slice(&register.to_le_bytes());
    }
    bytes
}

fn leaf(function: u32) -> CpuidEntry {
    CpuidEntry {
        function,
        ..CpuidEntry::default()
    }
}

impl Resolved {
    /// Leaves 0x40000000 and up as the guest sees them; none if Hyper-V is off.
    pub fn cpuid_leaves(&self) -> Vec<CpuidEntry> {
        if !self.is_on() {
            return Vec::new();
        }
        let mut nested = self.bits_of(NESTED_FEATURES);
        nested.eax |= u32::from(self.evmcs_version);
        nested.ebx |= u32::from(self.perf_global_ctrl);
        // Leaves 6..9 exist, as zero, if the guest has to find leaf A after them.
        let max = if nested.eax == 0 {
            LIMITS
        } else {
            NESTED_FEATURES
        };
        let mut leaves: Vec<CpuidEntry> = (VENDOR..=max).map(leaf).collect();
        for entry in &mut leaves {
            match entry.function {
                VENDOR => {
                    entry.eax = max;
                    [entry.ebx, entry.ecx, entry.edx] = self.identity.vendor_registers();
                }
                INTERFACE => entry.eax = INTERFACE_SIGNATURE,
                VERSION => {
                    let id = &self.identity;
                    entry.eax = id.build;
                    entry.ebx = u32::from(id.major) << 16 | u32::from(id.minor);
                    entry.ecx = id.spack;
                    entry.edx = u32::from(id.sbranch) << 24 | id.snumber;
                }
                FEATURES => {
                    *entry = self.bits_of(FEATURES);
                    entry.eax |= ACCESS_HYPERCALL_MSRS;
                    entry.edx |= CPU_DYNAMIC_PARTITIONING;
                }
                RECOMMENDATIONS => {
                    *entry = self.bits_of(RECOMMENDATIONS);
                    entry.ebx = self.spin_count.unwrap_or(NEVER_NOTIFY);
                    if self.has(E::Avic) {
                        entry.eax &= !APIC_MSRS_RECOMMENDED;
                    }
                }
                LIMITS => [entry.eax, entry.ebx, entry.ecx] = self.identity.limits,
                NESTED_FEATURES => *entry = nested,
                _ => {}
            }
        }
        leaves
    }

    /// A leaf with the bits of everything that is on.
    fn bits_of(&self, function: u32) -> CpuidEntry {
        let mut entry = leaf(function);
        for bit in self.enabled.iter().flat_map(|id| id.row().bits) {
            if bit.leaf == function {
                *entry.reg_mut(bit.reg) |= bit.mask();
            }
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::tests::{amd, intel};
    use super::super::{EnlightenmentRequest, HostHv, Profile, resolve};
    use super::*;

    fn leaves(list: &str, host: &HostHv, nested: bool) -> Vec<CpuidEntry> {
        let request = EnlightenmentRequest::parse(list, Profile::Windows).unwrap();
        resolve(&request, host, nested).unwrap().cpuid_leaves()
    }

    fn get(leaves: &[CpuidEntry], function: u32) -> [u32; 4] {
        let entry = leaves.iter().find(|e| e.function == function).unwrap();
        [entry.eax, entry.ebx, entry.ecx, entry.edx]
    }

    #[test]
    fn without_hyperv_there_are_no_leaves() {
        assert_eq!(leaves("none", &intel(), false), []);
    }

    #[test]
    fn the_leaves_of_the_windows_profile() {
        let leaves = leaves("windows", &intel(), false);
        assert_eq!(leaves.len(), 6);
        assert_eq!(
            get(&leaves, VENDOR),
            [0x4000_0005, 0x7263_694d, 0x666f_736f, 0x7648_2074]
        );
        assert_eq!(get(&leaves, INTERFACE), [0x3123_7648, 0, 0, 0]);
        assert_eq!(get(&leaves, VERSION), [0x3839, 0x000a_0000, 0, 0]);
        // EAX 0-6, 9, 11; EBX 4, 5; EDX 3, 4, 8, 10, 14, 19.
        assert_eq!(get(&leaves, FEATURES), [0x0a7f, 0x30, 0, 0x0008_4518]);
        // EAX 2, 3, 5, 10, 11.
        assert_eq!(get(&leaves, RECOMMENDATIONS), [0x0c2c, 0x1fff, 0, 0]);
        assert_eq!(get(&leaves, LIMITS), [u32::MAX, 64, 0, 0]);
    }

    #[test]
    fn the_leaves_of_the_nested_profile() {
        let leaves = leaves("nested", &intel(), true);
        assert_eq!(leaves.len(), 11);
        assert_eq!(get(&leaves, VENDOR)[0], NESTED_FEATURES);
        assert_eq!(get(&leaves, FEATURES)[0], 0x2a7f);
        assert_eq!(get(&leaves, RECOMMENDATIONS)[0], 0x4c2c);
        for function in 0x4000_0006..=0x4000_0009 {
            assert_eq!(get(&leaves, function), [0; 4]);
        }
        assert_eq!(get(&leaves, NESTED_FEATURES), [0x000a_0101, 1, 0, 0]);
    }

    #[test]
    fn leaf_a_has_no_version_on_amd() {
        let leaves = leaves("nested,-evmcs", &amd(), true);
        assert_eq!(get(&leaves, NESTED_FEATURES), [0x000a_0000, 0, 0, 0]);
    }

    #[test]
    fn evmcs_without_perf_global_ctrl_where_kvm_has_none() {
        let mut host = intel();
        for entry in &mut host.hv_cpuid {
            if entry.function == NESTED_FEATURES {
                entry.ebx = 0;
            }
        }
        let leaves = leaves("evmcs", &host, true);
        assert_eq!(get(&leaves, NESTED_FEATURES), [0x0101, 0, 0, 0]);
    }

    /// Each alone: (features, recommendations) in addition to those of every Hyper-V guest, with its
    /// requirements.
    #[test]
    fn each_enlightenment_has_its_bits() {
        let mut host = intel();
        host.apicv = true;
        for (list, features, recommendations) in [
            ("relaxed", [0, 0, 0], 1 << 5),
            ("vapic", [1 << 4, 0, 0], 1 << 3),
            ("vapic,avic", [1 << 4, 0, 0], 1 << 9),
            ("vpindex", [1 << 6, 0, 0], 0),
            ("runtime", [1, 0, 0], 0),
            ("crash", [0, 0, 1 << 10], 0),
            ("reset", [1 << 7, 0, 0], 0),
            ("time", [1 << 1 | 1 << 9, 0, 0], 0),
            ("frequencies", [1 << 11, 0, 1 << 8], 0),
            ("reenlightenment", [1 << 13, 0, 0], 0),
            ("tsc-invariant", [1 << 15, 0, 0], 0),
            ("synic", [1 << 2 | 1 << 6, 1 << 4 | 1 << 5, 0], 0),
            ("tlbflush", [1 << 6, 0, 0], 1 << 2 | 1 << 11),
            ("tlbflush-ext", [1 << 6, 0, 1 << 14], 1 << 2 | 1 << 11),
            ("ipi", [1 << 6, 0, 0], 1 << 10 | 1 << 11),
            ("xmm-input", [0, 0, 1 << 4], 0),
            ("ext-hypercalls", [0, 1 << 20, 0], 0),
            ("no-nonarch-coresharing=on", [0, 0, 0], 1 << 18),
            ("enforce-cpuid", [0, 0, 0], 0),
        ] {
            let leaves = leaves(list, &host, true);
            let [eax, ebx, edx] = features;
            assert_eq!(
                get(&leaves, FEATURES),
                [eax | 1 << 5, ebx, 0, edx | 1 << 3],
                "{list}"
            );
            assert_eq!(
                get(&leaves, RECOMMENDATIONS),
                [recommendations, u32::MAX, 0, 0],
                "{list}"
            );
        }
    }

    #[test]
    fn identity_can_be_set() {
        let leaves = leaves(
            "vendor-id=short,version-id-build=0x1bbc,version-id-major=6,version-id-minor=1,\
             version-id-spack=2,version-id-sbranch=3,version-id-snumber=4",
            &intel(),
            false,
        );
        assert_eq!(
            get(&leaves, VENDOR)[1..],
            [
                u32::from_le_bytes(*b"shor"),
                u32::from_le_bytes(*b"t\0\0\0"),
                0
            ]
        );
        assert_eq!(get(&leaves, VERSION), [0x1bbc, 6 << 16 | 1, 2, 3 << 24 | 4]);
    }

    #[test]
    fn passthrough_shows_the_identity_of_kvm() {
        let leaves = leaves("passthrough", &intel(), true);
        assert_eq!(
            get(&leaves, VENDOR),
            [0x4000_000a, 0x756e_694c, 0x564b_2078, 0x7648_204d]
        );
        assert_eq!(get(&leaves, LIMITS), [4096, 64, 0, 0]);
        assert_eq!(get(&leaves, RECOMMENDATIONS), [0x4e24, 0xfff, 0, 0]);
    }
}
