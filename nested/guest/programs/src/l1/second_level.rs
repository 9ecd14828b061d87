//! L2's guest-physical memory: four-level tables for EPT and nested paging.
//!
//! The first 4 GiB are identity-mapped by 2 MiB pages, except for a window of 4 KiB pages at [`WINDOW`],
//! where a kind can unmap and map pages. All pages of the window map to the same page of RAM.

use crate::pages::Page;

/// The start of the window: guest-physical, and L2's linear address too. These machines have no RAM there.
pub(crate) const WINDOW: u64 = 0xD000_0000;
/// The number of the window's tables of 512 pages.
const WINDOW_TABLES: usize = 16;
/// Pages in the window.
pub(crate) const WINDOW_PAGES: u64 = WINDOW_TABLES as u64 * ENTRIES;

const ENTRIES: u64 = 512;
const SMALL: u64 = 4096;
const LARGE: u64 = 512 * SMALL;
const DIRECTORIES: usize = 4;

/// A vendor's entry format: bits to be set beside the address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    /// In entries that point to a table.
    pub(crate) table: u64,
    /// In entries of 4 KiB pages.
    pub(crate) page: u64,
    /// In entries of 2 MiB pages.
    pub(crate) large_page: u64,
    /// The whole entry of a page that L1 emulates.
    pub(crate) device: u64,
}

/// The tables.
#[derive(Debug)]
pub(crate) struct SecondLevel {
    format: Format,
    root: Page,
    window: [Page; WINDOW_TABLES],
    behind: Page,
}

impl SecondLevel {
    /// Builds them, with every page of the window present.
    pub(crate) fn new(format: Format) -> Self {
        let root = Page::new();
        let pointers = Page::new();
        root.write64(0, pointers.address() | format.table);
        let window = core::array::from_fn(|_| Page::new());
        for directory in 0..DIRECTORIES {
            let page = Page::new();
            pointers.write64(directory * 8, page.address() | format.table);
            for entry in 0..512 {
                let at = (directory * 512 + entry) as u64 * LARGE;
                let table = at.checked_sub(WINDOW).and_then(|offset| {
                    let index = usize::try_from(offset / LARGE).ok()?;
                    window.get(index)
                });
                let value = match table {
                    Some(table) => table.address() | format.table,
                    None => at | format.large_page,
                };
                page.write64(entry * 8, value);
            }
        }
        let level = Self {
            format,
            root,
            window,
            behind: Page::new(),
        };
        for index in 0..WINDOW_PAGES {
            level.map(index);
        }
        level
    }

    /// The address of the topmost table.
    pub(crate) fn root(&self) -> u64 {
        self.root.address()
    }

    /// The page that the window maps.
    pub(crate) fn behind(&self) -> Page {
        self.behind
    }

    /// Makes page `index` of the window present.
    pub(crate) fn map(&self, index: u64) {
        self.set(index, self.behind.address() | self.format.page);
    }

    /// Unmaps page `index` of the window.
    pub(crate) fn unmap(&self, index: u64) {
        self.set(index, 0);
    }

    /// Turns page `index` of the window into a device that L1 emulates.
    pub(crate) fn make_device(&self, index: u64) {
        self.set(index, self.format.device);
    }

    fn set(&self, index: u64, value: u64) {
        // Both are below 512.
        let (table, entry) = (
            crate::pages::as_usize(index / ENTRIES),
            crate::pages::as_usize(index % ENTRIES),
        );
        self.window[table].write64(entry * 8, value);
    }
}
