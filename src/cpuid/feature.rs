//! CPUID feature bits by name (the names that Linux and QEMU use).

use std::fmt;

use super::CpuidEntry;
use crate::cpuid::Reg;

/// One feature bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// The leaf.
    pub function: u32,
    /// The sub-leaf.
    pub index: u32,
    /// The register.
    pub reg: Reg,
    /// The bit.
    pub bit: u8,
}

impl Feature {
    /// Whether `entries` have it.
    pub fn is_in(self, entries: &[CpuidEntry]) -> bool {
        entries
            .iter()
            .find(|e| e.function == self.function && e.index == self.index)
            .is_some_and(|e| e.reg(self.reg) & (1 << self.bit) != 0)
    }

    /// Sets or clears it, where its leaf is there.
    pub fn set(self, entries: &mut [CpuidEntry], on: bool) {
        for entry in entries
            .iter_mut()
            .filter(|e| e.function == self.function && e.index == self.index)
        {
            let register = entry.reg_mut(self.reg);
            *register = *register & !(1 << self.bit) | u32::from(on) << self.bit;
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

macro_rules! features {
    ($($constant:ident $name:literal $function:literal.$index:literal $reg:ident $bit:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`")]
            pub const $constant: Feature = Feature {
                name: $name,
                function: $function,
                index: $index,
                reg: Reg::$reg,
                bit: $bit,
            };
        )*

        /// Every bit that has a name here.
        pub const ALL: &[Feature] = &[$($constant),*];
    };
}

// Intel SDM vol. 2A, "CPUID"; AMD APM vol. 3, appendix E.
features! {
    SSE3 "sse3" 1 . 0 Ecx 0;
    PCLMULQDQ "pclmulqdq" 1 . 0 Ecx 1;
    VMX "vmx" 1 . 0 Ecx 5;
    SSSE3 "ssse3" 1 . 0 Ecx 9;
    FMA "fma" 1 . 0 Ecx 12;
    CX16 "cx16" 1 . 0 Ecx 13;
    PCID "pcid" 1 . 0 Ecx 17;
    SSE4_1 "sse4_1" 1 . 0 Ecx 19;
    SSE4_2 "sse4_2" 1 . 0 Ecx 20;
    X2APIC "x2apic" 1 . 0 Ecx 21;
    MOVBE "movbe" 1 . 0 Ecx 22;
    POPCNT "popcnt" 1 . 0 Ecx 23;
    TSC_DEADLINE "tsc_deadline_timer" 1 . 0 Ecx 24;
    AES "aes" 1 . 0 Ecx 25;
    XSAVE "xsave" 1 . 0 Ecx 26;
    OSXSAVE "osxsave" 1 . 0 Ecx 27;
    AVX "avx" 1 . 0 Ecx 28;
    F16C "f16c" 1 . 0 Ecx 29;
    RDRAND "rdrand" 1 . 0 Ecx 30;
    HYPERVISOR "hypervisor" 1 . 0 Ecx 31;
    MONITOR "monitor" 1 . 0 Ecx 3;
    FPU "fpu" 1 . 0 Edx 0;
    VME "vme" 1 . 0 Edx 1;
    DE "de" 1 . 0 Edx 2;
    PSE "pse" 1 . 0 Edx 3;
    TSC "tsc" 1 . 0 Edx 4;
    MSR "msr" 1 . 0 Edx 5;
    PAE "pae" 1 . 0 Edx 6;
    MCE "mce" 1 . 0 Edx 7;
    CX8 "cx8" 1 . 0 Edx 8;
    APIC "apic" 1 . 0 Edx 9;
    SEP "sep" 1 . 0 Edx 11;
    MTRR "mtrr" 1 . 0 Edx 12;
    PGE "pge" 1 . 0 Edx 13;
    MCA "mca" 1 . 0 Edx 14;
    CMOV "cmov" 1 . 0 Edx 15;
    PAT "pat" 1 . 0 Edx 16;
    PSE36 "pse36" 1 . 0 Edx 17;
    CLFLUSH "clflush" 1 . 0 Edx 19;
    MMX "mmx" 1 . 0 Edx 23;
    FXSR "fxsr" 1 . 0 Edx 24;
    SSE "sse" 1 . 0 Edx 25;
    SSE2 "sse2" 1 . 0 Edx 26;
    HTT "ht" 1 . 0 Edx 28;
    FSGSBASE "fsgsbase" 7 . 0 Ebx 0;
    TSC_ADJUST "tsc_adjust" 7 . 0 Ebx 1;
    SGX "sgx" 7 . 0 Ebx 2;
    BMI1 "bmi1" 7 . 0 Ebx 3;
    HLE "hle" 7 . 0 Ebx 4;
    AVX2 "avx2" 7 . 0 Ebx 5;
    SMEP "smep" 7 . 0 Ebx 7;
    BMI2 "bmi2" 7 . 0 Ebx 8;
    ERMS "erms" 7 . 0 Ebx 9;
    INVPCID "invpcid" 7 . 0 Ebx 10;
    RTM "rtm" 7 . 0 Ebx 11;
    AVX512F "avx512f" 7 . 0 Ebx 16;
    AVX512DQ "avx512dq" 7 . 0 Ebx 17;
    SMAP "smap" 7 . 0 Ebx 20;
    AVX512CD "avx512cd" 7 . 0 Ebx 28;
    AVX512BW "avx512bw" 7 . 0 Ebx 30;
    AVX512VL "avx512vl" 7 . 0 Ebx 31;
    UMIP "umip" 7 . 0 Ecx 2;
    OSPKE "ospke" 7 . 0 Ecx 4;
    SGX_LC "sgx_lc" 7 . 0 Ecx 30;
    MD_CLEAR "md_clear" 7 . 0 Edx 10;
    TSXLDTRK "tsxldtrk" 7 . 0 Edx 16;
    SPEC_CTRL "spec_ctrl" 7 . 0 Edx 26;
    STIBP "stibp" 7 . 0 Edx 27;
    FLUSH_L1D "flush_l1d" 7 . 0 Edx 28;
    ARCH_CAPABILITIES "arch_capabilities" 7 . 0 Edx 29;
    SSBD "ssbd" 7 . 0 Edx 31;
    INTEL_PSFD "intel_psfd" 7 . 2 Edx 0;
    IPRED_CTRL "ipred_ctrl" 7 . 2 Edx 1;
    RRSBA_CTRL "rrsba_ctrl" 7 . 2 Edx 2;
    BHI_CTRL "bhi_ctrl" 7 . 2 Edx 4;
    MCDT_NO "mcdt_no" 7 . 2 Edx 5;
    LAHF_LM "lahf_lm" 0x8000_0001 . 0 Ecx 0;
    CMP_LEGACY "cmp_legacy" 0x8000_0001 . 0 Ecx 1;
    SVM "svm" 0x8000_0001 . 0 Ecx 2;
    CR8_LEGACY "cr8_legacy" 0x8000_0001 . 0 Ecx 4;
    ABM "abm" 0x8000_0001 . 0 Ecx 5;
    PREFETCHW "3dnowprefetch" 0x8000_0001 . 0 Ecx 8;
    TOPOEXT "topoext" 0x8000_0001 . 0 Ecx 22;
    SYSCALL "syscall" 0x8000_0001 . 0 Edx 11;
    NX "nx" 0x8000_0001 . 0 Edx 20;
    PDPE1GB "pdpe1gb" 0x8000_0001 . 0 Edx 26;
    RDTSCP "rdtscp" 0x8000_0001 . 0 Edx 27;
    LM "lm" 0x8000_0001 . 0 Edx 29;
    INVTSC "invtsc" 0x8000_0007 . 0 Edx 8;
    AMD_IBPB "amd_ibpb" 0x8000_0008 . 0 Ebx 12;
    AMD_IBRS "amd_ibrs" 0x8000_0008 . 0 Ebx 14;
    AMD_STIBP "amd_stibp" 0x8000_0008 . 0 Ebx 15;
    AMD_STIBP_ALWAYS_ON "amd_stibp_always_on" 0x8000_0008 . 0 Ebx 17;
    AMD_SSBD "amd_ssbd" 0x8000_0008 . 0 Ebx 24;
    VIRT_SSBD "virt_ssbd" 0x8000_0008 . 0 Ebx 25;
    AMD_SSB_NO "amd_ssb_no" 0x8000_0008 . 0 Ebx 26;
    AMD_PSFD "amd_psfd" 0x8000_0008 . 0 Ebx 28;
    NO_NESTED_DATA_BP "no_nested_data_bp" 0x8000_0021 . 0 Eax 0;
    LFENCE_RDTSC "lfence_rdtsc" 0x8000_0021 . 0 Eax 2;
    VERW_CLEAR "verw_clear" 0x8000_0021 . 0 Eax 5;
    NULL_SEL_CLR_BASE "null_sel_clr_base" 0x8000_0021 . 0 Eax 6;
    AUTOIBRS "autoibrs" 0x8000_0021 . 0 Eax 8;
    SBPB "sbpb" 0x8000_0021 . 0 Eax 27;
    IBPB_BRTYPE "ibpb_brtype" 0x8000_0021 . 0 Eax 28;
    SRSO_NO "srso_no" 0x8000_0021 . 0 Eax 29;
    TSA_SQ_NO "tsa_sq_no" 0x8000_0021 . 0 Ecx 1;
    TSA_L1_NO "tsa_l1_no" 0x8000_0021 . 0 Ecx 2;
}
