//! The x86-64 levels (x86-64 psABI, "Micro-Architecture Levels") as processor models for a guest that can
//! migrate between different hosts.
//!
//! A level contains the features of the psABI, the system features that practically every host of that
//! level has, and every mitigation of the host: a guest sees those that the host has, and a destination
//! must have them as well.

use super::CpuidEntry;
use super::feature::{self as f, Feature};
use super::topology::{DATA_CACHE, INSTRUCTION_CACHE, UNIFIED_CACHE};
use crate::cpuid::CpuModel;
use crate::cpuid::CpuVendor;

/// The features of all levels.
const V2: [Feature; 32] = [
    f::FPU,
    f::DE,
    f::PSE,
    f::TSC,
    f::MSR,
    f::PAE,
    f::MCE,
    f::CX8,
    f::APIC,
    f::SEP,
    f::MTRR,
    f::PGE,
    f::MCA,
    f::CMOV,
    f::PAT,
    f::PSE36,
    f::CLFLUSH,
    f::MMX,
    f::FXSR,
    f::SSE,
    f::SSE2,
    f::SYSCALL,
    f::NX,
    f::LM,
    f::SSE3,
    f::SSSE3,
    f::CX16,
    f::SSE4_1,
    f::SSE4_2,
    f::POPCNT,
    f::LAHF_LM,
    f::X2APIC,
];

const V3: [Feature; 9] = [
    f::FMA,
    f::MOVBE,
    f::XSAVE,
    f::AVX,
    f::F16C,
    f::BMI1,
    f::AVX2,
    f::BMI2,
    f::ABM,
];

const V4: [Feature; 5] = [
    f::AVX512F,
    f::AVX512DQ,
    f::AVX512CD,
    f::AVX512BW,
    f::AVX512VL,
];

/// Shown at any level where the host has them.
const IF_THE_HOST_HAS: [Feature; 51] = [
    // For virtual-8086 mode, which a 64-bit guest never enters; emulated hosts do not have it.
    f::VME,
    // Decided elsewhere: by --nested and by KVM's capabilities.
    f::VMX,
    f::SVM,
    f::TSC_DEADLINE,
    f::INVTSC,
    // System features.
    f::PCLMULQDQ,
    f::AES,
    f::RDRAND,
    f::PCID,
    f::INVPCID,
    f::FSGSBASE,
    f::TSC_ADJUST,
    f::SMEP,
    f::SMAP,
    f::UMIP,
    f::ERMS,
    f::CMP_LEGACY,
    f::CR8_LEGACY,
    f::PREFETCHW,
    f::TOPOEXT,
    f::PDPE1GB,
    f::RDTSCP,
    // Mitigations, and bits that report that none is needed.
    f::MD_CLEAR,
    f::SPEC_CTRL,
    f::STIBP,
    f::FLUSH_L1D,
    f::ARCH_CAPABILITIES,
    f::SSBD,
    f::INTEL_PSFD,
    f::IPRED_CTRL,
    f::RRSBA_CTRL,
    f::BHI_CTRL,
    f::MCDT_NO,
    f::AMD_IBPB,
    f::AMD_IBRS,
    f::AMD_STIBP,
    f::AMD_STIBP_ALWAYS_ON,
    f::AMD_SSBD,
    f::VIRT_SSBD,
    f::AMD_SSB_NO,
    f::AMD_PSFD,
    f::NO_NESTED_DATA_BP,
    f::LFENCE_RDTSC,
    f::VERW_CLEAR,
    f::NULL_SEL_CLR_BASE,
    f::AUTOIBRS,
    f::SBPB,
    f::IBPB_BRTYPE,
    f::SRSO_NO,
    f::TSA_SQ_NO,
    f::TSA_L1_NO,
];

/// A level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    V2,
    V3,
    V4,
}

impl Level {
    pub(super) fn of(model: CpuModel) -> Option<Self> {
        match model {
            CpuModel::Host => None,
            CpuModel::X86_64V2 => Some(Self::V2),
            CpuModel::X86_64V3 => Some(Self::V3),
            CpuModel::X86_64V4 => Some(Self::V4),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        }
    }

    /// The features that a host must have for it.
    pub(super) fn required(self) -> impl Iterator<Item = Feature> {
        let v3: &[Feature] = if self >= Self::V3 { &V3 } else { &[] };
        let v4: &[Feature] = if self >= Self::V4 { &V4 } else { &[] };
        V2.iter().chain(v3).chain(v4).copied()
    }

    /// The state components that XSAVE manages: x87, SSE, AVX; opmask and the two ZMM halves (SDM vol. 1,
    /// "XSAVE-Managed State").
    fn xcr0(self) -> u32 {
        match self {
            Self::V2 => 0,
            Self::V3 => 0x07,
            Self::V4 => 0xe7,
        }
    }

    /// Family, model and stepping (leaf 1, EAX): Haswell-EP, Skylake-SP; Zen, Zen 4.
    fn signature(self, vendor: CpuVendor) -> u32 {
        match (vendor, self) {
            (CpuVendor::Intel | CpuVendor::Other, Self::V2 | Self::V3) => 0x0003_06f2,
            (CpuVendor::Intel | CpuVendor::Other, Self::V4) => 0x0005_0654,
            (CpuVendor::Amd, Self::V2 | Self::V3) => 0x0080_0f12,
            (CpuVendor::Amd, Self::V4) => 0x00a1_0f11,
        }
    }

    /// Reduces the host's CPUID to the level.
    pub(super) fn apply(self, host: &[CpuidEntry], vendor: CpuVendor) -> Vec<CpuidEntry> {
        let amd = vendor == CpuVendor::Amd;
        let mut entries: Vec<CpuidEntry> = host
            .iter()
            .filter(|e| self.keeps(e, amd))
            .copied()
            .collect();
        for entry in &mut entries {
            self.cut(entry, vendor);
        }
        for feature in self.required().chain(IF_THE_HOST_HAS) {
            feature.set(&mut entries, feature.is_in(host));
        }
        self.size_of_xsave_area(&mut entries);
        entries.extend(self.brand());
        entries.extend(caches(if amd { 0x8000_001d } else { 4 }));
        entries
    }

    /// Whether a guest of this level sees a leaf; brand and caches are fixed values.
    fn keeps(self, entry: &CpuidEntry, amd: bool) -> bool {
        match entry.function {
            0 | 1 | 6 | 0xb | 0x8000_0000 | 0x8000_0001 | 0x8000_0005..=0x8000_0008 => true,
            2 => !amd,
            7 => entry.index == 0 || entry.index == 2,
            0xd => {
                entry.index < 2 && self.xcr0() != 0 || self.xcr0() >> entry.index.min(31) & 1 != 0
            }
            0x8000_000a | 0x8000_001e | 0x8000_0021 => amd,
            _ => false,
        }
    }

    fn cut(self, entry: &mut CpuidEntry, vendor: CpuVendor) {
        let amd = vendor == CpuVendor::Amd;
        let CpuidEntry { eax, ebx, edx, .. } = *entry;
        let registers = match (entry.function, entry.index) {
            (0, _) => [eax.min(0xd), ebx, entry.ecx, edx],
            (1, _) => [self.signature(vendor), ebx, 0, 0],
            // One descriptor that refers to leaf 4.
            (2, _) => [0x0000_ff01, 0, 0, 0],
            (7, 0) => [eax, 0, 0, 0],
            (7, _) => [0; 4],
            (0xd, 0) => [eax & self.xcr0(), 0, 0, 0],
            // XSAVEOPT, XSAVEC, XGETBV with ECX = 1, XSAVES; no supervisor state.
            (0xd, 1) => [eax & 0xf, ebx, 0, 0],
            (0x8000_0000, _) => [
                eax.min(if amd { 0x8000_0021 } else { 0x8000_0008 }),
                0,
                0,
                0,
            ],
            // AMD repeats the signature and bits of leaf 1 here.
            (0x8000_0001, _) if amd => [self.signature(vendor), 0, 0, edx & 0x0183_f3ff],
            (0x8000_0001, _) => [0; 4],
            // L1 of 32 KiB each, L2 of 1 MiB, L3 of 16 MiB, in AMD's older form; nothing about TLBs.
            (0x8000_0005, _) => [0, 0, 0x2008_0140, 0x2008_0140],
            (0x8000_0006, _) => [0, 0, 0x0400_8140, 0x0080_8140],
            (0x8000_0007, _) => [0; 4],
            // 48 bits of virtual addresses and at most 46 of physical ones.
            (0x8000_0008, _) => [48 << 8 | (eax & 0xff).min(46), 0, 0, 0],
            (0x8000_0021, _) => [0, ebx, 0, edx],
            _ => return,
        };
        [entry.eax, entry.ebx, entry.ecx, entry.edx] = registers;
    }

    /// Leaf 0xD's total size, for the components that are left.
    fn size_of_xsave_area(self, entries: &mut [CpuidEntry]) {
        // The legacy region and the header.
        let size = entries
            .iter()
            .filter(|e| e.function == 0xd && e.index >= 2)
            .map(|e| e.eax.saturating_add(e.ebx))
            .fold(576, u32::max);
        if let Some(entry) = entries
            .iter_mut()
            .find(|e| e.function == 0xd && e.index == 0)
        {
            (entry.ebx, entry.ecx) = (size, size);
        }
    }

    fn brand(self) -> [CpuidEntry; 3] {
        let mut text = [0; 48];
        for (to, from) in text
            .iter_mut()
            .zip(format!("hypernest {}", self.name()).bytes())
        {
            *to = from;
        }
        let word = |at: usize| {
            let bytes = [text[at], text[at + 1], text[at + 2], text[at + 3]];
            u32::from_le_bytes(bytes)
        };
        [(0x8000_0002, 0), (0x8000_0003, 16), (0x8000_0004, 32)].map(|(function, at)| CpuidEntry {
            function,
            eax: word(at),
            ebx: word(at + 4),
            ecx: word(at + 8),
            edx: word(at + 12),
            ..CpuidEntry::default()
        })
    }
}

/// The caches of every level, in the form that leaf 4 and AMD's 0x8000001D share; the sharing fields are
/// filled in with the topology.
fn caches(function: u32) -> [CpuidEntry; 5] {
    // (type, level, ways, sets); lines of 64 bytes. The last one ends the list.
    let caches = [
        (DATA_CACHE, 1, 8, 64),
        (INSTRUCTION_CACHE, 1, 8, 64),
        (UNIFIED_CACHE, 2, 16, 1024),
        (UNIFIED_CACHE, 3, 16, 16384),
        (0, 0, 1, 1),
    ];
    let mut index = 0;
    caches.map(|(kind, level, ways, sets): (u32, u32, u32, u32)| {
        let self_initializing = 1 << 8;
        let entry = CpuidEntry {
            function,
            index,
            indexed: true,
            eax: if kind == 0 {
                0
            } else {
                kind | level << 5 | self_initializing
            },
            ebx: if kind == 0 { 0 } else { (ways - 1) << 22 | 63 },
            ecx: sets - 1,
            edx: 0,
        };
        index += 1;
        entry
    })
}
