//! Exit codes (APM volume 2, appendix C).

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal, $text:literal;)*) => {
        $($(#[doc = $doc])* pub const $name: u64 = $number;)*

        /// Every code and its name, except [`INVALID`] and those with a register or exception number.
        pub const ALL: &[(u64, &str)] = &[$(($number, $text)),*];

        /// A code's name.
        #[must_use]
        pub const fn name(code: u64) -> Option<&'static str> {
            match code {
                $($number => Some($text),)*
                INVALID | INVALID_LOW => Some("invalid-state"),
                0..0x10 => Some("cr-read"),
                0x10..0x20 => Some("cr-write"),
                0x20..0x30 => Some("dr-read"),
                0x30..0x40 => Some("dr-write"),
                EXCEPTION..=EXCEPTION_LAST => Some("exception"),
                0x90..0xA0 => Some("cr-write-trap"),
                _ => None,
            }
        }
    };
}

/// Read of CR0; the register's number is added.
pub const CR0_READ: u64 = 0x000;
/// Write of CR0; the register's number is added.
pub const CR0_WRITE: u64 = 0x010;
/// Write of CR3.
pub const CR3_WRITE: u64 = 0x013;
/// Read of DR0; the register's number is added.
pub const DR0_READ: u64 = 0x020;
/// Write of DR0; the register's number is added.
pub const DR0_WRITE: u64 = 0x030;
/// Exception 0; the vector is added.
pub const EXCEPTION: u64 = 0x040;
/// Exception 14.
pub const PAGE_FAULT: u64 = 0x04E;
/// Exception 31.
pub const EXCEPTION_LAST: u64 = 0x05F;
/// A write of CR0 has completed; the register's number is added.
pub const CR0_WRITE_TRAP: u64 = 0x090;

/// VMRUN found invalid state.
pub const INVALID: u64 = u64::MAX;
/// [`INVALID`] where only the low half is reported, as by KVM's tracepoints.
pub const INVALID_LOW: u64 = 0xFFFF_FFFF;

codes! {
    /// Physical interrupt.
    INTERRUPT = 0x060, "interrupt";
    /// NMI.
    NMI = 0x061, "nmi";
    /// System-management interrupt.
    SMI = 0x062, "smi";
    /// INIT.
    INIT = 0x063, "init";
    /// A virtual interrupt could be taken.
    VIRTUAL_INTERRUPT = 0x064, "virtual-interrupt";
    /// Write of CR0 that changes more than TS and MP.
    CR0_SELECTIVE_WRITE = 0x065, "cr0-selective-write";
    /// SIDT.
    SIDT = 0x066, "sidt";
    /// SGDT.
    SGDT = 0x067, "sgdt";
    /// SLDT.
    SLDT = 0x068, "sldt";
    /// STR.
    STR = 0x069, "str";
    /// LIDT.
    LIDT = 0x06A, "lidt";
    /// LGDT.
    LGDT = 0x06B, "lgdt";
    /// LLDT.
    LLDT = 0x06C, "lldt";
    /// LTR.
    LTR = 0x06D, "ltr";
    /// RDTSC.
    RDTSC = 0x06E, "rdtsc";
    /// RDPMC.
    RDPMC = 0x06F, "rdpmc";
    /// PUSHF.
    PUSHF = 0x070, "pushf";
    /// POPF.
    POPF = 0x071, "popf";
    /// CPUID.
    CPUID = 0x072, "cpuid";
    /// RSM.
    RSM = 0x073, "rsm";
    /// IRET.
    IRET = 0x074, "iret";
    /// INT n.
    SOFTWARE_INTERRUPT = 0x075, "software-interrupt";
    /// INVD.
    INVD = 0x076, "invd";
    /// PAUSE.
    PAUSE = 0x077, "pause";
    /// HLT.
    HLT = 0x078, "hlt";
    /// INVLPG.
    INVLPG = 0x079, "invlpg";
    /// INVLPGA.
    INVLPGA = 0x07A, "invlpga";
    /// Port access.
    IO = 0x07B, "io";
    /// RDMSR or WRMSR: EXITINFO1 is 0 or 1.
    MSR = 0x07C, "msr";
    /// Task switch.
    TASK_SWITCH = 0x07D, "task-switch";
    /// Frozen by an x87 error.
    FERR_FREEZE = 0x07E, "ferr-freeze";
    /// Shut down by a triple fault.
    SHUTDOWN = 0x07F, "shutdown";
    /// VMRUN.
    VMRUN = 0x080, "vmrun";
    /// VMMCALL.
    VMMCALL = 0x081, "vmmcall";
    /// VMLOAD.
    VMLOAD = 0x082, "vmload";
    /// VMSAVE.
    VMSAVE = 0x083, "vmsave";
    /// STGI.
    STGI = 0x084, "stgi";
    /// CLGI.
    CLGI = 0x085, "clgi";
    /// SKINIT.
    SKINIT = 0x086, "skinit";
    /// RDTSCP.
    RDTSCP = 0x087, "rdtscp";
    /// INT1.
    ICEBP = 0x088, "icebp";
    /// WBINVD or WBNOINVD.
    WBINVD = 0x089, "wbinvd";
    /// MONITOR or MONITORX.
    MONITOR = 0x08A, "monitor";
    /// MWAIT or MWAITX.
    MWAIT = 0x08B, "mwait";
    /// MWAIT or MWAITX while the monitor is armed.
    MWAIT_ARMED = 0x08C, "mwait-armed";
    /// XSETBV.
    XSETBV = 0x08D, "xsetbv";
    /// RDPRU.
    RDPRU = 0x08E, "rdpru";
    /// A write of EFER has completed.
    EFER_WRITE_TRAP = 0x08F, "efer-write-trap";
    /// INVLPGB.
    INVLPGB = 0x0A0, "invlpgb";
    /// INVLPGB with an illegal operand.
    INVLPGB_ILLEGAL = 0x0A1, "invlpgb-illegal";
    /// INVPCID.
    INVPCID = 0x0A2, "invpcid";
    /// MCOMMIT.
    MCOMMIT = 0x0A3, "mcommit";
    /// TLBSYNC.
    TLBSYNC = 0x0A4, "tlbsync";
    /// Nested page fault: EXITINFO1 is the error code, EXITINFO2 the GPA.
    NESTED_PAGE_FAULT = 0x400, "nested-page-fault";
    /// AVIC could not deliver an IPI.
    AVIC_INCOMPLETE_IPI = 0x401, "avic-incomplete-ipi";
    /// AVIC does not accelerate this access.
    AVIC_NO_ACCELERATION = 0x402, "avic-no-acceleration";
    /// VMGEXIT.
    VMGEXIT = 0x403, "vmgexit";
    /// Synthetic, from the hypervisor below (TLFS): EXITINFO1 is [`TRAP_AFTER_FLUSH`].
    HYPERVISOR = 0xF000_0000, "hypervisor";
}

/// EXITINFO1 of [`HYPERVISOR`]: L0 handled a direct flush while
/// [`crate::assist::PartitionAssist::tlb_lock_count`] was not zero.
pub const TRAP_AFTER_FLUSH: u64 = 1;
