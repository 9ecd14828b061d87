//! Basic exit reasons (SDM volume 3, appendix C).

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal, $text:literal;)*) => {
        $($(#[doc = $doc])* pub const $name: u16 = $number;)*

        /// Every reason and its name.
        pub const ALL: &[(u16, &str)] = &[$(($number, $text)),*];

        /// A reason's name.
        #[must_use]
        pub const fn name(reason: u16) -> Option<&'static str> {
            match reason {
                $($number => Some($text),)*
                _ => None,
            }
        }
    };
}

/// Bit of the exit-reason field: the entry failed while it loaded guest state.
pub const ENTRY_FAILED: u32 = 1 << 31;
/// Bit of the exit-reason field: the exit was from an enclave.
pub const FROM_ENCLAVE: u32 = 1 << 27;

/// The basic reason in an exit-reason field.
#[must_use]
pub const fn basic(field: u32) -> u16 {
    let [low, high, ..] = field.to_le_bytes();
    u16::from_le_bytes([low, high])
}

reasons! {
    /// Exception or NMI.
    EXCEPTION_OR_NMI = 0, "exception-nmi";
    /// External interrupt.
    EXTERNAL_INTERRUPT = 1, "external-interrupt";
    /// Triple fault.
    TRIPLE_FAULT = 2, "triple-fault";
    /// INIT signal.
    INIT = 3, "init";
    /// Start-up IPI.
    STARTUP_IPI = 4, "startup-ipi";
    /// I/O system-management interrupt.
    IO_SMI = 5, "io-smi";
    /// Other system-management interrupt.
    OTHER_SMI = 6, "other-smi";
    /// Interrupt window.
    INTERRUPT_WINDOW = 7, "interrupt-window";
    /// NMI window.
    NMI_WINDOW = 8, "nmi-window";
    /// Task switch.
    TASK_SWITCH = 9, "task-switch";
    /// CPUID.
    CPUID = 10, "cpuid";
    /// GETSEC.
    GETSEC = 11, "getsec";
    /// HLT.
    HLT = 12, "hlt";
    /// INVD.
    INVD = 13, "invd";
    /// INVLPG.
    INVLPG = 14, "invlpg";
    /// RDPMC.
    RDPMC = 15, "rdpmc";
    /// RDTSC.
    RDTSC = 16, "rdtsc";
    /// RSM.
    RSM = 17, "rsm";
    /// VMCALL.
    VMCALL = 18, "vmcall";
    /// VMCLEAR.
    VMCLEAR = 19, "vmclear";
    /// VMLAUNCH.
    VMLAUNCH = 20, "vmlaunch";
    /// VMPTRLD.
    VMPTRLD = 21, "vmptrld";
    /// VMPTRST.
    VMPTRST = 22, "vmptrst";
    /// VMREAD.
    VMREAD = 23, "vmread";
    /// VMRESUME.
    VMRESUME = 24, "vmresume";
    /// VMWRITE.
    VMWRITE = 25, "vmwrite";
    /// VMXOFF.
    VMXOFF = 26, "vmxoff";
    /// VMXON.
    VMXON = 27, "vmxon";
    /// Access to a control register.
    CONTROL_REGISTER = 28, "control-register";
    /// Access to a debug register.
    DEBUG_REGISTER = 29, "debug-register";
    /// Port access.
    IO = 30, "io";
    /// RDMSR.
    RDMSR = 31, "rdmsr";
    /// WRMSR.
    WRMSR = 32, "wrmsr";
    /// The entry found invalid guest state.
    INVALID_GUEST_STATE = 33, "invalid-guest-state";
    /// The entry could not load an MSR.
    MSR_LOAD_FAILED = 34, "msr-load-failed";
    /// MWAIT.
    MWAIT = 36, "mwait";
    /// Monitor trap flag.
    MONITOR_TRAP_FLAG = 37, "monitor-trap-flag";
    /// MONITOR.
    MONITOR = 39, "monitor";
    /// PAUSE.
    PAUSE = 40, "pause";
    /// Machine check during the entry.
    MACHINE_CHECK = 41, "machine-check";
    /// The task priority fell below its threshold.
    TPR_BELOW_THRESHOLD = 43, "tpr-below-threshold";
    /// Access to the APIC-access page.
    APIC_ACCESS = 44, "apic-access";
    /// Virtualized EOI.
    VIRTUALIZED_EOI = 45, "virtualized-eoi";
    /// LGDT, LIDT, SGDT or SIDT.
    GDTR_OR_IDTR = 46, "gdtr-idtr";
    /// LLDT, LTR, SLDT or STR.
    LDTR_OR_TR = 47, "ldtr-tr";
    /// EPT violation.
    EPT_VIOLATION = 48, "ept-violation";
    /// EPT misconfiguration.
    EPT_MISCONFIGURATION = 49, "ept-misconfiguration";
    /// INVEPT.
    INVEPT = 50, "invept";
    /// RDTSCP.
    RDTSCP = 51, "rdtscp";
    /// The VMX-preemption timer expired.
    PREEMPTION_TIMER = 52, "preemption-timer";
    /// INVVPID.
    INVVPID = 53, "invvpid";
    /// WBINVD or WBNOINVD.
    WBINVD = 54, "wbinvd";
    /// XSETBV.
    XSETBV = 55, "xsetbv";
    /// Write to the virtual-APIC page.
    APIC_WRITE = 56, "apic-write";
    /// RDRAND.
    RDRAND = 57, "rdrand";
    /// INVPCID.
    INVPCID = 58, "invpcid";
    /// VMFUNC.
    VMFUNC = 59, "vmfunc";
    /// ENCLS.
    ENCLS = 60, "encls";
    /// RDSEED.
    RDSEED = 61, "rdseed";
    /// The page-modification log is full.
    PML_FULL = 62, "pml-full";
    /// XSAVES.
    XSAVES = 63, "xsaves";
    /// XRSTORS.
    XRSTORS = 64, "xrstors";
    /// PCONFIG.
    PCONFIG = 65, "pconfig";
    /// Sub-page permissions.
    SUB_PAGE = 66, "sub-page";
    /// UMWAIT.
    UMWAIT = 67, "umwait";
    /// TPAUSE.
    TPAUSE = 68, "tpause";
    /// LOADIWKEY.
    LOADIWKEY = 69, "loadiwkey";
    /// ENCLV.
    ENCLV = 70, "enclv";
    /// ENQCMD whose PASID could not be translated.
    ENQCMD = 72, "enqcmd";
    /// ENQCMDS whose PASID could not be translated.
    ENQCMDS = 73, "enqcmds";
    /// Bus lock.
    BUS_LOCK = 74, "bus-lock";
    /// No event window for too long.
    NOTIFY = 75, "notify";
}
