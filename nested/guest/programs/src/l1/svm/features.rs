//! Detects and enables SVM.
#![allow(unsafe_code, reason = "enables SVM")]

use hypernest_nested::svm::{CPUID_LEAF, feature, msr};

use crate::cpu::{cpuid, rdmsr, wrmsr};
use crate::pages::Page;
use crate::text::Text;

// CPUID (APM volume 3, appendix E).
const EXTENDED: u32 = 0x8000_0000;
const EXTENDED_FEATURES: u32 = 0x8000_0001;
/// In ECX of [`EXTENDED_FEATURES`].
const SVM: u32 = 1 << 2;

/// Checks for SVM with nested paging, and that it is not disabled.
pub(super) fn check() -> Result<(), Text> {
    let most = cpuid(EXTENDED, 0).eax;
    let why = if most < CPUID_LEAF || cpuid(EXTENDED_FEATURES, 0).ecx & SVM == 0 {
        "CPUID shows no SVM (is nesting on in the host's kvm_amd?)"
    } else if cpuid(CPUID_LEAF, 0).edx & feature::NESTED_PAGING == 0 {
        "SVM is without nested paging"
    } else if rdmsr(msr::VM_CR).is_ok_and(|value| value & msr::VM_CR_SVMDIS != 0) {
        "SVM is switched off in VM_CR"
    } else {
        return Ok(());
    };
    Err(Text::new(format_args!("{why}")))
}

/// Enables SVM, with `save` for L1's state while L2 runs.
pub(super) fn enable(save: Page) -> Result<(), Text> {
    let refused = |register| Text::new(format_args!("writing MSR {register:#x} faults"));
    let efer = rdmsr(msr::EFER).map_err(|_| refused(msr::EFER))?;
    // SAFETY: sets the one bit that enables SVM's instructions.
    unsafe { wrmsr(msr::EFER, efer | msr::EFER_SVME) }.map_err(|_| refused(msr::EFER))?;
    // SAFETY: the page has no other use.
    unsafe { wrmsr(msr::VM_HSAVE_PA, save.address()) }.map_err(|_| refused(msr::VM_HSAVE_PA))
}
