//! The order in which a vCPU's state is read and written, as data, with the reasons.

/// A part of a vCPU's state: the unit that one ioctl moves, or one list of MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Whether the vCPU is runnable, halted, or waiting for a start-up IPI.
    MpState,
    /// Pending exceptions, interrupts and NMIs.
    Events,
    /// The state of nested virtualization.
    Nested,
    /// General registers.
    Regs,
    /// Segments, control registers, EFER, APIC base.
    Sregs,
    /// The floating-point unit and all other XSAVE components.
    Xsave,
    /// XCR0.
    Xcrs,
    /// Debug registers.
    DebugRegs,
    /// The local APIC with its timer.
    Lapic,
    /// `IA32_FEATURE_CONTROL`.
    FeatureControl,
    /// The per-vCPU synthetic MSRs of Hyper-V.
    HypervMsrs,
    /// The other MSRs.
    Msrs,
    /// `IA32_TSC_DEADLINE`.
    TscDeadline,
}

use Part::{
    DebugRegs, Events, FeatureControl, HypervMsrs, Lapic, MpState, Msrs, Nested, Regs, Sregs,
    TscDeadline, Xcrs, Xsave,
};

/// The order of saving.
pub const SAVE: [Part; 13] = [
    MpState,
    Events,
    Nested,
    Regs,
    Sregs,
    Xsave,
    Xcrs,
    DebugRegs,
    TscDeadline,
    Lapic,
    FeatureControl,
    HypervMsrs,
    Msrs,
];

/// The order of restoring. TSC frequency, TSC offset and clock come before all of it, the interrupt
/// controllers of the VM after all of it on all vCPUs, devices last.
pub const RESTORE: [Part; 13] = [
    FeatureControl,
    Sregs,
    Lapic,
    HypervMsrs,
    Nested,
    Regs,
    Xsave,
    Xcrs,
    Msrs,
    Events,
    MpState,
    TscDeadline,
    DebugRegs,
];

/// Two parts that must be moved in this order.
#[derive(Clone, Copy, Debug)]
pub struct Edge {
    /// The part that comes first.
    pub first: Part,
    /// The part that comes after it.
    pub then: Part,
    /// The reason.
    pub why: &'static str,
}

const fn edge(first: Part, then: Part, why: &'static str) -> Edge {
    Edge { first, then, why }
}

const ACCEPTS: &str = "KVM_GET_MP_STATE has the vCPU accept a pending INIT or SIPI, which changes nearly \
                       everything, and may make L2 exit to L1 (kvm_apic_accept_events)";
const NMI: &str = "KVM_GET_VCPU_EVENTS turns requests into pending NMIs and may write CR2 or DR6 \
                   (kvm_vcpu_ioctl_x86_get_vcpu_events)";

/// The constraints on saving.
pub const SAVE_EDGES: &[Edge] = &[
    edge(MpState, Events, ACCEPTS),
    edge(MpState, Nested, ACCEPTS),
    edge(MpState, Regs, ACCEPTS),
    edge(MpState, Sregs, ACCEPTS),
    edge(MpState, Xsave, ACCEPTS),
    edge(MpState, Lapic, ACCEPTS),
    edge(MpState, HypervMsrs, ACCEPTS),
    edge(MpState, Msrs, ACCEPTS),
    edge(Events, Sregs, NMI),
    edge(Events, DebugRegs, NMI),
    edge(
        TscDeadline,
        Lapic,
        "a deadline that passes between the two is then in at least one of them: still set, or as an \
         interrupt in the APIC",
    ),
];

/// The constraints on restoring.
pub const RESTORE_EDGES: &[Edge] = &[
    edge(
        FeatureControl,
        Nested,
        "the host's write of 0 takes the vCPU out of VMX operation (vmx_set_msr)",
    ),
    edge(
        Sregs,
        Nested,
        "KVM checks EFER.SVME and CR0, and copies the segments of a running L2 from the registers \
         (svm_set_nested_state)",
    ),
    edge(
        Sregs,
        Lapic,
        "the APIC base determines whether it is enabled and how its registers are read (kvm_apic_set_state)",
    ),
    edge(
        Lapic,
        Nested,
        "KVM writes the interrupt in service to the current VMCS, which must be L1's (vmx_hwapic_isr_update)",
    ),
    edge(
        Lapic,
        HypervMsrs,
        "resetting the APIC disables the VP assist page without changing its MSR (kvm_lapic_reset)",
    ),
    edge(
        Lapic,
        TscDeadline,
        "KVM drops a deadline while the timer is in another mode (kvm_set_lapic_tscdeadline_msr)",
    ),
    edge(
        HypervMsrs,
        Nested,
        "KVM finds the enlightened VMCS through the VP assist page (nested_get_evmptr)",
    ),
    edge(
        HypervMsrs,
        Msrs,
        "MSR_KVM_PV_EOI_EN and the VP assist page are one setting in KVM, which reads as both: the MSR is \
         written last, so that its saved value takes effect (kvm_lapic_set_pv_eoi)",
    ),
    edge(
        Nested,
        Msrs,
        "with L2 running they are L2's, and go to its VMCS (vmx_set_msr)",
    ),
    edge(
        Nested,
        Events,
        "they are pending for L2 if it runs, else for L1 (kvm_vcpu_ioctl_x86_set_vcpu_events)",
    ),
    edge(
        Regs,
        Events,
        "KVM_SET_REGS drops a pending exception (__set_regs)",
    ),
    edge(
        Sregs,
        Events,
        "KVM_SET_SREGS may queue an interrupt (__set_sregs)",
    ),
    edge(
        Sregs,
        Regs,
        "RFLAGS.VM determines how KVM interprets the segments (vmx_set_rflags)",
    ),
    edge(
        Events,
        MpState,
        "a latched INIT excludes waiting for SIPI (kvm_arch_vcpu_ioctl_set_mpstate)",
    ),
    edge(
        Lapic,
        MpState,
        "a received SIPI is stored in the APIC (kvm_arch_vcpu_ioctl_set_mpstate)",
    ),
    edge(
        Nested,
        DebugRegs,
        "entering L2 loads L2's DR7 from its VMCS (prepare_vmcs02)",
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn check(order: &[Part], edges: &[Edge]) {
        let place = |part| order.iter().position(|p| *p == part);
        for edge in edges {
            assert!(
                place(edge.first).unwrap() < place(edge.then).unwrap(),
                "{:?} must come before {:?}: {}",
                edge.first,
                edge.then,
                edge.why
            );
        }
    }

    #[test]
    fn both_orders_keep_to_their_edges() {
        check(&SAVE, SAVE_EDGES);
        check(&RESTORE, RESTORE_EDGES);
    }

    #[test]
    fn both_orders_hold_every_part_once() {
        let saved: HashSet<_> = SAVE.into_iter().collect();
        let restored: HashSet<_> = RESTORE.into_iter().collect();
        assert_eq!(saved.len(), SAVE.len());
        assert_eq!(saved, restored);
    }
}
