//! A page of address space whose translation can be changed without notifying the processor.
#![allow(unsafe_code, reason = "changes page tables")]

use core::sync::atomic::{AtomicU64, Ordering};

use crate::cpu;
use crate::pages::{Page, as_usize};

/// The first address after the area that start-up mapped: PDPT entry 4.
const ADDRESS: u64 = 4 << 30;
const PDPT_ENTRY: usize = 4;
/// Present and writable.
const PRESENT: u64 = 0b11;

/// The page table that translates [`ADDRESS`], 0 before it exists.
static TABLE: AtomicU64 = AtomicU64::new(0);

/// The window; there is only one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    table: Page,
}

impl Window {
    /// Maps it to `page`.
    pub(crate) fn open(page: Page) -> Self {
        let table = Page::existing(TABLE.load(Ordering::Relaxed)).unwrap_or_else(|| {
            let (directory, table) = (Page::new(), Page::new());
            directory.write64(0, table.address() | PRESENT);
            let pml4 = entry(cpu::page_table_root(), 0);
            // SAFETY: CR3 is start-up's: a table of one page, identity-mapped and not one of Rust's
            // objects.
            let pdpt = unsafe { pml4.read_volatile() };
            // SAFETY: the same for the PDPT; this entry was not present.
            unsafe { entry(pdpt, PDPT_ENTRY).write_volatile(directory.address() | PRESENT) };
            TABLE.store(table.address(), Ordering::Relaxed);
            table
        });
        let window = Self { table };
        window.turn_to(page);
        cpu::flush_own_translations();
        window
    }

    /// Changes the translation in memory, without a flush.
    pub(crate) fn turn_to(self, page: Page) {
        self.table.write64(0, page.address() | PRESENT);
    }

    pub(crate) const fn address(self) -> u64 {
        ADDRESS
    }

    /// Reads the first word of the page in the processor's current translation; the window must have been
    /// opened.
    pub(crate) fn look() -> u64 {
        assert!(TABLE.load(Ordering::Relaxed) != 0, "the window is closed");
        let window = core::ptr::with_exposed_provenance::<u64>(as_usize(ADDRESS));
        // SAFETY: mapped since `open`, to a whole page at any time.
        unsafe { window.read_volatile() }
    }
}

fn entry(table: u64, index: usize) -> *mut u64 {
    let address = as_usize(table & 0x000F_FFFF_FFFF_F000) + index * 8;
    core::ptr::with_exposed_provenance_mut(address)
}
