extern crate std;

use std::collections::HashSet;

use super::*;
use crate::vmx::Area;

#[test]
fn every_field_stands_inside_the_page_and_apart_from_the_others() {
    let mut end = 0;
    for &field in FIELDS {
        let place = place(field).expect("in the table");
        assert!(place.offset >= end, "{field:?}");
        end = place.offset + u16::try_from(place.width.bytes()).expect("small");
        assert_eq!(
            usize::from(place.offset) % place.width.bytes(),
            0,
            "{field:?}"
        );
        assert_eq!(offset_of(field), Some(place.offset));
    }
    assert_eq!(usize::from(end), size_of::<Evmcs>());
    let distinct: HashSet<_> = FIELDS.iter().collect();
    assert_eq!(distinct.len(), FIELDS.len());
}

#[test]
fn known_places() {
    let table = [
        (Field::HOST_ES_SELECTOR, 8, clean::HOST_GRP1),
        (Field::HOST_RIP, 80, clean::HOST_GRP1),
        (Field::HOST_SYSENTER_CS, 88, clean::HOST_GRP1),
        (Field::MSR_BITMAP, 120, clean::MSR_BITMAP),
        (Field::GUEST_CR3, 552, clean::CRDR),
        (Field::HOST_RSP, 616, clean::HOST_POINTER),
        (Field::VPID, 632, clean::CONTROL_XLAT),
        (Field::EXIT_REASON, 692, clean::NONE),
        (Field::IO_RSI, 736, clean::NONE),
        (Field::IO_RDI, 744, clean::NONE),
        (Field::GUEST_RSP, 768, clean::GUEST_BASIC),
        (Field::PRIMARY_CONTROLS, 788, clean::CONTROL_PROC),
        (Field::TPR_THRESHOLD, 812, clean::NONE),
        (Field::GUEST_RIP, 816, clean::NONE),
        (Field::TSC_MULTIPLIER, 984, clean::CONTROL_GRP2),
        (Field::TERTIARY_CONTROLS, 1016, clean::CONTROL_GRP1),
    ];
    for (field, offset, clean) in table {
        let place = place(field).expect("in the table");
        assert_eq!((place.offset, place.clean), (offset, clean), "{field:?}");
    }
    for field in [
        Field::POSTED_INTERRUPT_VECTOR,
        Field::APIC_ACCESS_ADDRESS,
        Field::PML_INDEX,
    ] {
        assert_eq!(place(field), None);
    }
    assert_eq!(core::mem::offset_of!(Evmcs, hv_clean_fields), 824);
    assert_eq!(core::mem::offset_of!(Evmcs, hv_enlightenments_control), 836);
}

#[test]
fn what_an_exit_leaves_has_no_clean_bit_and_guest_state_has() {
    for &field in FIELDS {
        let clean = place(field).expect("in the table").clean;
        match field.area() {
            Area::ExitInformation => assert_eq!(clean, clean::NONE, "{field:?}"),
            Area::Guest | Area::Host if field == Field::GUEST_RIP => assert_eq!(clean, clean::NONE),
            Area::Guest | Area::Host => assert_eq!(clean.count_ones(), 1, "{field:?}"),
            Area::Control => {}
        }
    }
}

#[test]
fn groups_are_distinct_and_are_all() {
    let all = clean::GROUPS.iter().fold(0, |all, &(bit, _)| {
        assert_eq!(bit.count_ones(), 1);
        assert_eq!(all & bit, 0);
        all | bit
    });
    assert_eq!(all, clean::ALL);
    // Each group except the enlightenments' own has fields.
    for &(bit, name) in clean::GROUPS {
        let any = FIELDS
            .iter()
            .any(|&field| place(field).is_some_and(|place| place.clean == bit));
        assert_eq!(any, bit != clean::ENLIGHTENMENTS_CONTROL, "{name}");
    }
}

#[test]
fn what_the_enlightened_vmcs_has_no_field_for_is_not_supported() {
    use crate::vmx::controls::{entry, exit, pin, primary, secondary};
    let table = [
        (
            supported::PIN,
            pin::PREEMPTION_TIMER | pin::POSTED_INTERRUPTS,
        ),
        (supported::PRIMARY, primary::TERTIARY_CONTROLS),
        (
            supported::SECONDARY,
            secondary::VIRTUALIZE_APIC_ACCESSES
                | secondary::APIC_REGISTER_VIRTUALIZATION
                | secondary::VIRTUAL_INTERRUPT_DELIVERY
                | secondary::PAUSE_LOOP_EXITING
                | secondary::VM_FUNCTIONS
                | secondary::VMCS_SHADOWING
                | secondary::PAGE_MODIFICATION_LOG
                | secondary::TSC_SCALING,
        ),
        (supported::EXIT, exit::SAVE_PREEMPTION_TIMER),
        (
            supported::ENTRY,
            entry::ENTRY_TO_SMM | entry::DEACTIVATE_DUAL_MONITOR,
        ),
    ];
    for (supported, removed) in table {
        assert_eq!(supported & removed, 0);
    }
    assert_ne!(supported::SECONDARY & secondary::EPT, 0);
    assert_ne!(supported::PRIMARY & primary::MSR_BITMAPS, 0);
}
