//! hv-reenlightenment: the registers by which a guest requests notification of a new TSC frequency, and by
//! which the emulation of its old one ends (TLFS, "Timers": "Reenlightenment Notifications").
//!
//! ```text
//!  guest    CONTROL = vector, VP, enabled     EMULATION_CONTROL = 1
//!  move     hypernest keeps the old frequency by TSC scaling, STATUS reads 1, the vector goes to the VP
//!  guest    stops its own guests, STATUS = 0  ─► EmulationEnded: all vCPUs stop, the frequency changes, STATUS reads 0
//!  guest    reads TSC_FREQUENCY: the new one, adapts, resumes its own guests
//! ```

use super::msr;
use super::partition::WriteOutcome;
use crate::state::{Decoder, Encoder, StateError};
use crate::units::{Msr, VpIndex};

/// CONTROL: vector in 7:0, enabled in 16, target VP in 63:32; the rest is reserved.
const CONTROL_RESERVED: u64 = 0xfffe_ff00;
/// CONTROL: the guest enables the notification.
const CONTROL_ENABLED: u64 = 1 << 16;
/// The lowest vector that a local APIC delivers (SDM vol. 3, "Valid Interrupt Vectors").
const LEAST_VECTOR: u64 = 16;
/// EMULATION_CONTROL and EMULATION_STATUS have only bit 0.
const BIT_0: u64 = 1;

/// The reenlightenment registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reenlightenment {
    control: u64,
    emulation_control: u64,
    emulation: Emulation,
}

/// The state of the emulation of the old frequency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Emulation {
    /// The guest has the frequency in TSC_FREQUENCY, and no emulation.
    #[default]
    No,
    /// The guest has its old frequency.
    InProgress,
    /// The guest no longer needs it, and hypernest has not switched yet.
    Ending,
}

/// The target of the interrupt after a change of the frequency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotifyTarget {
    /// The interrupt's vector.
    pub vector: u8,
    /// The virtual processor; a guest can write any number.
    pub vp: VpIndex,
}

impl Reenlightenment {
    /// The target of the interrupt, if the guest enabled it.
    pub fn target(&self) -> Option<NotifyTarget> {
        (self.control & CONTROL_ENABLED != 0).then_some(NotifyTarget {
            vector: (self.control & 0xff) as u8,
            vp: VpIndex((self.control >> 32) as u32),
        })
    }

    /// Whether the guest requests its old TSC frequency until it has adapted.
    pub fn wants_emulation(&self) -> bool {
        self.emulation_control & BIT_0 != 0
    }

    /// Whether the guest still has its old frequency.
    pub fn is_emulating(&self) -> bool {
        self.emulation != Emulation::No
    }

    /// Whether the guest has reported that it no longer needs its old frequency, and still has it.
    pub fn is_ending(&self) -> bool {
        self.emulation == Emulation::Ending
    }

    /// Records that the guest has moved to a host with another frequency, and keeps its own until it has
    /// adapted.
    pub fn begin_emulation(&mut self) {
        self.emulation = Emulation::InProgress;
    }

    /// The guest has its host's frequency.
    pub fn end_emulation(&mut self) {
        self.emulation = Emulation::No;
    }

    pub(super) fn rdmsr(&self, msr: Msr) -> Option<u64> {
        match msr {
            msr::REENLIGHTENMENT_CONTROL => Some(self.control),
            msr::TSC_EMULATION_CONTROL => Some(self.emulation_control),
            msr::TSC_EMULATION_STATUS => Some(u64::from(self.is_emulating())),
            _ => None,
        }
    }

    pub(super) fn wrmsr(&mut self, msr: Msr, value: u64) -> WriteOutcome {
        match msr {
            msr::REENLIGHTENMENT_CONTROL if control_is_valid(value) => {
                self.control = value;
                WriteOutcome::Done
            }
            // KVM does not update the reference TSC page while its copy is 1 (tsc_page_update_unsafe): a
            // hypervisor inside relies on the page not changing under it.
            msr::TSC_EMULATION_CONTROL if value & !BIT_0 == 0 => {
                self.emulation_control = value;
                WriteOutcome::Forward(msr, value)
            }
            // A guest can end an emulation, not start one.
            msr::TSC_EMULATION_STATUS if value == 0 && self.is_emulating() => {
                self.emulation = Emulation::Ending;
                WriteOutcome::EmulationEnded
            }
            msr::TSC_EMULATION_STATUS if value == 0 => WriteOutcome::Done,
            _ => WriteOutcome::GeneralProtection,
        }
    }

    pub(super) fn save(&self, to: &mut Encoder) {
        to.u64(self.control);
        to.u64(self.emulation_control);
        to.u64(u64::from(self.is_emulating()));
    }

    pub(super) fn load(from: &mut Decoder<'_>) -> Result<Self, StateError> {
        let control = from.u64("reenlightenment control")?;
        if !control_is_valid(control) {
            let why = format!("{control:#x} has reserved bits or no valid vector");
            return Err(from.invalid("reenlightenment control", why));
        }
        Ok(Self {
            control,
            emulation_control: bit(from, "TSC emulation control")?,
            emulation: match bit(from, "TSC emulation status")? {
                0 => Emulation::No,
                _ => Emulation::InProgress,
            },
        })
    }
}

fn control_is_valid(value: u64) -> bool {
    value & CONTROL_RESERVED == 0 && (value & CONTROL_ENABLED == 0 || value & 0xff >= LEAST_VECTOR)
}

fn bit(from: &mut Decoder<'_>, item: &str) -> Result<u64, StateError> {
    let value = from.u64(item)?;
    if value & !BIT_0 == 0 {
        Ok(value)
    } else {
        Err(from.invalid(item, format!("{value:#x} has reserved bits")))
    }
}
