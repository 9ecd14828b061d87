//! The content of a VMCS: controls, the host's state, a new guest's state.
#![allow(unsafe_code, reason = "reads control registers")]

use core::arch::asm;

use hypernest_nested::vmx::controls::{entry, exit, pin, primary, secondary};
use hypernest_nested::vmx::{Field, access_rights, ept};

use super::capabilities::Capabilities;
use super::fields::Fields;
use super::switch::Frame;
use crate::l1::l2::{Environment, Start};
use crate::l1::vcpu::Intercepts;
use crate::text::Text;
use crate::trap::{self, Segments};

/// This processor's control registers.
#[derive(Debug, Clone, Copy)]
pub(super) struct ControlRegisters {
    pub(super) cr0: u64,
    pub(super) cr3: u64,
    pub(super) cr4: u64,
}

impl ControlRegisters {
    pub(super) fn read() -> Self {
        let (cr0, cr3, cr4);
        // SAFETY: reads registers.
        unsafe {
            asm!(
                "mov {cr0}, cr0",
                "mov {cr3}, cr3",
                "mov {cr4}, cr4",
                cr0 = out(reg) cr0,
                cr3 = out(reg) cr3,
                cr4 = out(reg) cr4,
                options(nomem, nostack, preserves_flags),
            );
        }
        Self { cr0, cr3, cr4 }
    }
}

/// Addresses that the controls contain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pointers {
    pub(super) io_bitmaps: [u64; 2],
    pub(super) msr_bitmap: u64,
    pub(super) ept_root: u64,
}

const PAGE_FAULT: u32 = 1 << 14;

/// Writes all controls.
pub(super) fn write_controls(
    fields: &mut impl Fields,
    capabilities: &Capabilities,
    intercepts: &Intercepts,
    pointers: Pointers,
) -> Result<(), Text> {
    let when = |condition, bit| if condition { bit } else { 0 };
    let timer = intercepts.preemption_timer;
    let pin = pin::EXTERNAL_INTERRUPT_EXITING | when(timer.is_some(), pin::PREEMPTION_TIMER);
    let primary = primary::SECONDARY_CONTROLS
        | primary::MSR_BITMAPS
        | primary::IO_BITMAPS
        | when(intercepts.halt, primary::HLT_EXITING)
        | when(intercepts.cr3, primary::CR3_LOAD_EXITING)
        | when(intercepts.pause, primary::PAUSE_EXITING);
    let exit = exit::HOST_ADDRESS_SPACE_SIZE | exit::ACKNOWLEDGE_INTERRUPT;
    let vpid = capabilities.secondary(secondary::VPID).is_ok();
    let secondary = secondary::EPT | when(vpid, secondary::VPID);
    let all = [
        (Field::PIN_CONTROLS, capabilities.pin(pin)?),
        (Field::PRIMARY_CONTROLS, capabilities.primary(primary)?),
        (
            Field::SECONDARY_CONTROLS,
            capabilities.secondary(secondary)?,
        ),
        (Field::EXIT_CONTROLS, capabilities.exit(exit)?),
        (
            Field::ENTRY_CONTROLS,
            capabilities.entry(entry::IA32E_MODE_GUEST)?,
        ),
        (
            Field::EXCEPTION_BITMAP,
            when(intercepts.page_fault, PAGE_FAULT),
        ),
        (Field::PAGE_FAULT_ERROR_CODE_MASK, 0),
        (Field::PAGE_FAULT_ERROR_CODE_MATCH, 0),
        (Field::CR3_TARGET_COUNT, 0),
        (Field::EXIT_MSR_STORE_COUNT, 0),
        (Field::EXIT_MSR_LOAD_COUNT, 0),
        (Field::ENTRY_MSR_LOAD_COUNT, 0),
        (Field::ENTRY_INTERRUPTION_INFO, 0),
    ];
    for (field, value) in all {
        fields.write(field, value.into());
    }
    if vpid {
        fields.write(Field::VPID, 1);
    }
    if let Some(ticks) = timer {
        fields.write(Field::PREEMPTION_TIMER, ticks.into());
    }
    fields.write(Field::IO_BITMAP_A, pointers.io_bitmaps[0]);
    fields.write(Field::IO_BITMAP_B, pointers.io_bitmaps[1]);
    fields.write(Field::MSR_BITMAP, pointers.msr_bitmap);
    fields.write(Field::EPT_POINTER, ept::pointer(pointers.ept_root));
    fields.write(Field::CR0_MASK, 0);
    fields.write(Field::CR4_MASK, 0);
    Ok(())
}

/// Writes the processor's state after an exit: its current one.
pub(super) fn write_host(fields: &mut impl Fields, frame: &Frame) {
    let control = ControlRegisters::read();
    let tables = trap::tables();
    for (field, value) in [
        (Field::HOST_CR0, control.cr0),
        (Field::HOST_CR3, control.cr3),
        (Field::HOST_CR4, control.cr4),
        (Field::HOST_ES_SELECTOR, trap::DATA.into()),
        (Field::HOST_CS_SELECTOR, trap::CODE.into()),
        (Field::HOST_SS_SELECTOR, trap::DATA.into()),
        (Field::HOST_DS_SELECTOR, trap::DATA.into()),
        (Field::HOST_FS_SELECTOR, 0),
        (Field::HOST_GS_SELECTOR, 0),
        (Field::HOST_TR_SELECTOR, trap::TSS.into()),
        (Field::HOST_FS_BASE, 0),
        (Field::HOST_GS_BASE, tables.gs_base),
        (Field::HOST_TR_BASE, tables.segments.tss),
        (Field::HOST_GDTR_BASE, tables.segments.gdt),
        (Field::HOST_IDTR_BASE, tables.idt),
        (Field::HOST_SYSENTER_CS, 0),
        (Field::HOST_SYSENTER_ESP, 0),
        (Field::HOST_SYSENTER_EIP, 0),
        (Field::HOST_RSP, frame.host_rsp()),
        (Field::HOST_RIP, Frame::host_rip()),
    ] {
        fields.write(field, value);
    }
}

/// RFLAGS bit 1 is always one.
const RFLAGS: u64 = 2;
/// DR7 after a reset.
const DR7: u64 = 0x400;
const NO_LIMIT: u64 = 0xFFFF_FFFF;

/// Writes the initial state of an L2.
pub(super) fn write_guest(fields: &mut impl Fields, environment: &Environment, start: Start) {
    let control = ControlRegisters::read();
    let (code, data) = (u64::from(trap::CODE), u64::from(trap::DATA));
    let (code_rights, data_rights) = (access_rights::CODE_64, access_rights::DATA);
    for (field, value) in [
        (Field::GUEST_CR0, control.cr0),
        (Field::GUEST_CR3, control.cr3),
        (Field::GUEST_CR4, control.cr4),
        (Field::CR0_READ_SHADOW, control.cr0),
        (Field::CR4_READ_SHADOW, control.cr4),
        (Field::GUEST_DR7, DR7),
        (Field::GUEST_CS_SELECTOR, code),
        (Field::GUEST_CS_BASE, 0),
        (Field::GUEST_CS_LIMIT, NO_LIMIT),
        (Field::GUEST_CS_ACCESS_RIGHTS, code_rights.into()),
        (Field::GUEST_SS_SELECTOR, data),
        (Field::GUEST_SS_BASE, 0),
        (Field::GUEST_SS_LIMIT, NO_LIMIT),
        (Field::GUEST_SS_ACCESS_RIGHTS, data_rights.into()),
        (Field::GUEST_DS_SELECTOR, data),
        (Field::GUEST_DS_BASE, 0),
        (Field::GUEST_DS_LIMIT, NO_LIMIT),
        (Field::GUEST_DS_ACCESS_RIGHTS, data_rights.into()),
        (Field::GUEST_ES_SELECTOR, data),
        (Field::GUEST_ES_BASE, 0),
        (Field::GUEST_ES_LIMIT, NO_LIMIT),
        (Field::GUEST_ES_ACCESS_RIGHTS, data_rights.into()),
        (Field::GUEST_FS_SELECTOR, data),
        (Field::GUEST_FS_BASE, 0),
        (Field::GUEST_FS_LIMIT, NO_LIMIT),
        (Field::GUEST_FS_ACCESS_RIGHTS, data_rights.into()),
        (Field::GUEST_GS_SELECTOR, data),
        (Field::GUEST_GS_BASE, environment.gs_base),
        (Field::GUEST_GS_LIMIT, NO_LIMIT),
        (Field::GUEST_GS_ACCESS_RIGHTS, data_rights.into()),
        (Field::GUEST_LDTR_SELECTOR, 0),
        (Field::GUEST_LDTR_BASE, 0),
        (Field::GUEST_LDTR_LIMIT, 0),
        (
            Field::GUEST_LDTR_ACCESS_RIGHTS,
            access_rights::UNUSABLE.into(),
        ),
        (Field::GUEST_TR_SELECTOR, trap::TSS.into()),
        (Field::GUEST_TR_BASE, environment.segments.tss),
        (Field::GUEST_TR_LIMIT, Segments::TSS_LIMIT.into()),
        (
            Field::GUEST_TR_ACCESS_RIGHTS,
            access_rights::TSS_64_BUSY.into(),
        ),
        (Field::GUEST_GDTR_BASE, environment.segments.gdt),
        (Field::GUEST_GDTR_LIMIT, Segments::GDT_LIMIT.into()),
        (Field::GUEST_IDTR_BASE, environment.idt),
        (Field::GUEST_IDTR_LIMIT, trap::IDT_LIMIT.into()),
        (Field::GUEST_RIP, start.rip),
        (Field::GUEST_RSP, start.rsp),
        (Field::GUEST_RFLAGS, RFLAGS),
        (Field::GUEST_INTERRUPTIBILITY, 0),
        (Field::GUEST_ACTIVITY, 0),
        (Field::GUEST_PENDING_DEBUG_EXCEPTIONS, 0),
        (Field::GUEST_DEBUGCTL, 0),
        (Field::GUEST_SYSENTER_CS, 0),
        (Field::GUEST_SYSENTER_ESP, 0),
        (Field::GUEST_SYSENTER_EIP, 0),
        // No shadow VMCS.
        (Field::VMCS_LINK_POINTER, u64::MAX),
    ] {
        fields.write(field, value);
    }
}
