//! The VMCS as a region that only VMREAD and VMWRITE access, and its common part with the enlightened one.
#![allow(unsafe_code, reason = "VMX instructions")]

use core::arch::asm;

use hypernest_nested::l2exit::Mode;
use hypernest_nested::vmx::Field;

use super::capabilities::Capabilities;
use super::enlightened;
use super::switch::Failed;
use crate::pages::Page;
use crate::text::Text;

/// Access to the fields of a VMCS. Selected at compile time, so that neither way has a cost for the other.
pub(crate) trait Fields: Sized {
    /// Creates one for `mode`, on processor `order`, where VMX is on. `Err` names a missing feature.
    fn new(mode: Mode, order: usize, capabilities: &Capabilities) -> Result<Self, Text>;

    /// Empties it and makes it this processor's current one. The next entry must be a launch.
    fn begin(&mut self);

    /// A field's value.
    fn read(&self, field: Field) -> u64;

    /// Writes a field.
    fn write(&mut self, field: Field, value: u64);

    /// The content of the MSR bitmap has changed.
    fn msr_bitmap_changed(&mut self);

    /// Nothing has been written since the last entry.
    fn all_clean(&mut self);
}

/// VMREAD and VMWRITE.
#[derive(Debug)]
pub(crate) struct Classic {
    region: Page,
    revision: u32,
}

impl Fields for Classic {
    fn new(mode: Mode, _order: usize, capabilities: &Capabilities) -> Result<Self, Text> {
        // The offer alone changes VMX's capabilities, and so the measurement.
        match (mode.offers_evmcs(), enlightened::is_offered()) {
            (true, false) => Err(Text::new(format_args!(
                "the enlightened VMCS (hv-evmcs) is not offered"
            )))?,
            (false, true) => Err(Text::new(format_args!(
                "the enlightened VMCS is offered: that is mode=offered"
            )))?,
            _ => {}
        }
        Ok(Self {
            region: Page::new(),
            revision: capabilities.revision,
        })
    }

    fn begin(&mut self) {
        // Before its first use and after its last, a region is cleared (SDM volume 3, 26.11.3).
        clear(self.region.address());
        self.region.write32(0, self.revision);
        load(self.region.address());
    }

    #[inline(always)]
    fn read(&self, field: Field) -> u64 {
        let value;
        // SAFETY: reads a field. A failure, for which the trap handler ends the run, would be a bug here.
        unsafe {
            asm!(
                "vmread {value}, {field}",
                "ja 2f",
                "ud2",
                "2:",
                value = out(reg) value,
                field = in(reg) u64::from(field.encoding()),
                options(nostack),
            );
        }
        value
    }

    #[inline(always)]
    fn write(&mut self, field: Field, value: u64) {
        // SAFETY: takes effect at the next entry, whose caller guarantees its safety; for a failure see
        // `read`.
        unsafe {
            asm!(
                "vmwrite {field}, {value}",
                "ja 2f",
                "ud2",
                "2:",
                value = in(reg) value,
                field = in(reg) u64::from(field.encoding()),
                options(nostack),
            );
        }
    }

    #[inline(always)]
    fn msr_bitmap_changed(&mut self) {}

    #[inline(always)]
    fn all_clean(&mut self) {}
}

/// VMREAD, including failures.
pub(super) fn try_read(field: Field) -> Result<u64, Failed> {
    let (value, flags): (u64, u64);
    // SAFETY: reads a field.
    unsafe {
        asm!(
            "vmread {value}, {field}",
            "pushfq",
            "pop {flags}",
            value = out(reg) value,
            field = in(reg) u64::from(field.encoding()),
            flags = lateout(reg) flags,
        );
    }
    Failed::in_flags(flags).map_or(Ok(value), Err)
}

/// VMWRITE, including failures.
pub(super) fn try_write(field: Field, value: u64) -> Result<(), Failed> {
    let flags: u64;
    // SAFETY: as in `Classic::write`.
    unsafe {
        asm!(
            "vmwrite {field}, {value}",
            "pushfq",
            "pop {flags}",
            value = in(reg) value,
            field = in(reg) u64::from(field.encoding()),
            flags = lateout(reg) flags,
        );
    }
    Failed::in_flags(flags).map_or(Ok(()), Err)
}

/// VMCLEAR of the region at `address`.
pub(super) fn clear(address: u64) {
    // SAFETY: `address` is a page that only VMX uses; for a failure see `Classic::read`.
    unsafe {
        asm!("vmclear [{}]", "ja 2f", "ud2", "2:", in(reg) &raw const address, options(nostack));
    }
}

/// VMPTRLD of the region at `address`.
fn load(address: u64) {
    // SAFETY: `address` is a page that only VMX uses; for a failure see `Classic::read`.
    unsafe {
        asm!("vmptrld [{}]", "ja 2f", "ud2", "2:", in(reg) &raw const address, options(nostack));
    }
}
