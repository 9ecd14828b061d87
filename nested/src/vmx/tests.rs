extern crate std;

use std::collections::HashSet;

use super::controls::adjust;
use super::*;

mod against_x86;

#[test]
fn a_field_is_named_once() {
    let encodings: HashSet<_> = Field::ALL.iter().map(|field| field.encoding()).collect();
    assert_eq!(encodings.len(), Field::ALL.len());
    assert!(
        Field::ALL
            .iter()
            .all(|field| !field.is_high_half() && field.name().is_some())
    );
    assert_eq!(std::format!("{:?}", Field::GUEST_RIP), "GUEST_RIP (0x681e)");
    assert_eq!(
        std::format!("{:?}", Field::new(0x2001)),
        "VMCS field 0x2001"
    );
    assert!(Field::new(0x2001).is_high_half());
}

#[test]
fn width_and_area_follow_from_the_encoding() {
    let table = [
        (Field::VPID, Width::Bits16, Area::Control),
        (Field::GUEST_CS_SELECTOR, Width::Bits16, Area::Guest),
        (Field::MSR_BITMAP, Width::Bits64, Area::Control),
        (
            Field::GUEST_PHYSICAL_ADDRESS,
            Width::Bits64,
            Area::ExitInformation,
        ),
        (Field::EXIT_REASON, Width::Bits32, Area::ExitInformation),
        (Field::HOST_SYSENTER_CS, Width::Bits32, Area::Host),
        (
            Field::EXIT_QUALIFICATION,
            Width::Natural,
            Area::ExitInformation,
        ),
        (Field::GUEST_RIP, Width::Natural, Area::Guest),
    ];
    for (field, width, area) in table {
        assert_eq!((field.width(), field.area()), (width, area), "{field:?}");
    }
}

#[test]
fn controls_are_adjusted_to_what_the_processor_demands_and_allows() {
    // Requires 0x16, allows 0x7F: IA32_VMX_PINBASED_CTLS of many processors.
    let capability = 0x0000_007F_0000_0016;
    assert_eq!(adjust(capability, 0), Ok(0x16));
    assert_eq!(adjust(capability, 0x41), Ok(0x57));
    assert_eq!(adjust(capability, 0x81), Err(0x80));
}

#[test]
fn capability_fields() {
    // KVM's: revision 0x11e57ed0, 4096-byte regions, write-back, true controls.
    let basic = 0x00D8_1000_11E5_7ED0;
    assert_eq!(msr::basic_revision(basic), 0x11E5_7ED0);
    assert_eq!(msr::basic_revision(u64::MAX), 0x7FFF_FFFF);
    assert!(msr::basic_has_true_controls(basic));
    assert!(!msr::basic_has_true_controls(basic & !(1 << 55)));
    assert_eq!(msr::misc_preemption_shift(0x2000_0065), 5);
}

#[test]
fn exit_reasons_are_numbered_and_named_once() {
    let numbers: HashSet<_> = exit_reason::ALL.iter().map(|&(number, _)| number).collect();
    let names: HashSet<_> = exit_reason::ALL.iter().map(|&(_, name)| name).collect();
    assert_eq!(numbers.len(), exit_reason::ALL.len());
    assert_eq!(names.len(), exit_reason::ALL.len());
    for &(number, name) in exit_reason::ALL {
        assert_eq!(exit_reason::name(number), Some(name));
    }
    assert_eq!(exit_reason::name(35), None);
    assert_eq!(
        exit_reason::basic(0x8000_0021),
        exit_reason::INVALID_GUEST_STATE
    );
    assert_eq!(
        exit_reason::basic(exit_reason::FROM_ENCLAVE | 10),
        exit_reason::CPUID
    );
}

#[test]
fn events() {
    assert_eq!(interruption::external(0xE1), 0x8000_00E1);
    assert_eq!(interruption::exception(14, true), 0x8000_0B0E);
    assert_eq!(interruption::exception(6, false), 0x8000_0306);
    assert_eq!(interruption::vector(0x8000_0B0E), 14);
    assert_eq!(
        interruption::kind(0x8000_0B0E),
        interruption::HARDWARE_EXCEPTION
    );
    assert_eq!(interruption::kind(0x8000_0202), interruption::NMI);
}

#[test]
fn qualifications() {
    // OUT 0x404, EAX.
    assert_eq!(qualification::io_size(0x0404_0003), 4);
    assert_eq!(qualification::io_port(0x0404_0003), 0x404);
    assert_eq!(0x0404_0003 & qualification::IO_IN, 0);
    // MOV CR3, R10.
    assert_eq!(qualification::control_register(0x0A03), 3);
    assert_eq!(qualification::control_register_access(0x0A03), 0);
    assert_eq!(qualification::general_register(0x0A03), 10);
    // MOV RAX, CR8.
    assert_eq!(qualification::control_register(0x0018), 8);
    assert_eq!(qualification::control_register_access(0x0018), 1);
}

#[test]
fn ept_pointer_has_four_levels_and_write_back() {
    assert_eq!(ept::pointer(0x1234_5678_9000), 0x1234_5678_901E);
    assert_eq!(ept::pointer(0xFFF), 0x1E);
}
