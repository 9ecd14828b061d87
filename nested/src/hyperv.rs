//! Numbers of the Hyper-V interface (Hypervisor Top-Level Functional Specification, "TLFS") that guests use.

/// CPUID leaves of the interface.
pub mod leaf {
    /// Highest leaf and vendor string.
    pub const VENDOR: u32 = 0x4000_0000;
    /// Interface signature.
    pub const INTERFACE: u32 = 0x4000_0001;
    /// Partition privileges (EAX, EBX) and available features (EDX).
    pub const FEATURES: u32 = 0x4000_0003;
    /// The recommendations to the guest.
    pub const RECOMMENDATIONS: u32 = 0x4000_0004;
    /// The features for nested guests ([`super::nested`]).
    pub const NESTED_FEATURES: u32 = 0x4000_000A;
    /// [`RECOMMENDATIONS`] EAX: a nested hypervisor should use the enlightened VMCS.
    pub const RECOMMEND_EVMCS: u32 = 1 << 14;
    /// `"Hv#1"`: [`INTERFACE`] EAX of a conforming hypervisor.
    pub const SIGNATURE_HV1: u32 = 0x3123_7648;
}

/// Bits of leaf [`leaf::NESTED_FEATURES`] (TLFS, "Hypervisor nested virtualization features").
pub mod nested {
    /// EAX: L0 handles flush hypercalls of an L2.
    pub const DIRECT_FLUSH: u32 = 1 << 17;
    /// EAX: hypercalls that flush second-level translations.
    pub const GUEST_PHYSICAL_FLUSH: u32 = 1 << 18;
    /// EAX: the enlightened MSR bitmap.
    pub const MSR_BITMAP: u32 = 1 << 19;
    /// EBX: the enlightened VMCS has IA32_PERF_GLOBAL_CTRL.
    pub const EVMCS_PERF_GLOBAL_CTRL: u32 = 1 << 0;

    /// The lowest and the highest version of the enlightened VMCS in EAX; 0 and 0 if there is none.
    #[must_use]
    pub const fn evmcs_versions(eax: u32) -> (u8, u8) {
        let [low, high, ..] = eax.to_le_bytes();
        (low, high)
    }
}

/// Synthetic model-specific registers (TLFS, "Synthetic MSRs").
pub mod msr {
    /// Identity of the guest operating system; a non-zero value enables the hypercall interface.
    pub const GUEST_OS_ID: u32 = 0x4000_0000;
    /// Hypercall page: bit 0 enables, 63:12 page number.
    pub const HYPERCALL: u32 = 0x4000_0001;
    /// Index of this virtual processor.
    pub const VP_INDEX: u32 = 0x4000_0002;
    /// Writing bit 0 resets the machine.
    pub const RESET: u32 = 0x4000_0003;
    /// Run time of this virtual processor in 100 ns.
    pub const VP_RUNTIME: u32 = 0x4000_0010;
    /// Partition reference time in 100 ns.
    pub const TIME_REF_COUNT: u32 = 0x4000_0020;
    /// Reference TSC page: bit 0 enables, 63:12 page number.
    pub const REFERENCE_TSC: u32 = 0x4000_0021;
    /// TSC frequency in Hz.
    pub const TSC_FREQUENCY: u32 = 0x4000_0022;
    /// Local APIC timer frequency in Hz.
    pub const APIC_FREQUENCY: u32 = 0x4000_0023;
    /// End of interrupt.
    pub const EOI: u32 = 0x4000_0070;
    /// Interrupt command.
    pub const ICR: u32 = 0x4000_0071;
    /// Task priority.
    pub const TPR: u32 = 0x4000_0072;
    /// VP assist page: bit 0 enables, 63:12 page number.
    pub const VP_ASSIST_PAGE: u32 = 0x4000_0073;
    /// Synthetic interrupt controller: bit 0 enables.
    pub const SCONTROL: u32 = 0x4000_0080;
    /// Version of the synthetic interrupt controller.
    pub const SVERSION: u32 = 0x4000_0081;
    /// Event flags page.
    pub const SIEFP: u32 = 0x4000_0082;
    /// Message page.
    pub const SIMP: u32 = 0x4000_0083;
    /// End of message.
    pub const EOM: u32 = 0x4000_0084;
    /// First of the sixteen synthetic interrupt sources.
    pub const SINT0: u32 = 0x4000_0090;
    /// Configuration of the first of four synthetic timers; COUNT follows, each timer takes two registers.
    pub const STIMER0_CONFIG: u32 = 0x4000_00B0;
    /// Count of the first synthetic timer.
    pub const STIMER0_COUNT: u32 = 0x4000_00B1;
    /// First of the five crash parameters.
    pub const CRASH_P0: u32 = 0x4000_0100;
    /// Crash control.
    pub const CRASH_CTL: u32 = 0x4000_0105;
    /// The target of the notification of a changed TSC frequency.
    pub const REENLIGHTENMENT_CONTROL: u32 = 0x4000_0106;
    /// Whether to emulate the old TSC frequency after migration.
    pub const TSC_EMULATION_CONTROL: u32 = 0x4000_0107;
    /// Whether the TSC is being emulated.
    pub const TSC_EMULATION_STATUS: u32 = 0x4000_0108;
    /// Bit 0 requests the invariant-TSC CPUID bit.
    pub const TSC_INVARIANT_CONTROL: u32 = 0x4000_0118;
}

/// Bits of the crash control register (TLFS, "Guest crash enlightenment").
pub mod crash {
    /// A crash is being reported.
    pub const NOTIFY: u64 = 1 << 63;
    /// P3 is the address and P4 the length of a message.
    pub const MESSAGE: u64 = 1 << 62;
    /// Maximum length of a crash message: one page.
    pub const MESSAGE_MAX: usize = 4096;
}

/// Codes and the input value of a hypercall (TLFS, "Hypercall interface").
pub mod hypercall {
    /// Flush whole address spaces.
    pub const FLUSH_SPACE: u16 = 0x0002;
    /// Flush a list of address ranges.
    pub const FLUSH_LIST: u16 = 0x0003;
    /// A long wait for a spinlock.
    pub const NOTIFY_LONG_SPIN_WAIT: u16 = 0x0008;
    /// Send an interrupt to the processors in a 64-bit mask.
    pub const SEND_IPI: u16 = 0x000B;
    /// [`FLUSH_SPACE`] with a sparse processor set.
    pub const FLUSH_SPACE_EX: u16 = 0x0013;
    /// [`FLUSH_LIST`] with a sparse processor set.
    pub const FLUSH_LIST_EX: u16 = 0x0014;
    /// [`SEND_IPI`] with a sparse processor set.
    pub const SEND_IPI_EX: u16 = 0x0015;
    /// Post a message to a connection.
    pub const POST_MESSAGE: u16 = 0x005C;
    /// Signal an event to a connection.
    pub const SIGNAL_EVENT: u16 = 0x005D;
    /// Query the extended hypercalls.
    pub const EXT_QUERY_CAPABILITIES: u16 = 0x8001;

    /// Input value bit: parameters are in registers.
    pub const FAST: u64 = 1 << 16;
    /// Flush flag: every processor.
    pub const FLUSH_ALL_PROCESSORS: u64 = 1 << 0;
    /// Flush flag: every address space.
    pub const FLUSH_ALL_SPACES: u64 = 1 << 1;
    /// Processor set format: sparse banks of 64.
    pub const SET_SPARSE: u64 = 0;
    /// Processor set format: all processors.
    pub const SET_ALL: u64 = 1;

    /// The input value: code, quadwords of variable header, repetitions.
    #[must_use]
    pub const fn input(code: u16, variable_header: u16, repetitions: u16) -> u64 {
        // 15:0 code, 26:17 header quadwords, 43:32 repetitions.
        code as u64
            | ((variable_header as u64 & 0x3FF) << 17)
            | ((repetitions as u64 & 0xFFF) << 32)
    }

    /// The status in a hypercall's result.
    #[must_use]
    pub const fn status(result: u64) -> u16 {
        (result & 0xFFFF) as u16
    }

    /// The repetitions done in a hypercall's result.
    #[must_use]
    pub const fn repetitions_done(result: u64) -> u16 {
        ((result >> 32) & 0xFFF) as u16
    }
}

/// Status codes of hypercalls (TLFS, "Hypercall status codes").
pub mod status {
    /// Success.
    pub const SUCCESS: u16 = 0;
    /// No such call.
    pub const INVALID_HYPERCALL_CODE: u16 = 2;
    /// The input value or the input itself is malformed.
    pub const INVALID_HYPERCALL_INPUT: u16 = 3;
    /// The input is not aligned.
    pub const INVALID_ALIGNMENT: u16 = 4;
    /// A parameter is out of range.
    pub const INVALID_PARAMETER: u16 = 5;
    /// The partition lacks the privilege.
    pub const ACCESS_DENIED: u16 = 6;
    /// No such connection.
    pub const INVALID_CONNECTION_ID: u16 = 0x12;
}

/// The synthetic interrupt controller's pages and registers (TLFS, "Virtual interrupt controller").
pub mod synic {
    /// SINT bit: masked.
    pub const SINT_MASKED: u64 = 1 << 16;
    /// Bytes of a slot in the message page.
    pub const MESSAGE_SLOT: usize = 256;
    /// Message type of an expired synthetic timer.
    pub const TIMER_EXPIRED: u32 = 0x8000_0010;
    /// STIMER CONFIG: the timer runs.
    pub const STIMER_ENABLE: u64 = 1 << 0;
    /// STIMER CONFIG: the timer starts again by itself, COUNT being its period.
    pub const STIMER_PERIODIC: u64 = 1 << 1;
    /// STIMER CONFIG: the vector in 11:4 is raised directly.
    pub const STIMER_DIRECT: u64 = 1 << 12;

    /// STIMER CONFIG of a one-shot timer that raises `vector` directly.
    #[must_use]
    pub const fn stimer_direct(vector: u8) -> u64 {
        STIMER_ENABLE | STIMER_DIRECT | ((vector as u64) << 4)
    }

    /// STIMER CONFIG of a one-shot timer that sends a message to `sint`.
    #[must_use]
    pub const fn stimer_message(sint: u8) -> u64 {
        STIMER_ENABLE | ((sint as u64 & 0xF) << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_input_value_puts_each_field_where_the_specification_says() {
        assert_eq!(hypercall::input(0x0014, 2, 3), 0x0000_0003_0004_0014);
        assert_eq!(
            hypercall::input(0xFFFF, 0x3FF, 0xFFF),
            0x0000_0FFF_07FE_FFFF
        );
        // Values past a field's width do not spill into its neighbour.
        assert_eq!(
            hypercall::input(0, 0xFFFF, 0xFFFF),
            hypercall::input(0, 0x3FF, 0xFFF)
        );
    }

    #[test]
    fn a_result_has_status_and_repetitions() {
        assert_eq!(hypercall::status(0xFFFF_0007_FFFF_0003), 3);
        assert_eq!(hypercall::repetitions_done(0xFFFF_F007_FFFF_0003), 7);
    }

    #[test]
    fn versions_of_the_enlightened_vmcs() {
        assert_eq!(nested::evmcs_versions(0x000A_0201), (1, 2));
        assert_eq!(nested::evmcs_versions(nested::DIRECT_FLUSH), (0, 0));
    }

    #[test]
    fn timer_configurations() {
        assert_eq!(synic::stimer_direct(0xED), 0x1ED1);
        assert_eq!(synic::stimer_message(2), 0x2_0001);
    }
}
