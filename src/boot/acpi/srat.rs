//! The System Resource Affinity Table (5.2.16): one node with all processors and all RAM.

use super::{AcpiConfig, Entries, XAPIC_ID_MAX, table};
use crate::layout;

const REVISION: u8 = 3;

// Entry types.
const PROCESSOR: u8 = 0;
const MEMORY: u8 = 1;
const PROCESSOR_X2APIC: u8 = 2;

const ENABLED: u32 = 1 << 0;

pub(super) fn srat(config: &AcpiConfig) -> Vec<u8> {
    let mut entries = Entries::default();
    for &id in &config.apic_ids {
        match u8::try_from(id) {
            Ok(id) if u32::from(id) <= XAPIC_ID_MAX => {
                // Domain bits 7:0, APIC id, flags, SAPIC EID and domain bits 31:8, clock domain.
                entries.raw(
                    PROCESSOR,
                    &[&[0, id], &ENABLED.to_le_bytes(), &[0; 4], &[0; 4]],
                );
            }
            _ => {
                // Reserved, domain, id, flags, clock domain, reserved.
                let fields: [&[u8]; 6] = [
                    &[0; 2],
                    &[0; 4],
                    &id.to_le_bytes(),
                    &ENABLED.to_le_bytes(),
                    &[0; 4],
                    &[0; 4],
                ];
                entries.raw(PROCESSOR_X2APIC, &fields);
            }
        }
    }
    for (start, end) in ranges(config) {
        // Domain, reserved, base, length, reserved, flags, reserved.
        let fields: [&[u8]; 7] = [
            &[0; 4],
            &[0; 2],
            &start.to_le_bytes(),
            &(end - start).to_le_bytes(),
            &[0; 4],
            &ENABLED.to_le_bytes(),
            &[0; 8],
        ];
        entries.raw(MEMORY, &fields);
    }
    // Reserved: one, for old readers, then zero.
    let mut body = [1_u32.to_le_bytes(), [0; 4], [0; 4]].concat();
    body.extend_from_slice(&entries.0);
    table(*b"SRAT", REVISION, &body)
}

/// RAM without the hole below 1 MiB.
fn ranges(config: &AcpiConfig) -> impl Iterator<Item = (u64, u64)> {
    config
        .ram
        .iter()
        .flat_map(|&(start, len)| {
            let end = start.0.saturating_add(len);
            [
                (start.0, end.min(layout::EBDA.end)),
                (start.0.max(layout::HIGH_MEMORY.0), end),
            ]
        })
        .filter(|(start, end)| start < end)
}
