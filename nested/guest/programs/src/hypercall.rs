//! Hypercalls through the page that the hypervisor fills.
#![allow(unsafe_code, reason = "calls code that the hypervisor wrote")]

use core::arch::asm;

use hypernest_nested::hyperv::hypercall::FAST;
use hypernest_nested::hyperv::msr;

use crate::cpu::{Faulted, rdmsr, wrmsr};
use crate::pages::Page;

/// Identity of an open-source guest (TLFS, "Guest OS identity": bit 63) of no registered vendor.
pub(crate) const GUEST_OS_ID: u64 = 1 << 63 | 0x7F << 56;

/// Writes a synthetic register.
///
/// Registers that contain a page's address have separate functions, which take a [`Page`].
pub(crate) fn write_register(register: u32, value: u64) -> Result<(), Faulted> {
    debug_assert!((0x4000_0000..0x4000_0200).contains(&register));
    // SAFETY: only the synthetic registers for pages let the hypervisor write to memory.
    unsafe { wrmsr(register, value) }
}

/// Enables `page` in a register with the enable bit in 0 and the page number in 63:12; the hypervisor owns it
/// from then on.
pub(crate) fn write_page_register(register: u32, page: Page) -> Result<(), Faulted> {
    write_register(register, page.address() | 1)
}

/// An enabled hypercall page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hypercalls(Page);

/// The location of a hypercall's input.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Input {
    /// In memory; the output goes to the second page.
    Memory(Page, Option<Page>),
    /// In RDX and R8.
    Registers(u64, u64),
    /// In RDX, R8 and XMM0 to XMM5.
    Xmm(u64, u64, [u64; 12]),
}

impl Hypercalls {
    /// Identifies the guest and enables the page. `None` if the hypervisor refuses, or leaves the page
    /// without a call.
    pub(crate) fn enable() -> Option<Self> {
        let page = Page::new();
        write_register(msr::GUEST_OS_ID, GUEST_OS_ID).ok()?;
        write_page_register(msr::HYPERCALL, page).ok()?;
        let enabled = rdmsr(msr::HYPERCALL) == Ok(page.address() | 1);
        // An empty page would execute as additions to memory.
        (enabled && page.read8(0) != 0).then_some(Self(page))
    }

    /// The first bytes of the hypervisor's code.
    pub(crate) fn code(self) -> [u8; 12] {
        core::array::from_fn(|at| self.0.read8(at))
    }

    /// Makes the call and returns its result.
    pub(crate) fn call(self, control: u64, input: Input) -> u64 {
        let (control, rdx, r8, xmm) = match input {
            Input::Memory(input, output) => (
                control,
                input.address(),
                output.map_or(0, Page::address),
                [0; 12],
            ),
            Input::Registers(rdx, r8) => (control | FAST, rdx, r8, [0; 12]),
            Input::Xmm(rdx, r8, xmm) => (control | FAST, rdx, r8, xmm),
        };
        let result;
        // SAFETY: `enable` found the hypervisor's code in the page, which follows the convention below (TLFS,
        // "Hypercall calling conventions") and writes at most to the output page, which is the caller's.
        unsafe {
            asm!(
                "movups xmm0, [r10]",
                "movups xmm1, [r10 + 16]",
                "movups xmm2, [r10 + 32]",
                "movups xmm3, [r10 + 48]",
                "movups xmm4, [r10 + 64]",
                "movups xmm5, [r10 + 80]",
                "call r11",
                in("r10") &raw const xmm,
                in("r11") self.0.address(),
                in("rcx") control,
                in("rdx") rdx,
                in("r8") r8,
                lateout("rax") result,
                clobber_abi("sysv64"),
            );
        }
        result
    }
}
