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
    /// Whether `entries` contain it.
    pub fn is_in(self, entries: &[CpuidEntry]) -> bool {
        entries
            .iter()
            .find(|e| e.function == self.function && e.index == self.index)
            .is_some_and(|e| e.reg(self.reg) & (1 << self.bit) != 0)
    }

    /// Sets or clears it, if its leaf exists.
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

/// AMD repeats these bits of CPUID 1.EDX in 0x80000001.EDX (APM vol. 3, appendix E).
const REPEATED_BY_AMD: u32 = 0x0183_f3ff;

/// The feature of a bit of CPUID.
pub fn at(function: u32, index: u32, reg: Reg, bit: u8) -> Option<Feature> {
    let repeated = (function, index, reg) == (0x8000_0001, 0, Reg::Edx);
    let function = match repeated && REPEATED_BY_AMD >> bit & 1 != 0 {
        true => 1,
        false => function,
    };
    let place = (function, index, reg, bit);
    let mut features = ALL.iter();
    features
        .find(|f| (f.function, f.index, f.reg, f.bit) == place)
        .copied()
}

/// The bits of a register of CPUID that are features with a name.
pub fn named(function: u32, index: u32, reg: Reg) -> u32 {
    let bits = (0..32).filter(|bit| at(function, index, reg, *bit).is_some());
    bits.fold(0, |bits, bit| bits | 1 << bit)
}

/// Clears the bits of `feature` in `entries`, including AMD's copy.
pub fn hide(entries: &mut [CpuidEntry], feature: Feature) {
    feature.set(entries, false);
    let Feature {
        function,
        index,
        reg,
        bit,
        ..
    } = feature;
    if (function, index, reg) == (1, 0, Reg::Edx) && REPEATED_BY_AMD >> bit & 1 != 0 {
        let repeated = Feature {
            function: 0x8000_0001,
            ..feature
        };
        repeated.set(entries, false);
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

        /// All named bits.
        pub const ALL: &[Feature] = &[$($constant),*];
    };
}

// Intel SDM vol. 2A, "CPUID"; AMD APM vol. 3, appendix E.
features! {
    SSE3 "sse3" 1 . 0 Ecx 0;
    PCLMULQDQ "pclmulqdq" 1 . 0 Ecx 1;
    DTES64 "dtes64" 1 . 0 Ecx 2;
    MONITOR "monitor" 1 . 0 Ecx 3;
    DS_CPL "ds_cpl" 1 . 0 Ecx 4;
    VMX "vmx" 1 . 0 Ecx 5;
    SMX "smx" 1 . 0 Ecx 6;
    SSSE3 "ssse3" 1 . 0 Ecx 9;
    FMA "fma" 1 . 0 Ecx 12;
    CX16 "cx16" 1 . 0 Ecx 13;
    XTPR "xtpr" 1 . 0 Ecx 14;
    PDCM "pdcm" 1 . 0 Ecx 15;
    PCID "pcid" 1 . 0 Ecx 17;
    DCA "dca" 1 . 0 Ecx 18;
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
    DS "ds" 1 . 0 Edx 21;
    ACPI "acpi" 1 . 0 Edx 22;
    MMX "mmx" 1 . 0 Edx 23;
    FXSR "fxsr" 1 . 0 Edx 24;
    SSE "sse" 1 . 0 Edx 25;
    SSE2 "sse2" 1 . 0 Edx 26;
    SELFSNOOP "ss" 1 . 0 Edx 27;
    HTT "ht" 1 . 0 Edx 28;
    ARAT "arat" 6 . 0 Eax 2;
    FSGSBASE "fsgsbase" 7 . 0 Ebx 0;
    TSC_ADJUST "tsc_adjust" 7 . 0 Ebx 1;
    SGX "sgx" 7 . 0 Ebx 2;
    BMI1 "bmi1" 7 . 0 Ebx 3;
    HLE "hle" 7 . 0 Ebx 4;
    AVX2 "avx2" 7 . 0 Ebx 5;
    FDP_EXCPTN_ONLY "fdp-excptn-only" 7 . 0 Ebx 6;
    SMEP "smep" 7 . 0 Ebx 7;
    BMI2 "bmi2" 7 . 0 Ebx 8;
    ERMS "erms" 7 . 0 Ebx 9;
    INVPCID "invpcid" 7 . 0 Ebx 10;
    RTM "rtm" 7 . 0 Ebx 11;
    ZERO_FCS_FDS "zero-fcs-fds" 7 . 0 Ebx 13;
    MPX "mpx" 7 . 0 Ebx 14;
    AVX512F "avx512f" 7 . 0 Ebx 16;
    AVX512DQ "avx512dq" 7 . 0 Ebx 17;
    RDSEED "rdseed" 7 . 0 Ebx 18;
    ADX "adx" 7 . 0 Ebx 19;
    SMAP "smap" 7 . 0 Ebx 20;
    AVX512IFMA "avx512ifma" 7 . 0 Ebx 21;
    CLFLUSHOPT "clflushopt" 7 . 0 Ebx 23;
    CLWB "clwb" 7 . 0 Ebx 24;
    INTEL_PT "intel_pt" 7 . 0 Ebx 25;
    AVX512PF "avx512pf" 7 . 0 Ebx 26;
    AVX512ER "avx512er" 7 . 0 Ebx 27;
    AVX512CD "avx512cd" 7 . 0 Ebx 28;
    SHA_NI "sha_ni" 7 . 0 Ebx 29;
    AVX512BW "avx512bw" 7 . 0 Ebx 30;
    AVX512VL "avx512vl" 7 . 0 Ebx 31;
    PREFETCHWT1 "prefetchwt1" 7 . 0 Ecx 0;
    AVX512VBMI "avx512vbmi" 7 . 0 Ecx 1;
    UMIP "umip" 7 . 0 Ecx 2;
    PKU "pku" 7 . 0 Ecx 3;
    OSPKE "ospke" 7 . 0 Ecx 4;
    WAITPKG "waitpkg" 7 . 0 Ecx 5;
    AVX512_VBMI2 "avx512_vbmi2" 7 . 0 Ecx 6;
    SHSTK "shstk" 7 . 0 Ecx 7;
    GFNI "gfni" 7 . 0 Ecx 8;
    VAES "vaes" 7 . 0 Ecx 9;
    VPCLMULQDQ "vpclmulqdq" 7 . 0 Ecx 10;
    AVX512_VNNI "avx512_vnni" 7 . 0 Ecx 11;
    AVX512_BITALG "avx512_bitalg" 7 . 0 Ecx 12;
    AVX512_VPOPCNTDQ "avx512_vpopcntdq" 7 . 0 Ecx 14;
    LA57 "la57" 7 . 0 Ecx 16;
    RDPID "rdpid" 7 . 0 Ecx 22;
    BUS_LOCK_DETECT "bus_lock_detect" 7 . 0 Ecx 24;
    CLDEMOTE "cldemote" 7 . 0 Ecx 25;
    MOVDIRI "movdiri" 7 . 0 Ecx 27;
    MOVDIR64B "movdir64b" 7 . 0 Ecx 28;
    SGX_LC "sgx_lc" 7 . 0 Ecx 30;
    AVX512_4VNNIW "avx512_4vnniw" 7 . 0 Edx 2;
    AVX512_4FMAPS "avx512_4fmaps" 7 . 0 Edx 3;
    FSRM "fsrm" 7 . 0 Edx 4;
    AVX512_VP2INTERSECT "avx512_vp2intersect" 7 . 0 Edx 8;
    MD_CLEAR "md_clear" 7 . 0 Edx 10;
    SERIALIZE "serialize" 7 . 0 Edx 14;
    TSXLDTRK "tsxldtrk" 7 . 0 Edx 16;
    ARCH_LBR "arch_lbr" 7 . 0 Edx 19;
    IBT "ibt" 7 . 0 Edx 20;
    AMX_BF16 "amx_bf16" 7 . 0 Edx 22;
    AVX512_FP16 "avx512_fp16" 7 . 0 Edx 23;
    AMX_TILE "amx_tile" 7 . 0 Edx 24;
    AMX_INT8 "amx_int8" 7 . 0 Edx 25;
    SPEC_CTRL "spec_ctrl" 7 . 0 Edx 26;
    STIBP "stibp" 7 . 0 Edx 27;
    FLUSH_L1D "flush_l1d" 7 . 0 Edx 28;
    ARCH_CAPABILITIES "arch_capabilities" 7 . 0 Edx 29;
    SSBD "ssbd" 7 . 0 Edx 31;
    SHA512 "sha512" 7 . 1 Eax 0;
    SM3 "sm3" 7 . 1 Eax 1;
    SM4 "sm4" 7 . 1 Eax 2;
    AVX_VNNI "avx_vnni" 7 . 1 Eax 4;
    AVX512_BF16 "avx512_bf16" 7 . 1 Eax 5;
    CMPCCXADD "cmpccxadd" 7 . 1 Eax 7;
    FZRM "fzrm" 7 . 1 Eax 10;
    FSRS "fsrs" 7 . 1 Eax 11;
    FSRC "fsrc" 7 . 1 Eax 12;
    AMX_FP16 "amx_fp16" 7 . 1 Eax 21;
    AVX_IFMA "avx_ifma" 7 . 1 Eax 23;
    LAM "lam" 7 . 1 Eax 26;
    AVX_VNNI_INT8 "avx_vnni_int8" 7 . 1 Edx 4;
    AVX_NE_CONVERT "avx_ne_convert" 7 . 1 Edx 5;
    AMX_COMPLEX "amx_complex" 7 . 1 Edx 8;
    AVX_VNNI_INT16 "avx_vnni_int16" 7 . 1 Edx 10;
    PREFETCHITI "prefetchiti" 7 . 1 Edx 14;
    AVX10 "avx10" 7 . 1 Edx 19;
    INTEL_PSFD "intel_psfd" 7 . 2 Edx 0;
    IPRED_CTRL "ipred_ctrl" 7 . 2 Edx 1;
    RRSBA_CTRL "rrsba_ctrl" 7 . 2 Edx 2;
    DDPD_U "ddpd_u" 7 . 2 Edx 3;
    BHI_CTRL "bhi_ctrl" 7 . 2 Edx 4;
    MCDT_NO "mcdt_no" 7 . 2 Edx 5;
    XSAVEOPT "xsaveopt" 0xd . 1 Eax 0;
    XSAVEC "xsavec" 0xd . 1 Eax 1;
    XGETBV1 "xgetbv1" 0xd . 1 Eax 2;
    XSAVES "xsaves" 0xd . 1 Eax 3;
    XFD "xfd" 0xd . 1 Eax 4;
    LAHF_LM "lahf_lm" 0x8000_0001 . 0 Ecx 0;
    CMP_LEGACY "cmp_legacy" 0x8000_0001 . 0 Ecx 1;
    SVM "svm" 0x8000_0001 . 0 Ecx 2;
    CR8_LEGACY "cr8_legacy" 0x8000_0001 . 0 Ecx 4;
    ABM "abm" 0x8000_0001 . 0 Ecx 5;
    SSE4A "sse4a" 0x8000_0001 . 0 Ecx 6;
    MISALIGNSSE "misalignsse" 0x8000_0001 . 0 Ecx 7;
    PREFETCHW "3dnowprefetch" 0x8000_0001 . 0 Ecx 8;
    OSVW "osvw" 0x8000_0001 . 0 Ecx 9;
    XOP "xop" 0x8000_0001 . 0 Ecx 11;
    FMA4 "fma4" 0x8000_0001 . 0 Ecx 16;
    TBM "tbm" 0x8000_0001 . 0 Ecx 21;
    TOPOEXT "topoext" 0x8000_0001 . 0 Ecx 22;
    PERFCTR_CORE "perfctr_core" 0x8000_0001 . 0 Ecx 23;
    SYSCALL "syscall" 0x8000_0001 . 0 Edx 11;
    NX "nx" 0x8000_0001 . 0 Edx 20;
    MMXEXT "mmxext" 0x8000_0001 . 0 Edx 22;
    FXSR_OPT "fxsr_opt" 0x8000_0001 . 0 Edx 25;
    PDPE1GB "pdpe1gb" 0x8000_0001 . 0 Edx 26;
    RDTSCP "rdtscp" 0x8000_0001 . 0 Edx 27;
    LM "lm" 0x8000_0001 . 0 Edx 29;
    AMD_3DNOWEXT "3dnowext" 0x8000_0001 . 0 Edx 30;
    AMD_3DNOW "3dnow" 0x8000_0001 . 0 Edx 31;
    OVERFLOW_RECOV "overflow_recov" 0x8000_0007 . 0 Ebx 0;
    SUCCOR "succor" 0x8000_0007 . 0 Ebx 1;
    INVTSC "invtsc" 0x8000_0007 . 0 Edx 8;
    CLZERO "clzero" 0x8000_0008 . 0 Ebx 0;
    XSAVEERPTR "xsaveerptr" 0x8000_0008 . 0 Ebx 2;
    WBNOINVD "wbnoinvd" 0x8000_0008 . 0 Ebx 9;
    AMD_IBPB "amd_ibpb" 0x8000_0008 . 0 Ebx 12;
    AMD_IBRS "amd_ibrs" 0x8000_0008 . 0 Ebx 14;
    AMD_STIBP "amd_stibp" 0x8000_0008 . 0 Ebx 15;
    AMD_STIBP_ALWAYS_ON "amd_stibp_always_on" 0x8000_0008 . 0 Ebx 17;
    AMD_SSBD "amd_ssbd" 0x8000_0008 . 0 Ebx 24;
    VIRT_SSBD "virt_ssbd" 0x8000_0008 . 0 Ebx 25;
    AMD_SSB_NO "amd_ssb_no" 0x8000_0008 . 0 Ebx 26;
    AMD_PSFD "amd_psfd" 0x8000_0008 . 0 Ebx 28;
    NPT "npt" 0x8000_000a . 0 Edx 0;
    LBRV "lbrv" 0x8000_000a . 0 Edx 1;
    SVM_LOCK "svm_lock" 0x8000_000a . 0 Edx 2;
    NRIP_SAVE "nrip_save" 0x8000_000a . 0 Edx 3;
    TSC_SCALE "tsc_scale" 0x8000_000a . 0 Edx 4;
    VMCB_CLEAN "vmcb_clean" 0x8000_000a . 0 Edx 5;
    FLUSHBYASID "flushbyasid" 0x8000_000a . 0 Edx 6;
    DECODEASSISTS "decodeassists" 0x8000_000a . 0 Edx 7;
    PAUSEFILTER "pausefilter" 0x8000_000a . 0 Edx 10;
    PFTHRESHOLD "pfthreshold" 0x8000_000a . 0 Edx 12;
    AVIC "avic" 0x8000_000a . 0 Edx 13;
    V_VMSAVE_VMLOAD "v_vmsave_vmload" 0x8000_000a . 0 Edx 15;
    VGIF "vgif" 0x8000_000a . 0 Edx 16;
    VNMI "vnmi" 0x8000_000a . 0 Edx 25;
    SVME_ADDR_CHK "svme_addr_chk" 0x8000_000a . 0 Edx 28;
    NO_NESTED_DATA_BP "no_nested_data_bp" 0x8000_0021 . 0 Eax 0;
    WRMSR_XX_BASE_NS "wrmsr_xx_base_ns" 0x8000_0021 . 0 Eax 1;
    LFENCE_RDTSC "lfence_rdtsc" 0x8000_0021 . 0 Eax 2;
    VERW_CLEAR "verw_clear" 0x8000_0021 . 0 Eax 5;
    NULL_SEL_CLR_BASE "null_sel_clr_base" 0x8000_0021 . 0 Eax 6;
    AUTOIBRS "autoibrs" 0x8000_0021 . 0 Eax 8;
    NO_SMM_CTL_MSR "no_smm_ctl_msr" 0x8000_0021 . 0 Eax 9;
    FSRS_AMD "fsrs_amd" 0x8000_0021 . 0 Eax 10;
    FSRC_AMD "fsrc_amd" 0x8000_0021 . 0 Eax 11;
    GP_ON_USER_CPUID "gp_on_user_cpuid" 0x8000_0021 . 0 Eax 17;
    PREFETCHI "prefetchi" 0x8000_0021 . 0 Eax 20;
    SBPB "sbpb" 0x8000_0021 . 0 Eax 27;
    IBPB_BRTYPE "ibpb_brtype" 0x8000_0021 . 0 Eax 28;
    SRSO_NO "srso_no" 0x8000_0021 . 0 Eax 29;
    SRSO_USER_KERNEL_NO "srso_user_kernel_no" 0x8000_0021 . 0 Eax 30;
    TSA_SQ_NO "tsa_sq_no" 0x8000_0021 . 0 Ecx 1;
    TSA_L1_NO "tsa_l1_no" 0x8000_0021 . 0 Ecx 2;
    PERFMON_V2 "perfmon_v2" 0x8000_0022 . 0 Eax 0;
}
