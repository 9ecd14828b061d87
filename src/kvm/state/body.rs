//! The state as bodies of sections. Structures are KVM's own (include/uapi/linux/kvm.h), which never change.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::vm::CHIP;
use super::{VcpuState, VmState};
use crate::state::{Decoder, Encoder, StateError};
use crate::units::Msr;

/// The maximum size of an XSAVE area in a section: far more than any CPU has.
const XSAVE_MOST: usize = 1 << 20;

impl VcpuState {
    /// The version of the section's body.
    pub const VERSION: u32 = 1;

    /// Serializes it.
    pub fn encode(&self, e: &mut Encoder) {
        e.bytes(self.mp_state.as_bytes());
        e.bytes(self.events.as_bytes());
        e.bytes(&self.nested);
        e.bytes(self.regs.as_bytes());
        e.bytes(self.sregs.as_bytes());
        e.bytes(&self.xsave);
        e.bool(self.xcrs.is_some());
        if let Some(xcrs) = &self.xcrs {
            e.bytes(xcrs.as_bytes());
        }
        e.bytes(self.debug_regs.as_bytes());
        e.bytes(self.lapic.as_bytes());
        for list in [
            &self.feature_control,
            &self.hyperv_msrs,
            &self.msrs,
            &self.tsc_deadline,
        ] {
            encode_msrs(e, list);
        }
    }

    /// Decodes the form that [`VcpuState::encode`] writes.
    ///
    /// # Errors
    /// If the body is malformed.
    pub fn decode(d: &mut Decoder<'_>) -> Result<Self, StateError> {
        let mp_state = structure(d, "mp_state")?;
        let events = structure(d, "events")?;
        let nested = d.bytes("nested")?.to_vec();
        if nested.len() > hypernest_nested::nested_state::MOST {
            return Err(d.invalid("nested", "longer than any nested state"));
        }
        let regs = structure(d, "regs")?;
        let sregs = structure(d, "sregs")?;
        let xsave = d.bytes("xsave")?.to_vec();
        if xsave.len() > XSAVE_MOST {
            return Err(d.invalid("xsave", "longer than any floating-point state"));
        }
        let xcrs = match d.bool("xcrs")? {
            true => Some(structure(d, "xcrs")?),
            false => None,
        };
        Ok(Self {
            mp_state,
            events,
            nested,
            regs,
            sregs,
            xsave,
            xcrs,
            debug_regs: structure(d, "debug_regs")?,
            lapic: structure(d, "lapic")?,
            feature_control: decode_msrs(d, "feature_control")?,
            hyperv_msrs: decode_msrs(d, "hyperv_msrs")?,
            msrs: decode_msrs(d, "msrs")?,
            tsc_deadline: decode_msrs(d, "tsc_deadline")?,
        })
    }
}

impl VmState {
    /// The version of the section's body.
    pub const VERSION: u32 = 1;

    /// Serializes it.
    pub fn encode(&self, e: &mut Encoder) {
        for chip in &self.chips {
            e.array(chip);
        }
        e.bytes(self.pit.as_bytes());
    }

    /// Decodes the form that [`VmState::encode`] writes.
    ///
    /// # Errors
    /// If the body is malformed.
    pub fn decode(d: &mut Decoder<'_>) -> Result<Self, StateError> {
        let mut chips = [[0; CHIP]; 3];
        for (chip, what) in chips.iter_mut().zip(["pic0", "pic1", "ioapic"]) {
            *chip = d.array(what)?;
        }
        let pit = structure(d, "pit")?;
        Ok(Self { chips, pit })
    }
}

/// Encodes a list of MSRs.
pub(crate) fn encode_msrs(e: &mut Encoder, msrs: &[(Msr, u64)]) {
    e.u64(msrs.len() as u64);
    for (msr, value) in msrs {
        e.u32(msr.0);
        e.u64(*value);
    }
}

/// Decodes the form that [`encode_msrs`] writes.
pub(crate) fn decode_msrs(d: &mut Decoder<'_>, item: &str) -> Result<Vec<(Msr, u64)>, StateError> {
    let count = d.count(item, 4 + 8)?;
    (0..count)
        .map(|_| Ok((Msr(d.u32(item)?), d.u64(item)?)))
        .collect()
}

fn structure<T: FromBytes + IntoBytes + Immutable>(
    d: &mut Decoder<'_>,
    item: &str,
) -> Result<T, StateError> {
    let bytes = d.bytes(item)?;
    T::read_from_bytes(bytes).map_err(|_| {
        d.invalid(
            item,
            format!("{} bytes instead of {}", bytes.len(), size_of::<T>()),
        )
    })
}
