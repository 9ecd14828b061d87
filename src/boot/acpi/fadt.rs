//! The Fixed ACPI Description Table (5.2.9).

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout;
use std::ops::Range;

// IA-PC boot architecture flags (5.2.9.3).
const LEGACY_DEVICES: u16 = 1 << 0;
const HAS_8042: u16 = 1 << 1;
const NO_VGA: u16 = 1 << 2;
/// Longer than these (in microseconds) means that there is no C2 and no C3 state.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;
/// The CMOS byte with the century.
const CENTURY: u8 = 0x32;

/// Offset and size of the fields FIRMWARE_CTRL, DSDT and X_DSDT (table 5.9), which lead to other tables.
pub(super) const POINTERS: [(u32, u8); 3] = [(36, 4), (40, 4), (140, 8)];

/// The table for a machine whose hardware is not reduced: Hyper-V's boot loader refuses PM1a blocks at
/// address zero. `facs` and `dsdt` are the offsets of these tables.
pub(super) fn fadt(facs: u32, dsdt: u32) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // These two say that there is no fixed sleep button, and that the RTC's wake status is in no fixed
        // register.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        // The PM timer has 32 bits.
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    // Old systems read the 32-bit fields, new ones the 64-bit fields; the FACS has only one.
    fadt.firmware_ctrl = facs.into();
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = u64::from(dsdt).into();
    fadt.sci_int = u16::try_from(layout::SCI.0).unwrap_or(u16::MAX).into();
    // No SMI command port: ACPI mode is always on.
    fadt.pm1a_evt_blk = u32::from(layout::PM1A_EVENT.start).into();
    fadt.pm1a_cnt_blk = u32::from(layout::PM1A_CONTROL.start).into();
    fadt.pm_tmr_blk = u32::from(layout::PM_TIMER.start).into();
    fadt.gpe0_blk = u32::from(layout::GPE0.start).into();
    fadt.pm1_evt_len = len(&layout::PM1A_EVENT);
    fadt.pm1_cnt_len = len(&layout::PM1A_CONTROL);
    fadt.pm_tmr_len = len(&layout::PM_TIMER);
    fadt.gpe0_blk_len = len(&layout::GPE0);
    fadt.x_pm1a_evt_blk = io(&layout::PM1A_EVENT, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = io(&layout::PM1A_CONTROL, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = io(&layout::PM_TIMER, AccessSize::DwordAccess);
    fadt.x_gpe0_blk = io(&layout::GPE0, AccessSize::ByteAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = CENTURY;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | HAS_8042 | NO_VGA).into();
    fadt.reset_reg = io(
        &(layout::RESET_PORT..layout::RESET_PORT + 1),
        AccessSize::ByteAccess,
    );
    fadt.reset_value = layout::RESET_VALUE;
    fadt.finalize()
}

fn len(ports: &Range<u16>) -> u8 {
    u8::try_from(ports.len()).unwrap_or(u8::MAX)
}

fn io(ports: &Range<u16>, access: AccessSize) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8 * len(ports),
        0,
        access,
        ports.start.into(),
    )
}
