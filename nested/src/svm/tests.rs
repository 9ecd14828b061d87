extern crate std;

use std::collections::HashSet;

use super::*;

#[test]
fn exit_codes_are_numbered_and_named_once() {
    let codes: HashSet<_> = exit_code::ALL.iter().map(|&(code, _)| code).collect();
    let names: HashSet<_> = exit_code::ALL.iter().map(|&(_, name)| name).collect();
    assert_eq!(codes.len(), exit_code::ALL.len());
    assert_eq!(names.len(), exit_code::ALL.len());
    for &(code, name) in exit_code::ALL {
        assert_eq!(exit_code::name(code), Some(name));
    }
}

#[test]
fn codes_by_register_and_exception_have_the_name_of_their_kind() {
    let table = [
        (exit_code::CR0_READ, Some("cr-read")),
        (exit_code::CR3_WRITE, Some("cr-write")),
        (exit_code::DR0_READ + 7, Some("dr-read")),
        (exit_code::DR0_WRITE, Some("dr-write")),
        (exit_code::PAGE_FAULT, Some("exception")),
        (exit_code::CR0_WRITE_TRAP + 15, Some("cr-write-trap")),
        (0x404, None),
        (0xFFFF_FFFF, Some("invalid-state")),
        (u64::MAX, Some("invalid-state")),
        (0x1_0000_0072, None),
    ];
    for (code, name) in table {
        assert_eq!(exit_code::name(code), name, "{code:#x}");
    }
    assert_eq!(exit_code::PAGE_FAULT, exit_code::EXCEPTION + 14);
}

/// An intercept's bit is at the same distance from the first as its exit code from the code of interrupts
/// (APM volume 2, appendices B and C).
#[test]
fn intercepts_stand_where_their_exit_codes_say() {
    let table = [
        (intercept::CR3_READ, 0x003),
        (intercept::CR0_WRITE, exit_code::CR0_WRITE),
        (intercept::CR3_WRITE, exit_code::CR3_WRITE),
        (intercept::CR4_WRITE, exit_code::CR0_WRITE + 4),
        (intercept::PAGE_FAULT, exit_code::PAGE_FAULT),
        (intercept::INTERRUPT, exit_code::INTERRUPT),
        (intercept::NMI, exit_code::NMI),
        (intercept::SMI, exit_code::SMI),
        (intercept::INIT, exit_code::INIT),
        (intercept::VIRTUAL_INTERRUPT, exit_code::VIRTUAL_INTERRUPT),
        (intercept::RDTSC, exit_code::RDTSC),
        (intercept::CPUID, exit_code::CPUID),
        (intercept::INVD, exit_code::INVD),
        (intercept::PAUSE, exit_code::PAUSE),
        (intercept::HLT, exit_code::HLT),
        (intercept::INVLPG, exit_code::INVLPG),
        (intercept::IO, exit_code::IO),
        (intercept::MSR, exit_code::MSR),
        (intercept::SHUTDOWN, exit_code::SHUTDOWN),
        (intercept::VMRUN, exit_code::VMRUN),
        (intercept::VMMCALL, exit_code::VMMCALL),
        (intercept::VMLOAD, exit_code::VMLOAD),
        (intercept::VMSAVE, exit_code::VMSAVE),
        (intercept::STGI, exit_code::STGI),
        (intercept::CLGI, exit_code::CLGI),
        (intercept::SKINIT, exit_code::SKINIT),
        (intercept::RDTSCP, exit_code::RDTSCP),
        (intercept::WBINVD, exit_code::WBINVD),
        (intercept::MONITOR, exit_code::MONITOR),
        (intercept::MWAIT, exit_code::MWAIT),
        (intercept::XSETBV, exit_code::XSETBV),
    ];
    for ((word, bit), code) in table {
        assert_eq!(bit.count_ones(), 1);
        assert_eq!(
            word as u64 * 32 + u64::from(bit.trailing_zeros()),
            code,
            "{code:#x}"
        );
    }
}

#[test]
fn clean_bits_are_distinct() {
    let bits = [
        clean::INTERCEPTS,
        clean::PERMISSION_MAPS,
        clean::ASID,
        clean::INTERRUPTS,
        clean::NESTED_PAGING,
        clean::CONTROL_REGISTERS,
        clean::DEBUG_REGISTERS,
        clean::DESCRIPTOR_TABLES,
        clean::SEGMENTS,
        clean::CR2,
        clean::LBR,
        clean::AVIC,
        clean::ENLIGHTENMENTS,
    ];
    assert_eq!(bits.iter().fold(0, |all, bit| all | bit), clean::ALL);
    assert_eq!(
        bits.iter().map(|bit| bit.count_ones()).sum::<u32>(),
        clean::ALL.count_ones()
    );
}

#[test]
fn the_msr_map_has_two_bits_for_each_msr() {
    let table = [
        (0, Some((0, 0b01))),
        (0x10, Some((4, 0b01))),
        (0x1B, Some((6, 0b0100_0000))),
        (0x1FFF, Some((0x7FF, 0b0100_0000))),
        (0x2000, None),
        (0x4000_0000, None),
        (0xC000_0080, Some((0x820, 0b01))),
        // KernelGSBase.
        (0xC000_0102, Some((0x840, 0b01_0000))),
        (0xC000_2000, None),
        (0xC001_0117, Some((0x1045, 0b0100_0000))),
        (0xC001_1FFF, Some((0x17FF, 0b0100_0000))),
        (u32::MAX, None),
    ];
    for (msr, place) in table {
        assert_eq!(msr_map_bit(msr), place, "{msr:#x}");
    }
}

#[test]
fn events_and_port_accesses() {
    assert_eq!(event::interrupt(0xE1), 0x8000_00E1);
    assert_eq!(event::exception(14, true), 0x8000_0B0E);
    // OUT 0x404, EAX.
    assert_eq!((io_port(0x0404_0140), io_size(0x0404_0140)), (0x404, 4));
    assert_eq!(0x0404_0140 & IO_IN, 0);
}
