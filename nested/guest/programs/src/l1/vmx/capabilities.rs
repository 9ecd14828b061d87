//! This processor's VMX capabilities, and VMXON.
#![allow(
    unsafe_code,
    reason = "VMXON and the control registers that it requires"
)]

use core::arch::asm;

use hypernest_nested::vmx::controls::adjust;
use hypernest_nested::vmx::{ept, msr};

use crate::cpu::{Faulted, cpuid, rdmsr, wrmsr};
use crate::pages::Page;
use crate::text::Text;

/// The contents of the capability registers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capabilities {
    /// The first word of a region.
    pub(super) revision: u32,
    pin: u64,
    primary: u64,
    secondary: u64,
    exit: u64,
    entry: u64,
    /// IA32_VMX_EPT_VPID_CAP.
    pub(super) ept_vpid: u64,
}

macro_rules! text {
    ($($argument:tt)*) => { Text::new(format_args!($($argument)*)) };
}

fn read(register: u32) -> Result<u64, Text> {
    rdmsr(register).map_err(|Faulted| text!("reading MSR {register:#x} faults"))
}

/// CPUID.1:ECX.
const HAS_VMX: u32 = 1 << 5;
const CR4_VMXE: u64 = 1 << 13;
const HAS_SECONDARY: u64 = 1 << 63;

impl Capabilities {
    /// Reads them. `Err` names a missing feature that every mode requires.
    pub(super) fn read() -> Result<Self, Text> {
        if cpuid(1, 0).ecx & HAS_VMX == 0 {
            return Err(text!("VMX is not offered: CPUID 1 ECX bit 5 is 0"));
        }
        let basic = read(msr::BASIC)?;
        // The "true" registers report which of the default-one bits may be zero.
        let of = |plain, true_| {
            read(if msr::basic_has_true_controls(basic) {
                true_
            } else {
                plain
            })
        };
        let primary = of(msr::PRIMARY_CONTROLS, msr::TRUE_PRIMARY_CONTROLS)?;
        if primary & HAS_SECONDARY == 0 {
            return Err(text!("VMX has no secondary controls, thus no EPT"));
        }
        let capabilities = Self {
            revision: msr::basic_revision(basic),
            pin: of(msr::PIN_CONTROLS, msr::TRUE_PIN_CONTROLS)?,
            primary,
            secondary: read(msr::SECONDARY_CONTROLS)?,
            exit: of(msr::EXIT_CONTROLS, msr::TRUE_EXIT_CONTROLS)?,
            entry: of(msr::ENTRY_CONTROLS, msr::TRUE_ENTRY_CONTROLS)?,
            ept_vpid: read(msr::EPT_VPID_CAP).unwrap_or(0),
        };
        let wanted = ept::CAN_WALK_4
            | ept::CAN_WRITE_BACK
            | ept::CAN_2MIB
            | ept::CAN_INVEPT
            | ept::CAN_INVEPT_ALL;
        let lacking = wanted & !capabilities.ept_vpid;
        if lacking != 0 {
            return Err(text!(
                "EPT lacks the capabilities {lacking:#x} (IA32_VMX_EPT_VPID_CAP)"
            ));
        }
        Ok(capabilities)
    }

    pub(super) fn pin(&self, wanted: u32) -> Result<u32, Text> {
        adjust(self.pin, wanted).map_err(|bits| text!("pin-based controls lack {bits:#x}"))
    }

    pub(super) fn primary(&self, wanted: u32) -> Result<u32, Text> {
        adjust(self.primary, wanted).map_err(|bits| text!("primary controls lack {bits:#x}"))
    }

    pub(super) fn secondary(&self, wanted: u32) -> Result<u32, Text> {
        adjust(self.secondary, wanted).map_err(|bits| text!("secondary controls lack {bits:#x}"))
    }

    pub(super) fn exit(&self, wanted: u32) -> Result<u32, Text> {
        adjust(self.exit, wanted).map_err(|bits| text!("exit controls lack {bits:#x}"))
    }

    pub(super) fn entry(&self, wanted: u32) -> Result<u32, Text> {
        adjust(self.entry, wanted).map_err(|bits| text!("entry controls lack {bits:#x}"))
    }

    /// Enables VMX on this processor.
    pub(super) fn turn_on(&self) -> Result<(), Text> {
        let allowed = msr::FEATURE_CONTROL_LOCKED | msr::FEATURE_CONTROL_VMXON;
        let control = read(msr::FEATURE_CONTROL)?;
        if control & msr::FEATURE_CONTROL_LOCKED == 0 {
            // SAFETY: only enables VMXON.
            let written = unsafe { wrmsr(msr::FEATURE_CONTROL, control | allowed) };
            written.map_err(|Faulted| text!("IA32_FEATURE_CONTROL cannot be written"))?;
        } else if control & allowed != allowed {
            return Err(text!(
                "IA32_FEATURE_CONTROL is locked without VMX: {control:#x}"
            ));
        }
        let (cr0_one, cr0_may) = (read(msr::CR0_FIXED0)?, read(msr::CR0_FIXED1)?);
        let (cr4_one, cr4_may) = (read(msr::CR4_FIXED0)?, read(msr::CR4_FIXED1)?);
        let state = super::state::ControlRegisters::read();
        let cr0 = (state.cr0 | cr0_one) & cr0_may;
        let cr4 = (state.cr4 | cr4_one | CR4_VMXE) & cr4_may;
        let region = Page::new();
        region.write32(0, self.revision);
        let address = region.address();
        let failed: u8;
        // SAFETY: the bits that VMX requires do not affect paging and protection; from now on only VMX uses
        // the region.
        unsafe {
            asm!(
                "mov cr0, {cr0}",
                "mov cr4, {cr4}",
                "vmxon [{address}]",
                "setbe {failed}",
                cr0 = in(reg) cr0,
                cr4 = in(reg) cr4,
                address = in(reg) &raw const address,
                failed = lateout(reg_byte) failed,
                options(nostack),
            );
        }
        if failed == 0 {
            Ok(())
        } else {
            Err(text!("VMXON fails"))
        }
    }
}
