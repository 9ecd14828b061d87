//! The synthetic MSRs that hypernest owns. KVM's MSR filter routes them here (KVM_EXIT_X86_RDMSR and
//! WRMSR).
//!
//! - The crash registers, because KVM reports a crash without the bits that the guest wrote, so the message
//!   bit would be lost; and because the control register must show that messages are accepted, or guests
//!   send none.
//! - The reenlightenment registers, because KVM stores them and does nothing.
//!
//! All others are KVM's. The registers of a row that is off stay with KVM as well, with KVM's behavior.

use super::crash::{CrashReport, CrashState};
use super::enlightenment::{Enlightenment as E, EnlightenmentSet};
use super::reenlightenment::Reenlightenment;
use super::resolve::Resolved;
use crate::state::{Decoder, Encoder, StateError};
use crate::units::Msr;

/// The rows whose MSRs hypernest owns when they are on.
pub(super) const OWNED: [E; 2] = [E::Crash, E::Reenlightenment];

/// The result of a guest's write to an owned MSR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The write is complete.
    Done,
    /// The guest gets #GP.
    GeneralProtection,
    /// The write is complete here, and must be repeated in KVM (KVM_SET_MSRS on the vCPU that exited)
    /// before the vCPU continues.
    Forward(Msr, u64),
    /// The guest reports a crash.
    Crash(CrashReport),
    /// The guest no longer needs its old TSC frequency. The vCPU continues with the new one.
    EmulationEnded,
}

/// The MSRs that hypernest owns; one instance per VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    crash: Option<CrashState>,
    reenlightenment: Option<Reenlightenment>,
}

impl Partition {
    /// The power-on state, with the enlightenments of `resolved`.
    pub fn new(resolved: &Resolved) -> Self {
        Self::with(resolved.enabled())
    }

    /// The power-on state, with the enlightenments in `enabled`.
    pub fn with(enabled: EnlightenmentSet) -> Self {
        Self {
            crash: enabled.contains(E::Crash).then(CrashState::default),
            reenlightenment: enabled
                .contains(E::Reenlightenment)
                .then(Reenlightenment::default),
        }
    }

    /// All registers.
    pub fn registers(&self) -> impl Iterator<Item = (Msr, u64)> {
        OWNED
            .into_iter()
            .flat_map(|id| id.row().msrs)
            .flat_map(|range| range.first.0..=range.last.0)
            .filter_map(|number| Some((Msr(number), self.rdmsr(Msr(number))?)))
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

    /// The reenlightenment registers, for the changes that hypernest makes.
    pub fn reenlightenment_mut(&mut self) -> Option<&mut Reenlightenment> {
        self.reenlightenment.as_mut()
    }

    /// The version of the format of [`Partition::save`].
    pub const VERSION: u32 = 1;

    /// Saves the registers.
    pub fn save(&self, to: &mut Encoder) {
        to.bool(self.crash.is_some());
        if let Some(crash) = &self.crash {
            crash.save(to);
        }
        to.bool(self.reenlightenment.is_some());
        if let Some(reenlightenment) = &self.reenlightenment {
            reenlightenment.save(to);
        }
    }

    /// Loads registers that [`Partition::save`] saved from a partition with the same enlightenments.
    ///
    /// # Errors
    /// If they belong to another partition, or no guest could have produced them.
    pub fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        let mut loaded = self.clone();
        expect(from, "hv-crash", loaded.crash.is_some())?;
        if let Some(crash) = &mut loaded.crash {
            *crash = CrashState::load(from)?;
        }
        expect(from, "hv-reenlightenment", loaded.reenlightenment.is_some())?;
        if let Some(reenlightenment) = &mut loaded.reenlightenment {
            *reenlightenment = Reenlightenment::load(from)?;
        }
        *self = loaded;
        Ok(())
    }
}

/// The saved registers must exist `here` too.
fn expect(from: &mut Decoder<'_>, item: &str, here: bool) -> Result<(), StateError> {
    match (from.bool(item)?, here) {
        (true, false) => Err(from.invalid(item, "the saved VM has it, this one does not")),
        (false, true) => Err(from.invalid(item, "this VM has it, the saved one does not")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::host::tests::intel;
    use super::super::msr;
    use super::super::reenlightenment::NotifyTarget;
    use super::super::{EnlightenmentRequest, Profile, resolve};
    use super::*;
    use crate::units::VpIndex;
    use WriteOutcome::{Done, EmulationEnded, Forward, GeneralProtection};

    fn partition(list: &str) -> Partition {
        let request = EnlightenmentRequest::parse(list, Profile::Windows).unwrap();
        Partition::new(&resolve(&request, &intel(), true).unwrap())
    }

    #[test]
    fn reenlightenment_registers_keep_what_is_valid_and_refuse_the_rest() {
        let linux = 0x0000_0002_0001_00ee;
        for (msr, value, outcome) in [
            (msr::REENLIGHTENMENT_CONTROL, linux, Done),
            (msr::REENLIGHTENMENT_CONTROL, linux & !(1 << 16), Done),
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
    fn target_is_returned_only_if_enabled() {
        let mut partition = partition("nested");
        let target = |p: &Partition| p.reenlightenment().unwrap().target();
        assert_eq!(target(&partition), None);
        partition.wrmsr(msr::REENLIGHTENMENT_CONTROL, 0x0000_0003_0001_00ee);
        let told = NotifyTarget {
            vector: 0xee,
            vp: VpIndex(3),
        };
        assert_eq!(target(&partition), Some(told));
        partition.wrmsr(msr::REENLIGHTENMENT_CONTROL, 0x0000_0003_0000_00ee);
        assert_eq!(target(&partition), None);
    }

    fn saved(partition: &Partition) -> Vec<u8> {
        let mut body = Encoder::new();
        partition.save(&mut body);
        body.into_body()
    }

    fn load(partition: &mut Partition, body: &[u8]) -> Result<(), StateError> {
        let mut decoder = Decoder::new("hyperv", Partition::VERSION, body);
        partition.load(&mut decoder)?;
        decoder.finish()
    }

    #[test]
    fn emulation_ends_after_the_request_of_the_guest_is_carried_out() {
        let mut partition = partition("nested");
        partition.wrmsr(msr::TSC_EMULATION_CONTROL, 1);
        assert_eq!(partition.wrmsr(msr::TSC_EMULATION_STATUS, 0), Done);
        partition.reenlightenment_mut().unwrap().begin_emulation();
        assert_eq!(partition.rdmsr(msr::TSC_EMULATION_STATUS), Some(1));
        assert_eq!(
            partition.wrmsr(msr::TSC_EMULATION_STATUS, 1),
            GeneralProtection
        );
        // Two vCPUs may request it at once.
        for _ in 0..2 {
            assert_eq!(
                partition.wrmsr(msr::TSC_EMULATION_STATUS, 0),
                EmulationEnded
            );
            // The old frequency is still emulated.
            assert_eq!(partition.rdmsr(msr::TSC_EMULATION_STATUS), Some(1));
            assert!(partition.reenlightenment().unwrap().is_ending());
        }
        partition.reenlightenment_mut().unwrap().end_emulation();
        assert_eq!(partition.rdmsr(msr::TSC_EMULATION_STATUS), Some(0));
        assert!(!partition.reenlightenment().unwrap().is_ending());
        assert_eq!(partition.wrmsr(msr::TSC_EMULATION_STATUS, 0), Done);
    }

    #[test]
    fn load_restores_the_saved_state() {
        let mut before = partition("nested");
        before.wrmsr(msr::REENLIGHTENMENT_CONTROL, 0x0000_0002_0001_00ee);
        before.wrmsr(msr::TSC_EMULATION_CONTROL, 1);
        before.wrmsr(msr::CRASH_P4, u64::MAX);
        before.reenlightenment_mut().unwrap().begin_emulation();
        let body = saved(&before);
        let mut after = partition("nested");
        load(&mut after, &body).unwrap();
        assert_eq!(after, before);
        // An ending emulation should end before a save; at least it is not lost.
        before.wrmsr(msr::TSC_EMULATION_STATUS, 0);
        assert_eq!(saved(&before), body);
    }

    #[test]
    fn state_of_another_partition_is_refused() {
        for (from, to, says) in [
            ("nested", "time", "hv-crash"),
            ("time", "nested", "hv-crash"),
            ("windows", "nested", "hv-reenlightenment"),
        ] {
            let body = saved(&partition(from));
            let mut other = partition(to);
            let fresh = other.clone();
            let error = load(&mut other, &body).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert_eq!(other, fresh);
        }
        // A register that no guest can have written.
        let mut bad = Encoder::new();
        bad.bool(false);
        bad.bool(true);
        for register in [1u64 << 16, 0, 0] {
            bad.u64(register);
        }
        let error = load(&mut partition("reenlightenment"), &bad.into_body()).unwrap_err();
        assert!(error.to_string().contains("vector"), "{error}");
    }

    #[test]
    fn registers_of_disabled_rows_do_not_exist() {
        let mut partition = partition("time");
        for number in 0x4000_0100..=0x4000_0108 {
            assert_eq!(partition.rdmsr(Msr(number)), None);
            assert_eq!(partition.wrmsr(Msr(number), 0), GeneralProtection);
        }
        assert_eq!(partition.reenlightenment(), None);
    }

    #[test]
    fn reset_clears_everything() {
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
        fn no_bytes_panic(body: Vec<u8>) {
            let mut partition = partition("nested");
            let fresh = partition.clone();
            if load(&mut partition, &body).is_err() {
                prop_assert_eq!(&partition, &fresh);
            }
        }

        #[test]
        fn every_filtered_msr_can_be_read_and_no_write_panics(offset in 0u32..12, value: u64) {
            let mut partition = partition("nested");
            let msr = Msr(0x4000_0100 + offset);
            let owned = offset < 9;
            prop_assert_eq!(partition.rdmsr(msr).is_some(), owned);
            let outcome = partition.wrmsr(msr, value);
            prop_assert!(owned || outcome == GeneralProtection);
        }
    }
}
