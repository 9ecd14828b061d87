//! Summary of a saved vCPU.

use hypernest_nested::nested_state::{NestedState, Processor, Vmx};
use kvm_bindings::{
    KVM_MP_STATE_AP_RESET_HOLD, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED,
    KVM_VCPUEVENT_VALID_SMM,
};
use serde::Serialize;

use super::cpu::physical_bits;
use super::{Hex, InspectError, Register, not_zero};
use crate::cpuid::feature as f;
use crate::hyperv::ToldEvmcs;
use crate::kvm::state::{Sregs, VcpuState};
use crate::machine::promise::Promise;

const CR0_PE: u64 = 1 << 0;
const EFER_LMA: u64 = 1 << 10;
const EFER_SVME: u64 = 1 << 12;
const RFLAGS_VM: u64 = 1 << 17;

/// A vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SavedVcpu {
    /// Its number.
    pub index: u32,
    /// `runnable`, `halted`, `waiting` for a start-up interrupt, ...
    pub state: String,
    /// Execution mode: `64-bit`, `real`, ...
    pub mode: &'static str,
    /// The address of the next instruction.
    pub rip: Hex,
    /// The stack pointer.
    pub rsp: Hex,
    /// The flags register.
    pub rflags: Hex,
    /// The page-table root.
    pub cr3: Hex,
    /// Control registers.
    pub cr0: Hex,
    /// Control registers.
    pub cr4: Hex,
    /// Control registers.
    pub efer: Hex,
    /// The Hyper-V registers of this vCPU that the guest has set.
    pub hyperv: Vec<Register>,
    /// Its nested state; `None` if VMX and SVM are hidden, or not enabled by the guest.
    pub nested: Option<Nested>,
}

/// The nested state of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nested {
    /// `VMX` or `SVM`.
    pub by: &'static str,
    /// The VMCS is an enlightened one.
    pub evmcs: bool,
    /// L2 runs, and the registers above are L2's.
    pub l2_running: bool,
    /// One-line summary.
    pub summary: String,
}

impl SavedVcpu {
    pub(super) fn of(
        index: u32,
        state: &VcpuState,
        promise: &Promise,
        section: &str,
    ) -> Result<Self, InspectError> {
        let sregs = &state.sregs;
        Ok(Self {
            index,
            state: state_name(state.mp_state.mp_state),
            mode: mode(sregs, state.regs.rflags),
            rip: state.regs.rip.into(),
            rsp: state.regs.rsp.into(),
            rflags: state.regs.rflags.into(),
            cr3: sregs.cr3.into(),
            cr0: sregs.cr0.into(),
            cr4: sregs.cr4.into(),
            efer: sregs.efer.into(),
            hyperv: not_zero(state.hyperv_msrs.iter().copied()),
            nested: nested(state, promise, section)?,
        })
    }
}

fn nested(
    state: &VcpuState,
    promise: &Promise,
    section: &str,
) -> Result<Option<Nested>, InspectError> {
    if state.nested.is_empty() {
        return Ok(None);
    }
    let nested = NestedState::parse(&state.nested).map_err(|source| InspectError::Nested {
        section: section.to_owned(),
        source,
    })?;
    let cpuid = promise.cpuid.as_slice();
    let processor = Processor {
        has_vmx: f::VMX.is_in(cpuid),
        has_evmcs: ToldEvmcs::in_cpuid(cpuid).version != 0,
        has_svm: f::SVM.is_in(cpuid),
        efer_svme: state.sregs.efer & EFER_SVME != 0,
        in_smm: state.events.flags & KVM_VCPUEVENT_VALID_SMM != 0 && state.events.smi.smm != 0,
        physical_address_bits: physical_bits(cpuid).into(),
    };
    nested
        .check(&processor)
        .map_err(|source| InspectError::Refused {
            section: section.to_owned(),
            source,
        })?;
    let by = match &nested {
        NestedState::Vmx(Vmx::Off { .. }) => return Ok(None),
        NestedState::Vmx(Vmx::On(_)) => "VMX",
        NestedState::Svm(_) if !processor.efer_svme => return Ok(None),
        NestedState::Svm(_) => "SVM",
    };
    Ok(Some(Nested {
        by,
        evmcs: nested.needs_evmcs(),
        l2_running: nested.in_guest_mode(),
        summary: nested.to_string(),
    }))
}

fn state_name(state: u32) -> String {
    match state {
        KVM_MP_STATE_RUNNABLE => "runnable".to_owned(),
        KVM_MP_STATE_UNINITIALIZED => "waiting".to_owned(),
        KVM_MP_STATE_INIT_RECEIVED => "reset".to_owned(),
        KVM_MP_STATE_HALTED => "halted".to_owned(),
        KVM_MP_STATE_SIPI_RECEIVED => "starting".to_owned(),
        KVM_MP_STATE_AP_RESET_HOLD => "held".to_owned(),
        other => format!("state {other}"),
    }
}

fn mode(sregs: &Sregs, rflags: u64) -> &'static str {
    if sregs.cr0 & CR0_PE == 0 {
        return "real";
    }
    if rflags & RFLAGS_VM != 0 {
        return "virtual-8086";
    }
    match (
        sregs.efer & EFER_LMA != 0,
        sregs.cs.l != 0,
        sregs.cs.db != 0,
    ) {
        (true, true, _) => "64-bit",
        (true, false, _) => "compatibility",
        (false, _, true) => "32-bit",
        (false, _, false) => "16-bit",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_told_apart() {
        let sregs = |cr0, efer, l, db| {
            let mut sregs = Sregs {
                cr0,
                efer,
                ..Sregs::default()
            };
            (sregs.cs.l, sregs.cs.db) = (l, db);
            sregs
        };
        for (cr0, efer, l, db, rflags, expected) in [
            (0x10, 0, 0, 0, 2, "real"),
            (0x11, 0, 0, 0, 2, "16-bit"),
            (0x11, 0, 0, 1, 2, "32-bit"),
            (0x8000_0011, 0, 0, 1, RFLAGS_VM, "virtual-8086"),
            (0x8000_0011, 0x500, 1, 0, 2, "64-bit"),
            (0x8000_0011, 0x500, 0, 1, 2, "compatibility"),
        ] {
            assert_eq!(mode(&sregs(cr0, efer, l, db), rflags), expected);
        }
    }
}
