//! The numbers of Hyper-V's synthetic MSRs (TLFS, appendix "Hypervisor Synthetic MSRs").

use crate::units::Msr;

/// The identity of the guest; 0 disables the hypercall page.
pub const GUEST_OS_ID: Msr = Msr(0x4000_0000);
/// The address of the hypercall page.
pub const HYPERCALL: Msr = Msr(0x4000_0001);
/// The vCPU's number.
pub const VP_INDEX: Msr = Msr(0x4000_0002);
/// Writing 1 resets the machine.
pub const RESET: Msr = Msr(0x4000_0003);
/// The vCPU's running time.
pub const VP_RUNTIME: Msr = Msr(0x4000_0010);
/// The reference clock, 100 ns.
pub const TIME_REF_COUNT: Msr = Msr(0x4000_0020);
/// The address of the reference TSC page.
pub const REFERENCE_TSC: Msr = Msr(0x4000_0021);
/// The TSC's frequency, Hz.
pub const TSC_FREQUENCY: Msr = Msr(0x4000_0022);
/// The APIC timer's frequency, Hz.
pub const APIC_FREQUENCY: Msr = Msr(0x4000_0023);
/// End of interrupt.
pub const EOI: Msr = Msr(0x4000_0070);
/// Task priority.
pub const TPR: Msr = Msr(0x4000_0072);
/// The address of the VP assist page.
pub const VP_ASSIST_PAGE: Msr = Msr(0x4000_0073);
/// Enables the synthetic interrupt controller.
pub const SCONTROL: Msr = Msr(0x4000_0080);
/// The synthetic interrupt controller's version.
pub const SVERSION: Msr = Msr(0x4000_0081);
/// The address of the event flags page.
pub const SIEFP: Msr = Msr(0x4000_0082);
/// The address of the message page.
pub const SIMP: Msr = Msr(0x4000_0083);
/// End of message.
pub const EOM: Msr = Msr(0x4000_0084);
/// The first synthetic interrupt source.
pub const SINT0: Msr = Msr(0x4000_0090);
/// The last synthetic interrupt source.
pub const SINT15: Msr = Msr(0x4000_009f);
/// The first synthetic timer's configuration; its count follows, then the next timer.
pub const STIMER0_CONFIG: Msr = Msr(0x4000_00b0);
/// The last synthetic timer's count.
pub const STIMER3_COUNT: Msr = Msr(0x4000_00b7);
/// The debugger channel.
pub const SYNDBG_CONTROL: Msr = Msr(0x4000_00f1);
/// The debugger channel's pending buffer.
pub const SYNDBG_PENDING_BUFFER: Msr = Msr(0x4000_00f5);
/// The debugger channel's options.
pub const SYNDBG_OPTIONS: Msr = Msr(0x4000_00ff);
/// The first crash parameter.
pub const CRASH_P0: Msr = Msr(0x4000_0100);
/// The last crash parameter.
pub const CRASH_P4: Msr = Msr(0x4000_0104);
/// Reports a crash.
pub const CRASH_CTL: Msr = Msr(0x4000_0105);
/// The target of the interrupt after a change of the TSC's frequency.
pub const REENLIGHTENMENT_CONTROL: Msr = Msr(0x4000_0106);
/// Whether the guest requests emulation of its old TSC frequency until it has adapted.
pub const TSC_EMULATION_CONTROL: Msr = Msr(0x4000_0107);
/// Whether the old frequency is emulated; writing 0 ends it.
pub const TSC_EMULATION_STATUS: Msr = Msr(0x4000_0108);
/// The guest accepts an invariant TSC.
pub const TSC_INVARIANT_CONTROL: Msr = Msr(0x4000_0118);

/// The name of a register for users; `None` if it is not one of these.
pub fn name(msr: Msr) -> Option<String> {
    Some(match msr.0 {
        0x4000_0000 => "GUEST_OS_ID".to_owned(),
        0x4000_0001 => "HYPERCALL".to_owned(),
        0x4000_0002 => "VP_INDEX".to_owned(),
        0x4000_0010 => "VP_RUNTIME".to_owned(),
        0x4000_0020 => "TIME_REF_COUNT".to_owned(),
        0x4000_0021 => "REFERENCE_TSC".to_owned(),
        0x4000_0073 => "VP_ASSIST_PAGE".to_owned(),
        0x4000_0080 => "SCONTROL".to_owned(),
        0x4000_0081 => "SVERSION".to_owned(),
        0x4000_0082 => "SIEFP".to_owned(),
        0x4000_0083 => "SIMP".to_owned(),
        n @ 0x4000_0090..=0x4000_009f => format!("SINT{}", n - SINT0.0),
        n @ 0x4000_00b0..=0x4000_00b7 => {
            let (n, count) = ((n - STIMER0_CONFIG.0) / 2, n & 1 != 0);
            format!("STIMER{n}_{}", if count { "COUNT" } else { "CONFIG" })
        }
        n @ 0x4000_0100..=0x4000_0104 => format!("CRASH_P{}", n - CRASH_P0.0),
        0x4000_0105 => "CRASH_CTL".to_owned(),
        0x4000_0106 => "REENLIGHTENMENT_CONTROL".to_owned(),
        0x4000_0107 => "TSC_EMULATION_CONTROL".to_owned(),
        0x4000_0108 => "TSC_EMULATION_STATUS".to_owned(),
        0x4000_0118 => "TSC_INVARIANT_CONTROL".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_registers_have_their_numbers() {
        for (msr, expected) in [
            (SINT0, Some("SINT0")),
            (SINT15, Some("SINT15")),
            (STIMER0_CONFIG, Some("STIMER0_CONFIG")),
            (STIMER3_COUNT, Some("STIMER3_COUNT")),
            (CRASH_P4, Some("CRASH_P4")),
            (Msr(0x10), None),
        ] {
            assert_eq!(name(msr).as_deref(), expected);
        }
    }
}
