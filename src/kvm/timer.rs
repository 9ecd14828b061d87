//! The local APIC's timer after the TSC has changed.
//!
//! KVM arms the timer once, for a host TSC value or a host time that it computes from the guest's TSC at that
//! moment (`start_hv_timer`, `start_sw_tscdeadline`). Neither a new frequency nor a new offset makes it
//! recompute that.

use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::VcpuFd;

use super::{KvmError, ioctl_error, msr};
use crate::units::Msr;

const APIC_BASE: Msr = Msr(0x1b);
/// `IA32_APIC_BASE`: the APIC's registers are MSRs.
const X2APIC: u64 = 1 << 10;
const TSC_DEADLINE: Msr = Msr(0x6e0);
/// The initial-count register in x2APIC mode (SDM vol. 3, 11.12.1.2).
const X2APIC_INITIAL_COUNT: Msr = Msr(0x838);

// Offsets in the local APIC's page (SDM vol. 3, 11.4.1).
const LVT_TIMER: usize = 0x320;
const CURRENT_COUNT: usize = 0x390;
/// LVT timer: the mode; 0 is one-shot.
const MODE: u32 = 0b11 << 17;

/// Makes KVM re-arm the timer for its remaining time. On a vCPU that does not run.
///
/// A periodic timer is left alone: at worst one period is off, and then KVM computes the next. Re-arming it
/// would require writing all of the APIC's registers, and an interrupt that arrived in between would be lost.
///
/// # Errors
/// If KVM refuses.
pub fn rearm(vcpu: &VcpuFd) -> Result<(), KvmError> {
    if let Some(deadline @ 1..) = msr::get(vcpu, TSC_DEADLINE)? {
        msr::set(vcpu, TSC_DEADLINE, deadline)?;
        return Ok(());
    }
    let lapic = vcpu
        .get_lapic()
        .map_err(ioctl_error("KVM_GET_LAPIC", "read the timer"))?;
    let Some(left) = one_shot(&lapic) else {
        return Ok(());
    };
    if msr::get(vcpu, APIC_BASE)?.is_some_and(|base| base & X2APIC != 0) {
        // The guest sees the remaining time as the initial count, which guests do not read.
        msr::set(vcpu, X2APIC_INITIAL_COUNT, left.into())?;
        return Ok(());
    }
    vcpu.set_lapic(&lapic)
        .map_err(ioctl_error("KVM_SET_LAPIC", "re-arm the timer"))
}

/// The remaining time of a one-shot timer that has not fired: KVM would restart one that has fired, and it
/// would fire at once (`set_target_expiration`).
fn one_shot(lapic: &kvm_lapic_state) -> Option<u32> {
    let left = register(lapic, CURRENT_COUNT);
    (register(lapic, LVT_TIMER) & MODE == 0 && left != 0).then_some(left)
}

fn register(lapic: &kvm_lapic_state, offset: usize) -> u32 {
    let byte = |at: usize| lapic.regs[offset + at].to_le_bytes()[0];
    u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lapic(registers: &[(usize, u32)]) -> kvm_lapic_state {
        let mut lapic = kvm_lapic_state::default();
        for &(offset, value) in registers {
            for (at, byte) in value.to_le_bytes().into_iter().enumerate() {
                lapic.regs[offset + at] = std::os::raw::c_char::from_le_bytes([byte]);
            }
        }
        lapic
    }

    #[test]
    fn only_a_one_shot_timer_on_its_way_is_armed_anew() {
        let initial = 0x380;
        for (mode, left, expected) in [
            (0, 0x8765_4321, Some(0x8765_4321)),
            (0, 0, None),
            (1, 5, None),
            (2, 5, None),
        ] {
            let lapic = lapic(&[
                (LVT_TIMER, mode << 17 | 0xec),
                (initial, u32::MAX),
                (CURRENT_COUNT, left),
            ]);
            assert_eq!(one_shot(&lapic), expected, "mode {mode}, {left} left");
        }
    }
}
