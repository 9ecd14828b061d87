//! The enlightened VMCS: fields in memory (TLFS, "Enlightened VMCS").

use hypernest_nested::assist::{DIRECT_HYPERCALL, VpAssist};
use hypernest_nested::evmcs::{self, Evmcs, clean};
use hypernest_nested::hyperv::{leaf, msr, nested};
use hypernest_nested::l2exit::Mode;
use hypernest_nested::vmx::{Field, Width};

use core::mem::offset_of;

use super::capabilities::Capabilities;
use super::fields::{self, Fields};
use crate::cpu::cpuid;
use crate::hypercall::{Hypercalls, write_page_register};
use crate::pages::Page;
use crate::text::Text;

/// A page that this processor's VP assist page refers to.
#[derive(Debug)]
pub(crate) struct Enlightened {
    page: Page,
    assist: Page,
    partition_assist: Page,
    order: usize,
    emsr_bitmap: bool,
    direct_flush: bool,
}

/// The VM of L2, for L0: a number that L1 uses for no other.
const VM_ID: u64 = 1;

/// FEATURES EAX: the registers of the assist page and the interrupt controller.
const ASSIST_PAGE: u32 = 1 << 4;

/// Whether CPUID announces the enlightened VMCS in the version used here.
pub(super) fn is_offered() -> bool {
    if cpuid(leaf::INTERFACE, 0).eax != leaf::SIGNATURE_HV1
        || cpuid(leaf::VENDOR, 0).eax < leaf::NESTED_FEATURES
    {
        return false;
    }
    let (lowest, highest) = nested::evmcs_versions(cpuid(leaf::NESTED_FEATURES, 0).eax);
    cpuid(leaf::FEATURES, 0).eax & ASSIST_PAGE != 0
        && cpuid(leaf::RECOMMENDATIONS, 0).eax & leaf::RECOMMEND_EVMCS != 0
        && (u32::from(lowest)..=u32::from(highest)).contains(&evmcs::VERSION)
}

fn needs(announced: bool, what: &str) -> Result<(), Text> {
    if announced {
        Ok(())
    } else {
        Err(Text::new(format_args!("{what} is not offered")))
    }
}

impl Fields for Enlightened {
    fn new(mode: Mode, order: usize, _capabilities: &Capabilities) -> Result<Self, Text> {
        needs(is_offered(), "the enlightened VMCS (hv-evmcs)")?;
        // One for all processors.
        if order == 0 {
            let enabled = Hypercalls::enable();
            needs(enabled.is_some(), "a hypercall page")?;
        }
        let assist = Page::new();
        let accepted = write_page_register(msr::VP_ASSIST_PAGE, assist);
        needs(accepted.is_ok(), "the VP assist page (hv-vapic)")?;
        let page = Page::new();
        let mut evmcs = Self {
            page,
            assist,
            partition_assist: Page::new(),
            order,
            emsr_bitmap: false,
            direct_flush: false,
        };
        evmcs.agree_on(mode.uses_emsr_bitmap(), mode.uses_direct_flush())?;
        evmcs.use_page(page);
        evmcs.switch_on(true);
        Ok(evmcs)
    }

    fn begin(&mut self) {
        self.deactivate();
        let features = if self.direct_flush {
            DIRECT_HYPERCALL
        } else {
            0
        };
        self.assist
            .write32(offset_of!(VpAssist, nested_features), features);
        for at in (0..size_of::<Evmcs>()).step_by(8) {
            self.page.write64(at, 0);
        }
        self.page
            .write32(offset_of!(Evmcs, revision_id), evmcs::VERSION);
        let flag = |on, bit| if on { bit } else { 0 };
        self.page.write32(
            offset_of!(Evmcs, hv_enlightenments_control),
            flag(self.emsr_bitmap, evmcs::ENLIGHTENED_MSR_BITMAP)
                | flag(self.direct_flush, evmcs::NESTED_FLUSH_HYPERCALL),
        );
        self.page.write64(offset_of!(Evmcs, hv_vm_id), VM_ID);
        // At most MAX_CPUS.
        self.page.write32(
            offset_of!(Evmcs, hv_vp_id),
            u32::try_from(self.order).unwrap_or(0),
        );
        self.page.write64(
            offset_of!(Evmcs, partition_assist_page),
            self.partition_assist.address(),
        );
    }

    #[inline(always)]
    fn read(&self, field: Field) -> u64 {
        match evmcs::place(field) {
            Some(place) => {
                let at = usize::from(place.offset);
                match place.width {
                    Width::Bits16 => self.page.read16(at).into(),
                    Width::Bits32 => self.page.read32(at).into(),
                    Width::Bits64 | Width::Natural => self.page.read64(at),
                }
            }
            None => no_place(field),
        }
    }

    #[inline(always)]
    fn write(&mut self, field: Field, value: u64) {
        match evmcs::place(field) {
            Some(place) => {
                let at = usize::from(place.offset);
                match place.width {
                    Width::Bits16 => self.page.write16(at, (value & 0xFFFF) as u16),
                    Width::Bits32 => self.page.write32(at, (value & 0xFFFF_FFFF) as u32),
                    Width::Bits64 | Width::Natural => self.page.write64(at, value),
                }
                self.unclean(place.clean);
            }
            // Fields that L0 then treats as 0.
            None if value == 0 => {}
            None => no_place(field),
        }
    }

    #[inline(always)]
    fn msr_bitmap_changed(&mut self) {
        if self.emsr_bitmap {
            self.unclean(clean::MSR_BITMAP);
        }
    }

    #[inline(always)]
    fn all_clean(&mut self) {
        let at = offset_of!(Evmcs, hv_clean_fields);
        self.page.write32(at, self.page.read32(at) | clean::ALL);
    }
}

impl Enlightened {
    /// The page is no longer this processor's active one: the next entry reads it in full.
    pub(super) fn deactivate(&self) {
        fields::clear(self.page.address());
    }

    /// Sets L0's features from the next [`Fields::begin`] on. `Err` names a missing one.
    pub(super) fn agree_on(&mut self, emsr_bitmap: bool, direct_flush: bool) -> Result<(), Text> {
        let offered = cpuid(leaf::NESTED_FEATURES, 0).eax;
        needs(
            !emsr_bitmap || offered & nested::MSR_BITMAP != 0,
            "the enlightened MSR bitmap (hv-emsr-bitmap)",
        )?;
        needs(
            !direct_flush || offered & nested::DIRECT_FLUSH != 0,
            "the direct flush (hv-tlbflush-direct)",
        )?;
        self.emsr_bitmap = emsr_bitmap;
        self.direct_flush = direct_flush;
        Ok(())
    }

    /// Sets another partition assist page for L0.
    pub(super) fn set_partition_assist(&self, page: Page) {
        let at = offset_of!(Evmcs, partition_assist_page);
        self.page.write64(at, page.address());
        self.unclean(clean::ENLIGHTENMENTS_CONTROL);
    }

    /// The page that entries use.
    pub(super) fn page(&self) -> Page {
        self.page
    }

    /// Makes entries use `page`.
    pub(super) fn use_page(&mut self, page: Page) {
        self.page = page;
        let at = offset_of!(VpAssist, current_nested_vmcs);
        self.assist.write64(at, page.address());
    }

    /// Sets whether entries use the page at all.
    pub(super) fn switch_on(&self, on: bool) {
        self.assist
            .write8(offset_of!(VpAssist, enlighten_vm_entry), on.into());
    }

    /// Marks fields of these groups as changed, for L0.
    #[inline(always)]
    fn unclean(&self, groups: u32) {
        if groups != clean::NONE {
            let at = offset_of!(Evmcs, hv_clean_fields);
            self.page.write32(at, self.page.read32(at) & !groups);
        }
    }
}

#[cold]
fn no_place(field: Field) -> ! {
    panic!("the enlightened VMCS has no {field:?}")
}
