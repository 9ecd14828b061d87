//! Intel VMX: the numbers that a hypervisor requires to run a guest (Intel's Software Developer's Manual,
//! "SDM").

pub mod controls;
pub mod ept;
pub mod exit_reason;
mod field;

pub use field::{Area, Field, Width};

/// Capability MSRs and the MSR that firmware sets (SDM volume 3, appendix A).
pub mod msr {
    /// IA32_FEATURE_CONTROL: bit 0 locks, bit 2 allows VMXON outside SMX.
    pub const FEATURE_CONTROL: u32 = 0x3A;
    /// [`FEATURE_CONTROL`]: no further writes.
    pub const FEATURE_CONTROL_LOCKED: u64 = 1 << 0;
    /// [`FEATURE_CONTROL`]: VMXON is allowed.
    pub const FEATURE_CONTROL_VMXON: u64 = 1 << 2;
    /// 30:0 revision, 44:32 region size, 55 whether the "true" MSRs exist.
    pub const BASIC: u32 = 0x480;
    /// Pin-based controls.
    pub const PIN_CONTROLS: u32 = 0x481;
    /// Primary processor-based controls.
    pub const PRIMARY_CONTROLS: u32 = 0x482;
    /// Exit controls.
    pub const EXIT_CONTROLS: u32 = 0x483;
    /// Entry controls.
    pub const ENTRY_CONTROLS: u32 = 0x484;
    /// 4:0 preemption timer's shift, 24:16 CR3 targets, and more.
    pub const MISC: u32 = 0x485;
    /// Bits of CR0 that must be one.
    pub const CR0_FIXED0: u32 = 0x486;
    /// Bits of CR0 that may be one.
    pub const CR0_FIXED1: u32 = 0x487;
    /// Bits of CR4 that must be one.
    pub const CR4_FIXED0: u32 = 0x488;
    /// Bits of CR4 that may be one.
    pub const CR4_FIXED1: u32 = 0x489;
    /// Highest index of a field.
    pub const VMCS_ENUM: u32 = 0x48A;
    /// Secondary processor-based controls.
    pub const SECONDARY_CONTROLS: u32 = 0x48B;
    /// [`super::ept`].
    pub const EPT_VPID_CAP: u32 = 0x48C;
    /// Pin-based controls, with the default-one bits that may be zero.
    pub const TRUE_PIN_CONTROLS: u32 = 0x48D;
    /// Primary processor-based controls, likewise.
    pub const TRUE_PRIMARY_CONTROLS: u32 = 0x48E;
    /// Exit controls, likewise.
    pub const TRUE_EXIT_CONTROLS: u32 = 0x48F;
    /// Entry controls, likewise.
    pub const TRUE_ENTRY_CONTROLS: u32 = 0x490;
    /// VM functions.
    pub const VM_FUNCTIONS: u32 = 0x491;

    /// The revision in [`BASIC`], with which a VMXON region and a VMCS begin.
    #[must_use]
    pub const fn basic_revision(basic: u64) -> u32 {
        let [a, b, c, d, ..] = basic.to_le_bytes();
        u32::from_le_bytes([a, b, c, d]) & 0x7FFF_FFFF
    }

    /// Whether the "true" MSRs exist, by [`BASIC`].
    #[must_use]
    pub const fn basic_has_true_controls(basic: u64) -> bool {
        basic & (1 << 55) != 0
    }

    /// The number of TSC ticks, as a power of two, of one tick of the preemption timer ([`MISC`] bits 4:0).
    #[must_use]
    pub const fn misc_preemption_shift(misc: u64) -> u32 {
        let [low, ..] = misc.to_le_bytes();
        (low & 0x1F) as u32
    }

    /// [`MISC`]: an entry may set the guest's activity to halted.
    pub const MISC_ACTIVITY_HLT: u64 = 1 << 6;
}

/// The format of an event (SDM volume 3, 26.8.3 and 26.9.2).
pub mod interruption {
    /// The field is valid.
    pub const VALID: u32 = 1 << 31;
    /// The event has an error code.
    pub const ERROR_CODE: u32 = 1 << 11;
    /// An IRET had just unblocked NMIs.
    pub const NMI_UNBLOCKING: u32 = 1 << 12;
    /// Type: external interrupt.
    pub const EXTERNAL: u32 = 0 << 8;
    /// Type: NMI.
    pub const NMI: u32 = 2 << 8;
    /// Type: exception by hardware.
    pub const HARDWARE_EXCEPTION: u32 = 3 << 8;
    /// Type: INT n.
    pub const SOFTWARE_INTERRUPT: u32 = 4 << 8;
    /// Type: INT1.
    pub const PRIVILEGED_SOFTWARE_EXCEPTION: u32 = 5 << 8;
    /// Type: INT3 or INTO.
    pub const SOFTWARE_EXCEPTION: u32 = 6 << 8;
    /// Type: other event.
    pub const OTHER: u32 = 7 << 8;

    /// An external interrupt to inject.
    #[must_use]
    pub const fn external(vector: u8) -> u32 {
        VALID | EXTERNAL | vector as u32
    }

    /// A hardware exception to inject; `with_error_code` if the entry provides one.
    #[must_use]
    pub const fn exception(vector: u8, with_error_code: bool) -> u32 {
        let error_code = if with_error_code { ERROR_CODE } else { 0 };
        VALID | HARDWARE_EXCEPTION | error_code | vector as u32
    }

    /// The event's vector.
    #[must_use]
    pub const fn vector(info: u32) -> u8 {
        info.to_le_bytes()[0]
    }

    /// The event's type, one of the constants here.
    #[must_use]
    pub const fn kind(info: u32) -> u32 {
        info & (7 << 8)
    }
}

/// Blocked events (SDM volume 3, 26.4.2).
pub mod interruptibility {
    /// The instruction after STI.
    pub const STI: u32 = 1 << 0;
    /// The instruction after MOV to SS or POP SS.
    pub const MOV_SS: u32 = 1 << 1;
    /// System-management interrupts are blocked.
    pub const SMI: u32 = 1 << 2;
    /// NMIs are blocked.
    pub const NMI: u32 = 1 << 3;
}

/// The state of the guest's processor (SDM volume 3, 26.4.2).
pub mod activity {
    /// Running.
    pub const ACTIVE: u32 = 0;
    /// Halted.
    pub const HLT: u32 = 1;
    /// Shut down by a triple fault.
    pub const SHUTDOWN: u32 = 2;
    /// Waiting for a start-up IPI.
    pub const WAIT_FOR_STARTUP_IPI: u32 = 3;
}

/// Access rights of a segment (SDM volume 3, 26.4.1).
pub mod access_rights {
    /// The segment may not be used.
    pub const UNUSABLE: u32 = 1 << 16;
    /// 64-bit code at privilege level 0, accessed.
    pub const CODE_64: u32 = 0xA09B;
    /// Flat writable data at privilege level 0, accessed.
    pub const DATA: u32 = 0xC093;
    /// Busy 64-bit task-state segment.
    pub const TSS_64_BUSY: u32 = 0x008B;
}

/// Exit qualifications (SDM volume 3, 29.2.1).
pub mod qualification {
    /// Port access: an input.
    pub const IO_IN: u64 = 1 << 3;
    /// Port access: INS or OUTS.
    pub const IO_STRING: u64 = 1 << 4;
    /// EPT violation: by a read.
    pub const EPT_READ: u64 = 1 << 0;
    /// EPT violation: by a write.
    pub const EPT_WRITE: u64 = 1 << 1;
    /// EPT violation: by an instruction fetch.
    pub const EPT_FETCH: u64 = 1 << 2;

    /// Port access: its size in bytes.
    #[must_use]
    pub const fn io_size(qualification: u64) -> u8 {
        (qualification.to_le_bytes()[0] & 7) + 1
    }

    /// Port access: the port.
    #[must_use]
    pub const fn io_port(qualification: u64) -> u16 {
        let [_, _, low, high, ..] = qualification.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// Access to a control register: its number.
    #[must_use]
    pub const fn control_register(qualification: u64) -> u8 {
        qualification.to_le_bytes()[0] & 0xF
    }

    /// Access to a control register: 0 MOV to it, 1 MOV from it, 2 CLTS, 3 LMSW.
    #[must_use]
    pub const fn control_register_access(qualification: u64) -> u8 {
        (qualification.to_le_bytes()[0] >> 4) & 3
    }

    /// Access to a control register: the general register, 0 = RAX, in the encoding's order.
    #[must_use]
    pub const fn general_register(qualification: u64) -> u8 {
        qualification.to_le_bytes()[1] & 0xF
    }
}

/// Why a VMX instruction failed (SDM volume 3, 32.4).
pub mod instruction_error {
    /// VMLAUNCH of a VMCS that was launched.
    pub const LAUNCH_NOT_CLEAR: u32 = 4;
    /// VMRESUME of a VMCS that was not launched.
    pub const RESUME_NOT_LAUNCHED: u32 = 5;
    /// Entry with invalid controls.
    pub const ENTRY_CONTROLS: u32 = 7;
    /// Entry with invalid host state.
    pub const ENTRY_HOST_STATE: u32 = 8;
    /// VMPTRLD of a region with another revision.
    pub const POINTER_REVISION: u32 = 11;
    /// VMREAD or VMWRITE of a field that does not exist.
    pub const UNSUPPORTED_FIELD: u32 = 12;
    /// VMWRITE of a read-only field.
    pub const READ_ONLY_FIELD: u32 = 13;

    /// The text for an error.
    #[must_use]
    pub const fn text(error: u32) -> &'static str {
        match error {
            1 => "VMCALL in VMX root operation",
            2 => "VMCLEAR with an invalid address",
            3 => "VMCLEAR of the VMXON region",
            LAUNCH_NOT_CLEAR => "VMLAUNCH of a VMCS that is not clear",
            RESUME_NOT_LAUNCHED => "VMRESUME of a VMCS that is not launched",
            6 => "VMRESUME after VMXOFF",
            ENTRY_CONTROLS => "VM entry with invalid controls",
            ENTRY_HOST_STATE => "VM entry with invalid host state",
            9 => "VMPTRLD with an invalid address",
            10 => "VMPTRLD of the VMXON region",
            POINTER_REVISION => "VMPTRLD of a VMCS with another revision",
            UNSUPPORTED_FIELD => "VMREAD or VMWRITE of a field that does not exist",
            READ_ONLY_FIELD => "VMWRITE of a read-only field",
            15 => "VMXON in VMX root operation",
            16 => "VM entry with an invalid executive VMCS",
            17 => "VM entry with an executive VMCS that is not launched",
            18 => "VM entry whose executive VMCS is not the VMXON region",
            19 => "VMCALL with a VMCS that is not clear",
            20 => "VMCALL with invalid exit controls",
            22 => "VMCALL with another MSEG revision",
            23 => "VMXOFF under dual-monitor treatment",
            24 => "VMCALL with invalid SMM-monitor features",
            25 => "VM entry with invalid controls in the executive VMCS",
            26 => "VM entry with events blocked by MOV SS",
            28 => "INVEPT or INVVPID with an invalid operand",
            _ => "no VMX instruction error",
        }
    }
}

#[cfg(test)]
mod tests;
