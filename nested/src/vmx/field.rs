//! Fields of the virtual-machine control structure (SDM volume 3, appendix B).

use core::fmt;

/// A field by its encoding, the operand of VMREAD and VMWRITE.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Field(u32);

/// The width of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 16 bits.
    Bits16,
    /// 32 bits.
    Bits32,
    /// 64 bits.
    Bits64,
    /// The width of a general register: 64 bits in 64-bit mode.
    Natural,
}

impl Width {
    /// In bytes, in 64-bit mode.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bits16 => 2,
            Self::Bits32 => 4,
            Self::Bits64 | Self::Natural => 8,
        }
    }
}

/// The purpose of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// Controls.
    Control,
    /// Exit information; written only by the processor.
    ExitInformation,
    /// The guest's state.
    Guest,
    /// The host's state.
    Host,
}

impl Field {
    /// The field with `encoding`, whether or not a processor supports it.
    #[must_use]
    pub const fn new(encoding: u32) -> Self {
        Self(encoding)
    }

    /// The encoding.
    #[must_use]
    pub const fn encoding(self) -> u32 {
        self.0
    }

    /// Encoding bits 14:13.
    #[must_use]
    pub const fn width(self) -> Width {
        match (self.0 >> 13) & 3 {
            0 => Width::Bits16,
            1 => Width::Bits64,
            2 => Width::Bits32,
            _ => Width::Natural,
        }
    }

    /// Encoding bits 11:10.
    #[must_use]
    pub const fn area(self) -> Area {
        match (self.0 >> 10) & 3 {
            0 => Area::Control,
            1 => Area::ExitInformation,
            2 => Area::Guest,
            _ => Area::Host,
        }
    }

    /// Whether this encoding is the high half of a 64-bit field (encoding bit 0).
    #[must_use]
    pub const fn is_high_half(self) -> bool {
        self.0 & 1 == 1
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({:#06x})", self.0),
            None => write!(f, "VMCS field {:#06x}", self.0),
        }
    }
}

macro_rules! fields {
    ($($(#[doc = $doc:literal])* $name:ident = $encoding:literal;)*) => {
        impl Field {
            $($(#[doc = $doc])* pub const $name: Self = Self($encoding);)*

            /// Every field named here, in the order of [`Area`] and width.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The constant's name.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($encoding => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

fields! {
    // Controls, 16 bits.
    /// Virtual-processor identifier.
    VPID = 0x0000;
    /// Notification vector of posted interrupts.
    POSTED_INTERRUPT_VECTOR = 0x0002;
    /// Index into the list of EPT pointers.
    EPTP_INDEX = 0x0004;
    // Controls, 64 bits.
    /// Bitmap of ports 0 to 0x7FFF.
    IO_BITMAP_A = 0x2000;
    /// Bitmap of ports 0x8000 to 0xFFFF.
    IO_BITMAP_B = 0x2002;
    /// MSR bitmap.
    MSR_BITMAP = 0x2004;
    /// The address to which an exit stores MSRs.
    EXIT_MSR_STORE_ADDRESS = 0x2006;
    /// The address from which an exit loads MSRs.
    EXIT_MSR_LOAD_ADDRESS = 0x2008;
    /// The address from which an entry loads MSRs.
    ENTRY_MSR_LOAD_ADDRESS = 0x200A;
    /// Executive VMCS.
    EXECUTIVE_VMCS = 0x200C;
    /// Page-modification log.
    PML_ADDRESS = 0x200E;
    /// The offset added to the TSC that the guest reads.
    TSC_OFFSET = 0x2010;
    /// Virtual-APIC page.
    VIRTUAL_APIC_ADDRESS = 0x2012;
    /// APIC-access page.
    APIC_ACCESS_ADDRESS = 0x2014;
    /// Descriptor of posted interrupts.
    POSTED_INTERRUPT_DESCRIPTOR = 0x2016;
    /// VM functions.
    VM_FUNCTION_CONTROLS = 0x2018;
    /// EPT pointer.
    EPT_POINTER = 0x201A;
    /// EOIs that exit, vectors 0 to 63.
    EOI_EXIT_BITMAP0 = 0x201C;
    /// EOIs that exit, vectors 64 to 127.
    EOI_EXIT_BITMAP1 = 0x201E;
    /// EOIs that exit, vectors 128 to 191.
    EOI_EXIT_BITMAP2 = 0x2020;
    /// EOIs that exit, vectors 192 to 255.
    EOI_EXIT_BITMAP3 = 0x2022;
    /// List of EPT pointers.
    EPTP_LIST_ADDRESS = 0x2024;
    /// Fields that VMREAD reads from the shadow VMCS.
    VMREAD_BITMAP = 0x2026;
    /// Fields that VMWRITE writes to the shadow VMCS.
    VMWRITE_BITMAP = 0x2028;
    /// The address of a virtualization exception's information.
    VIRTUALIZATION_EXCEPTION_INFO = 0x202A;
    /// Bits of IA32_XSS with which XSAVES and XRSTORS exit.
    XSS_EXIT_BITMAP = 0x202C;
    /// ENCLS leaves that exit.
    ENCLS_EXIT_BITMAP = 0x202E;
    /// Sub-page permission table.
    SUB_PAGE_PERMISSIONS = 0x2030;
    /// The TSC multiplier, with 48 fractional bits.
    TSC_MULTIPLIER = 0x2032;
    /// Tertiary processor-based controls.
    TERTIARY_CONTROLS = 0x2034;
    // Controls, 32 bits.
    /// Pin-based controls.
    PIN_CONTROLS = 0x4000;
    /// Primary processor-based controls.
    PRIMARY_CONTROLS = 0x4002;
    /// Exceptions that exit.
    EXCEPTION_BITMAP = 0x4004;
    /// Bits of a page fault's error code that are compared.
    PAGE_FAULT_ERROR_CODE_MASK = 0x4006;
    /// The value that they are compared with.
    PAGE_FAULT_ERROR_CODE_MATCH = 0x4008;
    /// The number of CR3 values that do not exit.
    CR3_TARGET_COUNT = 0x400A;
    /// Exit controls.
    EXIT_CONTROLS = 0x400C;
    /// The number of MSRs that an exit stores.
    EXIT_MSR_STORE_COUNT = 0x400E;
    /// The number of MSRs that an exit loads.
    EXIT_MSR_LOAD_COUNT = 0x4010;
    /// Entry controls.
    ENTRY_CONTROLS = 0x4012;
    /// The number of MSRs that an entry loads.
    ENTRY_MSR_LOAD_COUNT = 0x4014;
    /// The event that an entry injects ([`super::interruption`]).
    ENTRY_INTERRUPTION_INFO = 0x4016;
    /// The injected exception's error code.
    ENTRY_EXCEPTION_ERROR_CODE = 0x4018;
    /// Length of the instruction that caused the injected event.
    ENTRY_INSTRUCTION_LENGTH = 0x401A;
    /// The task priority below which the guest exits.
    TPR_THRESHOLD = 0x401C;
    /// Secondary processor-based controls.
    SECONDARY_CONTROLS = 0x401E;
    /// The longest interval between the pauses of one loop.
    PLE_GAP = 0x4020;
    /// Longest loop of pauses that does not exit.
    PLE_WINDOW = 0x4022;
    /// Longest time without an event window that does not exit.
    NOTIFY_WINDOW = 0x4024;
    // Controls, natural width.
    /// Bits of CR0 that the host owns.
    CR0_MASK = 0x6000;
    /// Bits of CR4 that the host owns.
    CR4_MASK = 0x6002;
    /// The guest-visible value of the host's bits of CR0.
    CR0_READ_SHADOW = 0x6004;
    /// The guest-visible value of the host's bits of CR4.
    CR4_READ_SHADOW = 0x6006;
    /// A CR3 value that does not exit.
    CR3_TARGET_VALUE0 = 0x6008;
    /// A CR3 value that does not exit.
    CR3_TARGET_VALUE1 = 0x600A;
    /// A CR3 value that does not exit.
    CR3_TARGET_VALUE2 = 0x600C;
    /// A CR3 value that does not exit.
    CR3_TARGET_VALUE3 = 0x600E;
    // Exit information, 64 bits.
    /// Guest-physical address of an EPT violation or misconfiguration.
    GUEST_PHYSICAL_ADDRESS = 0x2400;
    // Exit information, 32 bits.
    /// Why a VMX instruction failed ([`super::instruction_error`]).
    INSTRUCTION_ERROR = 0x4400;
    /// Why the guest exited ([`super::exit_reason`]).
    EXIT_REASON = 0x4402;
    /// The event that caused the exit ([`super::interruption`]).
    EXIT_INTERRUPTION_INFO = 0x4404;
    /// That event's error code.
    EXIT_INTERRUPTION_ERROR_CODE = 0x4406;
    /// The event that was being delivered at the exit.
    IDT_VECTORING_INFO = 0x4408;
    /// That event's error code.
    IDT_VECTORING_ERROR_CODE = 0x440A;
    /// Length of the instruction that exited.
    EXIT_INSTRUCTION_LENGTH = 0x440C;
    /// Operands of the instruction that exited.
    EXIT_INSTRUCTION_INFO = 0x440E;
    // Exit information, natural width.
    /// Further information about the exit, by reason ([`super::qualification`]).
    EXIT_QUALIFICATION = 0x6400;
    /// RCX at an SMI during I/O.
    IO_RCX = 0x6402;
    /// RSI at an SMI during I/O.
    IO_RSI = 0x6404;
    /// RDI at an SMI during I/O.
    IO_RDI = 0x6406;
    /// RIP at an SMI during I/O.
    IO_RIP = 0x6408;
    /// Guest-linear address of the access that exited.
    GUEST_LINEAR_ADDRESS = 0x640A;
    // Guest, 16 bits.
    /// ES.
    GUEST_ES_SELECTOR = 0x0800;
    /// CS.
    GUEST_CS_SELECTOR = 0x0802;
    /// SS.
    GUEST_SS_SELECTOR = 0x0804;
    /// DS.
    GUEST_DS_SELECTOR = 0x0806;
    /// FS.
    GUEST_FS_SELECTOR = 0x0808;
    /// GS.
    GUEST_GS_SELECTOR = 0x080A;
    /// LDTR.
    GUEST_LDTR_SELECTOR = 0x080C;
    /// TR.
    GUEST_TR_SELECTOR = 0x080E;
    /// Requested and serviced virtual interrupt.
    GUEST_INTERRUPT_STATUS = 0x0810;
    /// Next entry of the page-modification log.
    PML_INDEX = 0x0812;
    // Guest, 64 bits.
    /// Shadow VMCS; all ones if there is none.
    VMCS_LINK_POINTER = 0x2800;
    /// IA32_DEBUGCTL.
    GUEST_DEBUGCTL = 0x2802;
    /// IA32_PAT.
    GUEST_PAT = 0x2804;
    /// IA32_EFER.
    GUEST_EFER = 0x2806;
    /// IA32_PERF_GLOBAL_CTRL.
    GUEST_PERF_GLOBAL_CTRL = 0x2808;
    /// First entry of the page-directory-pointer table under PAE paging.
    GUEST_PDPTE0 = 0x280A;
    /// Second entry.
    GUEST_PDPTE1 = 0x280C;
    /// Third entry.
    GUEST_PDPTE2 = 0x280E;
    /// Fourth entry.
    GUEST_PDPTE3 = 0x2810;
    /// IA32_BNDCFGS.
    GUEST_BNDCFGS = 0x2812;
    /// IA32_RTIT_CTL.
    GUEST_RTIT_CTL = 0x2814;
    /// IA32_LBR_CTL.
    GUEST_LBR_CTL = 0x2816;
    // Guest, 32 bits.
    /// ES.
    GUEST_ES_LIMIT = 0x4800;
    /// CS.
    GUEST_CS_LIMIT = 0x4802;
    /// SS.
    GUEST_SS_LIMIT = 0x4804;
    /// DS.
    GUEST_DS_LIMIT = 0x4806;
    /// FS.
    GUEST_FS_LIMIT = 0x4808;
    /// GS.
    GUEST_GS_LIMIT = 0x480A;
    /// LDTR.
    GUEST_LDTR_LIMIT = 0x480C;
    /// TR.
    GUEST_TR_LIMIT = 0x480E;
    /// GDTR.
    GUEST_GDTR_LIMIT = 0x4810;
    /// IDTR.
    GUEST_IDTR_LIMIT = 0x4812;
    /// ES ([`super::access_rights`]).
    GUEST_ES_ACCESS_RIGHTS = 0x4814;
    /// CS.
    GUEST_CS_ACCESS_RIGHTS = 0x4816;
    /// SS.
    GUEST_SS_ACCESS_RIGHTS = 0x4818;
    /// DS.
    GUEST_DS_ACCESS_RIGHTS = 0x481A;
    /// FS.
    GUEST_FS_ACCESS_RIGHTS = 0x481C;
    /// GS.
    GUEST_GS_ACCESS_RIGHTS = 0x481E;
    /// LDTR.
    GUEST_LDTR_ACCESS_RIGHTS = 0x4820;
    /// TR.
    GUEST_TR_ACCESS_RIGHTS = 0x4822;
    /// Blocked events ([`super::interruptibility`]).
    GUEST_INTERRUPTIBILITY = 0x4824;
    /// Active, halted and so on ([`super::activity`]).
    GUEST_ACTIVITY = 0x4826;
    /// SMBASE.
    GUEST_SMBASE = 0x4828;
    /// IA32_SYSENTER_CS.
    GUEST_SYSENTER_CS = 0x482A;
    /// VMX-preemption timer.
    PREEMPTION_TIMER = 0x482E;
    // Guest, natural width.
    /// CR0.
    GUEST_CR0 = 0x6800;
    /// CR3.
    GUEST_CR3 = 0x6802;
    /// CR4.
    GUEST_CR4 = 0x6804;
    /// ES.
    GUEST_ES_BASE = 0x6806;
    /// CS.
    GUEST_CS_BASE = 0x6808;
    /// SS.
    GUEST_SS_BASE = 0x680A;
    /// DS.
    GUEST_DS_BASE = 0x680C;
    /// FS.
    GUEST_FS_BASE = 0x680E;
    /// GS.
    GUEST_GS_BASE = 0x6810;
    /// LDTR.
    GUEST_LDTR_BASE = 0x6812;
    /// TR.
    GUEST_TR_BASE = 0x6814;
    /// GDTR.
    GUEST_GDTR_BASE = 0x6816;
    /// IDTR.
    GUEST_IDTR_BASE = 0x6818;
    /// DR7.
    GUEST_DR7 = 0x681A;
    /// RSP.
    GUEST_RSP = 0x681C;
    /// RIP.
    GUEST_RIP = 0x681E;
    /// RFLAGS.
    GUEST_RFLAGS = 0x6820;
    /// Pending debug exceptions.
    GUEST_PENDING_DEBUG_EXCEPTIONS = 0x6822;
    /// IA32_SYSENTER_ESP.
    GUEST_SYSENTER_ESP = 0x6824;
    /// IA32_SYSENTER_EIP.
    GUEST_SYSENTER_EIP = 0x6826;
    /// IA32_S_CET.
    GUEST_S_CET = 0x6828;
    /// Shadow-stack pointer.
    GUEST_SSP = 0x682A;
    /// IA32_INTERRUPT_SSP_TABLE_ADDR.
    GUEST_INTERRUPT_SSP_TABLE = 0x682C;
    // Host, 16 bits.
    /// ES.
    HOST_ES_SELECTOR = 0x0C00;
    /// CS.
    HOST_CS_SELECTOR = 0x0C02;
    /// SS.
    HOST_SS_SELECTOR = 0x0C04;
    /// DS.
    HOST_DS_SELECTOR = 0x0C06;
    /// FS.
    HOST_FS_SELECTOR = 0x0C08;
    /// GS.
    HOST_GS_SELECTOR = 0x0C0A;
    /// TR.
    HOST_TR_SELECTOR = 0x0C0C;
    // Host, 64 bits.
    /// IA32_PAT.
    HOST_PAT = 0x2C00;
    /// IA32_EFER.
    HOST_EFER = 0x2C02;
    /// IA32_PERF_GLOBAL_CTRL.
    HOST_PERF_GLOBAL_CTRL = 0x2C04;
    // Host, 32 bits.
    /// IA32_SYSENTER_CS.
    HOST_SYSENTER_CS = 0x4C00;
    // Host, natural width.
    /// CR0.
    HOST_CR0 = 0x6C00;
    /// CR3.
    HOST_CR3 = 0x6C02;
    /// CR4.
    HOST_CR4 = 0x6C04;
    /// FS.
    HOST_FS_BASE = 0x6C06;
    /// GS.
    HOST_GS_BASE = 0x6C08;
    /// TR.
    HOST_TR_BASE = 0x6C0A;
    /// GDTR.
    HOST_GDTR_BASE = 0x6C0C;
    /// IDTR.
    HOST_IDTR_BASE = 0x6C0E;
    /// IA32_SYSENTER_ESP.
    HOST_SYSENTER_ESP = 0x6C10;
    /// IA32_SYSENTER_EIP.
    HOST_SYSENTER_EIP = 0x6C12;
    /// RSP.
    HOST_RSP = 0x6C14;
    /// RIP.
    HOST_RIP = 0x6C16;
    /// IA32_S_CET.
    HOST_S_CET = 0x6C18;
    /// Shadow-stack pointer.
    HOST_SSP = 0x6C1A;
    /// IA32_INTERRUPT_SSP_TABLE_ADDR.
    HOST_INTERRUPT_SSP_TABLE = 0x6C1C;
}
