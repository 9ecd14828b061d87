//! Hyper-V's interface for L1 on SVM: the MSR bitmap enlightenment and direct flush hypercalls.

use core::mem::offset_of;

use hypernest_nested::hyperv::{leaf, msr, nested};
use hypernest_nested::l2exit::Mode;
use hypernest_nested::{assist, svm};

use super::super::vcpu::Intercepts;
use super::vmcb::Vmcb;
use crate::cpu::cpuid;
use crate::hypercall::{Hypercalls, write_page_register};
use crate::pages::Page;
use crate::text::Text;

/// The enlightenments that the mode uses, on one processor.
#[derive(Debug)]
pub(super) struct Enlightened {
    msr_bitmap: bool,
    /// The partition assist page, if L0 handles L2's flush hypercalls.
    direct_flush: Option<Page>,
    /// L2's number for this processor.
    order: u32,
}

/// L2's identity; any number but 0.
const L2: u64 = 1;

impl Enlightened {
    /// Enables the enlightenments of `mode`.
    pub(super) fn new(mode: Mode, order: usize) -> Result<Self, Text> {
        let mut enlightened = Self {
            msr_bitmap: mode.uses_emsr_bitmap(),
            direct_flush: None,
            order: u32::try_from(order).unwrap_or(0),
        };
        let wanted = [
            (
                mode.uses_emsr_bitmap(),
                nested::MSR_BITMAP,
                "the enlightened MSR bitmap (hv-emsr-bitmap)",
            ),
            (
                mode.uses_direct_flush(),
                nested::DIRECT_FLUSH,
                "the direct flush (hv-tlbflush-direct)",
            ),
        ];
        let offered = nested_features();
        let missing = wanted
            .iter()
            .find(|(wants, bit, _)| *wants && offered & bit == 0);
        if let Some((_, _, name)) = missing {
            return Err(Text::new(format_args!("{name} is not offered")));
        }
        if wanted.iter().all(|(wants, ..)| !wants) {
            return Ok(enlightened);
        }
        // L0 reads the enlightened area only of a guest that has an identity.
        Hypercalls::enable().ok_or(Text::new(format_args!("hypercalls cannot be enabled")))?;
        if mode.uses_direct_flush() {
            let page = Page::new();
            write_page_register(msr::VP_ASSIST_PAGE, page)
                .map_err(|_| Text::new(format_args!("the VP assist page cannot be enabled")))?;
            page.write32(
                offset_of!(assist::VpAssist, nested_features),
                assist::DIRECT_HYPERCALL,
            );
            enlightened.direct_flush = Some(Page::new());
        }
        Ok(enlightened)
    }

    /// Fills in the enlightened area of `vmcb`.
    pub(super) fn set_up(&self, vmcb: Vmcb, intercepts: &Intercepts) {
        let flush = self.direct_flush.filter(|_| intercepts.direct_flush);
        let mut control = 0;
        if self.msr_bitmap {
            control |= svm::ENLIGHTENED_MSR_BITMAP;
        }
        if flush.is_some() {
            control |= svm::NESTED_FLUSH_HYPERCALL;
        }
        vmcb.enlighten(control, self.order, L2, flush.map_or(0, Page::address));
    }
}

/// Leaf 0x4000000A, EAX; 0 if this is no such hypervisor.
fn nested_features() -> u32 {
    let present = cpuid(1, 0).ecx & 1 << 31 != 0
        && cpuid(leaf::VENDOR, 0).eax >= leaf::NESTED_FEATURES
        && cpuid(leaf::INTERFACE, 0).eax == leaf::SIGNATURE_HV1;
    if present {
        cpuid(leaf::NESTED_FEATURES, 0).eax
    } else {
        0
    }
}
