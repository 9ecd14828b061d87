//! The Multiple APIC Description Table (5.2.12).

use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};

use super::{AcpiConfig, Entries, XAPIC_ID_MAX, table};
use crate::layout;

const REVISION: u8 = 5;
/// The machine has 8259 controllers too.
const PCAT_COMPAT: u32 = 1 << 0;

// Entry types (table 5.21).
const INTERRUPT_SOURCE_OVERRIDE: u8 = 2;
const LOCAL_APIC_NMI: u8 = 4;
const LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_NMI: u8 = 10;

const ENABLED: u32 = 1 << 0;
/// The bus of the interrupts that are overridden: ISA.
const ISA: u8 = 0;
// MPS INTI flags (table 5.26).
const AS_BUS: u16 = 0;
const ACTIVE_HIGH: u16 = 0b01;
const LEVEL: u16 = 0b11 << 2;
/// NMIs come in on the second local interrupt pin, as on every PC.
const LINT1: u8 = 1;

pub(super) fn madt(config: &AcpiConfig) -> Vec<u8> {
    let mut entries = Entries::default();
    for (uid, &id) in (0_u32..).zip(&config.apic_ids) {
        match (u8::try_from(uid), u8::try_from(id)) {
            (Ok(uid), Ok(id)) if u32::from(id) <= XAPIC_ID_MAX => {
                entries.push(&ProcessorLocalApic::new(uid, id, EnabledStatus::Enabled));
            }
            _ => entries.raw(
                LOCAL_X2APIC,
                &[
                    &[0; 2],
                    &id.to_le_bytes(),
                    &ENABLED.to_le_bytes(),
                    &uid.to_le_bytes(),
                ],
            ),
        }
    }
    // Its id is not used: interrupts go to local APICs over no APIC bus.
    let ioapic = u32::try_from(layout::IOAPIC.0).unwrap_or(u32::MAX);
    entries.push(&IoApic::new(0, ioapic, 0));
    if config.pic {
        let timer = u8::try_from(layout::TIMER_IRQ.0).unwrap_or(u8::MAX);
        entries.raw(
            INTERRUPT_SOURCE_OVERRIDE,
            &[
                &[ISA, timer],
                &layout::TIMER_PIN.0.to_le_bytes(),
                &AS_BUS.to_le_bytes(),
            ],
        );
    }
    let sci = u8::try_from(layout::SCI.0).unwrap_or(u8::MAX);
    entries.raw(
        INTERRUPT_SOURCE_OVERRIDE,
        &[
            &[ISA, sci],
            &layout::SCI.0.to_le_bytes(),
            &(ACTIVE_HIGH | LEVEL).to_le_bytes(),
        ],
    );
    // For all processors: UID all ones.
    entries.raw(LOCAL_APIC_NMI, &[&[0xff], &AS_BUS.to_le_bytes(), &[LINT1]]);
    if config.apic_ids.iter().any(|&id| id > XAPIC_ID_MAX) {
        entries.raw(
            LOCAL_X2APIC_NMI,
            &[&AS_BUS.to_le_bytes(), &[0xff; 4], &[LINT1, 0, 0, 0]],
        );
    }

    let lapic = u32::try_from(layout::LAPIC.0).unwrap_or(u32::MAX);
    let flags = if config.pic { PCAT_COMPAT } else { 0 };
    let mut body = [lapic.to_le_bytes(), flags.to_le_bytes()].concat();
    body.extend_from_slice(&entries.0);
    table(*b"APIC", REVISION, &body)
}
