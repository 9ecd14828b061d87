//! The guest's processor.

use serde::Serialize;

use crate::cpuid::feature::{self, Feature};
use crate::cpuid::{CpuidEntry, vendor};
use crate::machine::promise::Promise;

/// A processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SavedCpu {
    /// `Intel`, `AMD`, `other`.
    pub vendor: String,
    /// The brand string.
    pub brand: String,
    /// Width of a physical address.
    pub physical_bits: u8,
    /// The features that have a name in the table.
    pub features: Vec<&'static str>,
}

impl SavedCpu {
    /// The processor of a promise.
    pub(super) fn of(promise: &Promise) -> Self {
        let leaves = promise.cpuid.as_slice();
        let shown = |feature: &&Feature| feature.is_in(leaves);
        Self {
            vendor: vendor(leaves).to_string(),
            brand: brand(leaves),
            physical_bits: physical_bits(leaves),
            features: feature::ALL.iter().filter(shown).map(|f| f.name).collect(),
        }
    }
}

/// CPUID 0x80000008.EAX\[7:0\]; 36 without that leaf.
pub(super) fn physical_bits(leaves: &[CpuidEntry]) -> u8 {
    let leaf = leaves.iter().find(|e| e.function == 0x8000_0008);
    leaf.map_or(36, |e| e.eax.to_le_bytes()[0])
}

fn brand(leaves: &[CpuidEntry]) -> String {
    let bytes: Vec<u8> = (0x8000_0002..=0x8000_0004)
        .filter_map(|function| leaves.iter().find(|e| e.function == function))
        .flat_map(|e| [e.eax, e.ebx, e.ecx, e.edx])
        .flat_map(u32::to_le_bytes)
        .collect();
    let text = String::from_utf8_lossy(&bytes);
    let shown = text.chars().filter(|c| !c.is_control());
    shown.collect::<String>().trim().to_owned()
}
