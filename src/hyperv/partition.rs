//! The synthetic MSRs that hypernest owns. They reach it through KVM's MSR filter (KVM_EXIT_X86_RDMSR and WRMSR).
//!
//! - The crash registers, because KVM reports a crash without the bits that the guest wrote, so that nobody could tell
//!   whether there is a message; and because the control register must read as able to take one, or guests send none.
//! - The reenlightenment registers, because KVM stores them and does nothing.
//!
//! All others are KVM's. A row that is off stays with KVM as well: its registers then are what KVM makes of them.

use super::crash::{CrashReport, CrashState};
use super::enlightenment::Enlightenment as E;
use super::msr;
use super::resolve::Resolved;
use crate::units::Msr;

/// The rows whose MSRs hypernest owns when they are on.
pub(super) const OWNED: [E; 2] = [E::Crash, E::Reenlightenment];

/// What a guest's write to an owned MSR means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// It is done.
    Done,
    /// The guest gets #GP.
    GeneralProtection,
    /// It is done here, and KVM must be told (KVM_SET_MSRS on the vCPU that exited) before the vCPU goes on.
    Forward(Msr, u64),
    /// The guest reports a crash.
    Crash(CrashReport),
}

/// The MSRs that hypernest owns: one for the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    crash: Option<CrashState>,
    reenlightenment: Option<Reenlightenment>,
}

impl Partition {
    /// As at power-on, with what `resolved` turned on.
    pub fn new(resolved: &Resolved) -> Self {
        Self {
            crash: resolved.has(E::Crash).then(CrashState::default),
            reenlightenment: resolved
                .has(E::Reenlightenment)
                .then(Reenlightenment::default),
        }
    }

    /// Back to power-on.
    pub fn reset(&mut self) {
        self.crash = self.crash.as_ref().map(|_| CrashState::default());
        self.reenlightenment = self
            .reenlightenment
            .as_ref()
            .map(|_| Reenlightenment::default());
    }

    /// The guest reads `msr`; `None` is #GP.
    pub fn rdmsr(&self, msr: Msr) -> Option<u64> {
        let crash = self.crash.as_ref().and_then(|c| c.rdmsr(msr));
        crash.or_else(|| self.reenlightenment.as_ref()?.rdmsr(msr))
    }

    /// The guest writes `value` to `msr`.
    pub fn wrmsr(&mut self, msr: Msr, value: u64) -> WriteOutcome {
        match (&mut self.crash, &mut self.reenlightenment) {
            (Some(crash), _) if crash.rdmsr(msr).is_some() => crash.wrmsr(msr, value),
            (_, Some(reenlightenment)) => reenlightenment.wrmsr(msr, value),
            _ => WriteOutcome::GeneralProtection,
        }
    }

    /// The reenlightenment registers, if the guest has them.
    pub fn reenlightenment(&self) -> Option<&Reenlightenment> {
        self.reenlightenment.as_ref()
    }
}

/// The reenlightenment registers (TLFS, "Timers": "Reenlightenment Notifications").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reenlightenment {
    control: u64,
    emulation_control: u64,
    /// Nothing changes the frequency under a running guest so far, so there is no emulation to be in progress.
    emulation_status: u64,
}

/// CONTROL: vector in 7:0, enabled in 16, target VP in 63:32; the rest is reserved.
const CONTROL_RESERVED: u64 = 0xfffe_ff00;
/// CONTROL: the guest wants to be told.
const CONTROL_ENABLED: u64 = 1 << 16;
/// The least vector that a local APIC delivers (SDM vol. 3, "Valid Interrupt Vectors").
const LEAST_VECTOR: u64 = 16;
/// EMULATION_CONTROL and EMULATION_STATUS have but bit 0.
const BIT_0: u64 = 1;

impl Reenlightenment {
    /// Whom to tell of a new TSC frequency: the vector and the VP, if the guest wants to be told.
    pub fn target(&self) -> Option<(u8, u32)> {
        (self.control & CONTROL_ENABLED != 0)
            .then_some(((self.control & 0xff) as u8, (self.control >> 32) as u32))
    }

    /// Whether the guest wants its old TSC frequency until it has adapted.
    pub fn wants_emulation(&self) -> bool {
        self.emulation_control & BIT_0 != 0
    }

    fn rdmsr(&self, msr: Msr) -> Option<u64> {
        match msr {
            msr::REENLIGHTENMENT_CONTROL => Some(self.control),
            msr::TSC_EMULATION_CONTROL => Some(self.emulation_control),
            msr::TSC_EMULATION_STATUS => Some(self.emulation_status),
            _ => None,
        }
    }

    fn wrmsr(&mut self, msr: Msr, value: u64) -> WriteOutcome {
        match msr {
            msr::REENLIGHTENMENT_CONTROL
                if value & CONTROL_RESERVED == 0
                    && (value & CONTROL_ENABLED == 0 || value & 0xff >= LEAST_VECTOR) =>
            {
                self.control = value;
                WriteOutcome::Done
            }
            // KVM leaves the reference TSC page alone while its copy is 1 (tsc_page_update_unsafe): a hypervisor inside
            // relies on the page not changing under it.
            msr::TSC_EMULATION_CONTROL if value & !BIT_0 == 0 => {
                self.emulation_control = value;
                WriteOutcome::Forward(msr, value)
            }
            // A guest can end an emulation, not begin one.
            msr::TSC_EMULATION_STATUS if value == 0 => {
                self.emulation_status = 0;
                WriteOutcome::Done
            }
            _ => WriteOutcome::GeneralProtection,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::host::tests::intel;
    use super::super::{Profile, Request, resolve};
    use super::*;
    use WriteOutcome::{Done, Forward, GeneralProtection};

    fn partition(list: &str) -> Partition {
        let request = Request::parse(list, Profile::Windows).unwrap();
        Partition::new(&resolve(&request, &intel(), true).unwrap())
    }

    #[test]
    fn reenlightenment_registers_keep_what_is_valid_and_refuse_the_rest() {
        let linux = 0x0000_0002_0001_00ee;
        for (msr, value, outcome) in [
            (msr::REENLIGHTENMENT_CONTROL, linux, Done),
            (msr::REENLIGHTENMENT_CONTROL, linux & !CONTROL_ENABLED, Done),
            (msr::REENLIGHTENMENT_CONTROL, 0, Done),
            // A vector that cannot be delivered.
            (
                msr::REENLIGHTENMENT_CONTROL,
                1 << 16 | 0xf,
                GeneralProtection,
            ),
            (msr::REENLIGHTENMENT_CONTROL, 1 << 8, GeneralProtection),
            (msr::REENLIGHTENMENT_CONTROL, 1 << 17, GeneralProtection),
            (msr::REENLIGHTENMENT_CONTROL, 1 << 31, GeneralProtection),
            (
                msr::TSC_EMULATION_CONTROL,
                1,
                Forward(msr::TSC_EMULATION_CONTROL, 1),
            ),
            (
                msr::TSC_EMULATION_CONTROL,
                0,
                Forward(msr::TSC_EMULATION_CONTROL, 0),
            ),
            (msr::TSC_EMULATION_CONTROL, 2, GeneralProtection),
            (msr::TSC_EMULATION_STATUS, 0, Done),
            (msr::TSC_EMULATION_STATUS, 1, GeneralProtection),
            (Msr(0x4000_0109), 0, GeneralProtection),
        ] {
            let mut partition = partition("nested");
            assert_eq!(partition.wrmsr(msr, value), outcome, "{msr} = {value:#x}");
            if outcome == GeneralProtection {
                assert_eq!(partition, self::partition("nested"), "{msr} = {value:#x}");
            } else {
                assert_eq!(partition.rdmsr(msr), Some(value), "{msr}");
            }
        }
    }

    #[test]
    fn the_target_is_told_only_if_it_asked() {
        let mut partition = partition("nested");
        let target = |p: &Partition| p.reenlightenment().unwrap().target();
        assert_eq!(target(&partition), None);
        partition.wrmsr(msr::REENLIGHTENMENT_CONTROL, 0x0000_0003_0001_00ee);
        assert_eq!(target(&partition), Some((0xee, 3)));
        partition.wrmsr(msr::REENLIGHTENMENT_CONTROL, 0x0000_0003_0000_00ee);
        assert_eq!(target(&partition), None);
    }

    #[test]
    fn what_is_off_is_not_there() {
        let mut partition = partition("time");
        for number in 0x4000_0100..=0x4000_0108 {
            assert_eq!(partition.rdmsr(Msr(number)), None);
            assert_eq!(partition.wrmsr(Msr(number), 0), GeneralProtection);
        }
        assert_eq!(partition.reenlightenment(), None);
    }

    #[test]
    fn a_reset_forgets_everything() {
        let mut partition = partition("nested");
        let fresh = partition.clone();
        partition.wrmsr(msr::REENLIGHTENMENT_CONTROL, 0x1_00ee);
        partition.wrmsr(msr::TSC_EMULATION_CONTROL, 1);
        partition.wrmsr(msr::CRASH_P0, 7);
        assert_ne!(partition, fresh);
        partition.reset();
        assert_eq!(partition, fresh);
    }

    proptest! {
        #[test]
        fn every_filtered_msr_answers_and_no_write_panics(offset in 0u32..12, value: u64) {
            let mut partition = partition("nested");
            let msr = Msr(0x4000_0100 + offset);
            let owned = offset < 9;
            prop_assert_eq!(partition.rdmsr(msr).is_some(), owned);
            let outcome = partition.wrmsr(msr, value);
            prop_assert!(owned || outcome == GeneralProtection);
        }
    }
}
