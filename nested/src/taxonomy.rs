//! Exits by name and class, the same for both vendors, so that reports can count and compare them.

use core::fmt;

use crate::svm::exit_code as svm;
use crate::vmx::exit_reason as vmx;

/// The reason why a processor left a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Exit {
    /// A basic exit reason of VMX.
    Vmx(u16),
    /// An exit code of SVM.
    Svm(u64),
}

macro_rules! classes {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)*) => {
        /// The class of an exit.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Class {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Class {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

classes! {
    /// The guest is a hypervisor and enters its own guest.
    NestedEntry = "nested-entry",
    /// The guest is a hypervisor and reads or writes its own guest's state.
    NestedState = "nested-state",
    /// The guest is a hypervisor and performs another operation on its own guest.
    NestedControl = "nested-control",
    /// CPUID.
    Cpuid = "cpuid",
    /// A call of the hypervisor.
    Hypercall = "hypercall",
    /// Model-specific registers.
    Msr = "msr",
    /// Ports.
    Port = "port",
    /// Memory that second-level tables do not map, and devices.
    Memory = "memory",
    /// External interrupts, and interrupt windows.
    Interrupt = "interrupt",
    /// The local APIC, virtualized by the processor.
    Apic = "apic",
    /// The guest waits.
    Idle = "idle",
    /// A timer of the processor's virtualization expired.
    Timer = "timer",
    /// Control and debug registers, XCR0.
    Register = "register",
    /// Exceptions.
    Exception = "exception",
    /// Other instructions.
    Instruction = "instruction",
    /// The guest cannot continue.
    Failure = "failure",
    /// Everything else.
    Other = "other",
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Exit {
    /// From an exit-reason field of VMX, including flags.
    #[must_use]
    pub const fn vmx(field: u32) -> Self {
        Self::Vmx(vmx::basic(field))
    }

    /// From an exit code of SVM.
    #[must_use]
    pub const fn svm(code: u64) -> Self {
        Self::Svm(code)
    }

    /// From the fields `isa` and `exit_reason` of KVM's tracepoint `kvm_exit` (KVM_ISA_VMX, KVM_ISA_SVM);
    /// `None` for another `isa`.
    #[must_use]
    pub const fn from_kvm_trace(isa: u32, exit_reason: u32) -> Option<Self> {
        match isa {
            1 => Some(Self::vmx(exit_reason)),
            2 => Some(Self::svm(exit_reason as u64)),
            _ => None,
        }
    }

    /// Every exit with a name; of those with a register or exception number only the first.
    pub fn all() -> impl Iterator<Item = Self> {
        let by_number = [
            svm::CR0_READ,
            svm::CR0_WRITE,
            svm::DR0_READ,
            svm::DR0_WRITE,
            svm::EXCEPTION,
            svm::CR0_WRITE_TRAP,
            svm::INVALID,
        ];
        let vmx = vmx::ALL.iter().map(|&(reason, _)| Self::Vmx(reason));
        let svm = svm::ALL.iter().map(|&(code, _)| Self::Svm(code));
        vmx.chain(svm).chain(by_number.map(Self::Svm))
    }

    /// Its name, if it has one. An exit that both vendors have has the same name.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::Vmx(reason) => vmx::name(reason),
            Self::Svm(code) => svm::name(code),
        }
    }

    /// Its class.
    #[must_use]
    pub const fn class(self) -> Class {
        match self {
            Self::Vmx(reason) => vmx_class(reason),
            Self::Svm(code) => svm_class(code),
        }
    }
}

/// The name, or the number if there is none.
impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self) {
            (Some(name), _) => f.pad(name),
            (None, Self::Vmx(reason)) => write!(f, "vmx-exit-{reason}"),
            (None, Self::Svm(code)) => write!(f, "svm-exit-{code:#x}"),
        }
    }
}

const fn vmx_class(reason: u16) -> Class {
    match reason {
        vmx::VMLAUNCH | vmx::VMRESUME => Class::NestedEntry,
        vmx::VMREAD | vmx::VMWRITE | vmx::VMPTRLD | vmx::VMPTRST | vmx::VMCLEAR => {
            Class::NestedState
        }
        vmx::VMXON | vmx::VMXOFF | vmx::INVEPT | vmx::INVVPID | vmx::VMFUNC => Class::NestedControl,
        vmx::CPUID => Class::Cpuid,
        vmx::VMCALL => Class::Hypercall,
        vmx::RDMSR | vmx::WRMSR => Class::Msr,
        vmx::IO => Class::Port,
        vmx::EPT_VIOLATION | vmx::EPT_MISCONFIGURATION | vmx::PML_FULL | vmx::SUB_PAGE => {
            Class::Memory
        }
        vmx::EXTERNAL_INTERRUPT
        | vmx::INIT
        | vmx::STARTUP_IPI
        | vmx::IO_SMI
        | vmx::OTHER_SMI
        | vmx::INTERRUPT_WINDOW
        | vmx::NMI_WINDOW => Class::Interrupt,
        vmx::TPR_BELOW_THRESHOLD | vmx::APIC_ACCESS | vmx::VIRTUALIZED_EOI | vmx::APIC_WRITE => {
            Class::Apic
        }
        vmx::HLT | vmx::MWAIT | vmx::MONITOR | vmx::PAUSE | vmx::UMWAIT | vmx::TPAUSE => {
            Class::Idle
        }
        vmx::PREEMPTION_TIMER => Class::Timer,
        vmx::CONTROL_REGISTER | vmx::DEBUG_REGISTER | vmx::XSETBV => Class::Register,
        vmx::EXCEPTION_OR_NMI => Class::Exception,
        vmx::GETSEC
        | vmx::INVD
        | vmx::INVLPG
        | vmx::RDPMC
        | vmx::RDTSC
        | vmx::RSM
        | vmx::GDTR_OR_IDTR
        | vmx::LDTR_OR_TR
        | vmx::RDTSCP
        | vmx::WBINVD
        | vmx::RDRAND
        | vmx::INVPCID
        | vmx::ENCLS
        | vmx::RDSEED
        | vmx::XSAVES
        | vmx::XRSTORS
        | vmx::PCONFIG
        | vmx::LOADIWKEY
        | vmx::ENCLV
        | vmx::ENQCMD
        | vmx::ENQCMDS => Class::Instruction,
        vmx::TRIPLE_FAULT
        | vmx::INVALID_GUEST_STATE
        | vmx::MSR_LOAD_FAILED
        | vmx::MACHINE_CHECK => Class::Failure,
        // Task switch, monitor trap flag, bus lock, notify, and unknown reasons.
        _ => Class::Other,
    }
}

const fn svm_class(code: u64) -> Class {
    match code {
        svm::VMRUN => Class::NestedEntry,
        svm::VMLOAD | svm::VMSAVE => Class::NestedState,
        svm::STGI | svm::CLGI | svm::SKINIT | svm::INVLPGA => Class::NestedControl,
        svm::CPUID => Class::Cpuid,
        svm::VMMCALL => Class::Hypercall,
        svm::MSR => Class::Msr,
        svm::IO => Class::Port,
        svm::NESTED_PAGE_FAULT => Class::Memory,
        svm::INTERRUPT | svm::NMI | svm::SMI | svm::INIT | svm::VIRTUAL_INTERRUPT | svm::IRET => {
            Class::Interrupt
        }
        svm::AVIC_INCOMPLETE_IPI | svm::AVIC_NO_ACCELERATION => Class::Apic,
        svm::HLT | svm::MWAIT | svm::MWAIT_ARMED | svm::MONITOR | svm::PAUSE => Class::Idle,
        0..0x40 | svm::CR0_SELECTIVE_WRITE | svm::XSETBV | svm::EFER_WRITE_TRAP | 0x90..0xA0 => {
            Class::Register
        }
        svm::EXCEPTION..=svm::EXCEPTION_LAST | svm::ICEBP => Class::Exception,
        svm::SIDT
        | svm::SGDT
        | svm::SLDT
        | svm::STR
        | svm::LIDT
        | svm::LGDT
        | svm::LLDT
        | svm::LTR
        | svm::RDTSC
        | svm::RDPMC
        | svm::PUSHF
        | svm::POPF
        | svm::RSM
        | svm::SOFTWARE_INTERRUPT
        | svm::INVD
        | svm::INVLPG
        | svm::RDTSCP
        | svm::WBINVD
        | svm::RDPRU
        | svm::INVLPGB
        | svm::INVLPGB_ILLEGAL
        | svm::INVPCID
        | svm::MCOMMIT
        | svm::TLBSYNC
        | svm::VMGEXIT => Class::Instruction,
        svm::SHUTDOWN | svm::INVALID | svm::INVALID_LOW => Class::Failure,
        // Task switch, x87 freeze, the synthetic code, and unknown codes.
        _ => Class::Other,
    }
}

#[cfg(test)]
mod tests;
