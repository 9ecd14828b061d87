//! Pages of RAM, allocated and never freed.
#![allow(unsafe_code, reason = "memory outside of Rust's objects")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub(crate) const PAGE_SIZE: u64 = 4096;

static NEXT: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// Makes the memory from `start` to `end` available for allocation.
///
/// # Safety
/// It is RAM, identity-mapped, and unused. Once per boot, before any allocation.
pub(crate) unsafe fn give(start: u64, end: u64) {
    NEXT.store(start.next_multiple_of(PAGE_SIZE), Ordering::Relaxed);
    END.store(end, Ordering::Relaxed);
}

/// Allocates `count` zeroed contiguous pages.
pub(crate) fn take(count: u64) -> u64 {
    let bytes = count * PAGE_SIZE;
    let end = END.load(Ordering::Relaxed);
    let taken = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
        next.checked_add(bytes).filter(|&next| next <= end)
    });
    let Ok(address) = taken else {
        panic!("no RAM left for {count} pages of 4 KiB below {end:#x}")
    };
    // SAFETY: the caller of `give` guaranteed the memory and `NEXT` has just moved past it.
    unsafe { pointer::<u8>(address).write_bytes(0, as_usize(bytes)) };
    address
}

/// One page that the hypervisor may also write to: every access is volatile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page(u64);

impl Page {
    pub(crate) fn new() -> Self {
        Self(take(1))
    }

    /// The page at `address`, which was a `Page` before; `None` for 0.
    pub(crate) fn existing(address: u64) -> Option<Self> {
        (address != 0).then_some(Self(address))
    }

    /// Its physical address, which is also its linear address.
    pub(crate) const fn address(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub(crate) fn read8(self, offset: usize) -> u8 {
        // SAFETY: `at` keeps the access inside of the page.
        unsafe { self.at::<u8>(offset).read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn read16(self, offset: usize) -> u16 {
        // SAFETY: as in `read8`.
        unsafe { self.at::<u16>(offset).read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn read32(self, offset: usize) -> u32 {
        // SAFETY: as in `read8`.
        unsafe { self.at::<u32>(offset).read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn read64(self, offset: usize) -> u64 {
        // SAFETY: as in `read8`.
        unsafe { self.at::<u64>(offset).read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn write8(self, offset: usize, value: u8) {
        // SAFETY: as in `read8`.
        unsafe { self.at::<u8>(offset).write_volatile(value) }
    }

    #[inline(always)]
    pub(crate) fn write16(self, offset: usize, value: u16) {
        // SAFETY: as in `read8`.
        unsafe { self.at::<u16>(offset).write_volatile(value) }
    }

    #[inline(always)]
    pub(crate) fn write32(self, offset: usize, value: u32) {
        // SAFETY: as in `read8`.
        unsafe { self.at::<u32>(offset).write_volatile(value) }
    }

    #[inline(always)]
    pub(crate) fn write64(self, offset: usize, value: u64) {
        // SAFETY: as in `read8`.
        unsafe { self.at::<u64>(offset).write_volatile(value) }
    }

    /// Exchanges a word atomically.
    pub(crate) fn swap32(self, offset: usize, value: u32) -> u32 {
        // SAFETY: inside the page, aligned, and never freed; all other accesses are single instructions too.
        let word = unsafe { AtomicU32::from_ptr(self.at(offset)) };
        word.swap(value, Ordering::AcqRel)
    }

    #[inline(always)]
    fn at<T>(self, offset: usize) -> *mut T {
        assert!(
            offset.is_multiple_of(size_of::<T>()) && offset < as_usize(PAGE_SIZE),
            "offset {offset:#x} in a page"
        );
        pointer(self.0 + offset as u64)
    }
}

/// A zeroed array that is never freed.
pub(crate) fn array(len: usize) -> &'static mut [u64] {
    let address = take((len as u64 * 8).div_ceil(PAGE_SIZE).max(1));
    // SAFETY: `take` allocated the memory to no other caller, zeroed, page aligned and long enough.
    unsafe { core::slice::from_raw_parts_mut(pointer(address), len) }
}

/// A 32-bit register of a device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Device(u32);

impl Device {
    /// `None` if `address` is not aligned, not mapped, or within the program and its memory.
    pub(crate) fn new(address: u64) -> Option<Self> {
        let address = u32::try_from(address).ok()?;
        (address.is_multiple_of(4) && u64::from(address) >= END.load(Ordering::Relaxed))
            .then_some(Self(address))
    }

    #[inline(always)]
    pub(crate) fn read32(self) -> u32 {
        // SAFETY: below 4 GiB and thus mapped, aligned, and after everything that Rust uses.
        unsafe { pointer::<u32>(self.0.into()).read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn write32(self, value: u32) {
        // SAFETY: as in `read32`.
        unsafe { pointer::<u32>(self.0.into()).write_volatile(value) }
    }
}

/// The memory at a physical address.
pub(crate) fn pointer<T>(address: u64) -> *mut T {
    core::ptr::with_exposed_provenance_mut(as_usize(address))
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "the programs run in long mode"
)]
pub(crate) const fn as_usize(value: u64) -> usize {
    value as usize
}
