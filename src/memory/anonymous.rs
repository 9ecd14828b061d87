//! Mappings that guest RAM lies in: private memory of this process, placed so that the host can back it with
//! huge pages.

#![allow(unsafe_code, reason = "mapping guest RAM")]

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;

use crate::units::Gpa;

/// What a transparent huge page holds on x86-64 (`HPAGE_PMD_SIZE`).
pub(super) const HUGE: usize = 2 << 20;

const PROT: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Nothing is reserved: a guest may be given more RAM than the host has free.
pub(super) const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// A mapping of anonymous memory, or of a file over it; it goes when this is dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    start: usize,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes for RAM at `gpa`. Addresses in this process and of the guest agree in their lowest 21
    /// bits: otherwise KVM cannot map a huge page of the host as one of the guest
    /// (`kvm_alloc_memslot_metadata`).
    ///
    /// # Errors
    /// What mmap reports.
    pub(super) fn new(gpa: Gpa, len: usize) -> io::Result<Self> {
        let too_large = || io::Error::from_raw_os_error(libc::ENOMEM);
        // One huge page to align the beginning, and one for the offset in it.
        let reserved = len.checked_add(2 * HUGE).ok_or_else(too_large)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other.
        let at = unsafe { libc::mmap(ptr::null_mut(), reserved, PROT, FLAGS, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut mapping = Self {
            start: at.addr(),
            len: reserved,
        };
        let offset = usize::try_from(gpa.0 % HUGE as u64).map_err(io::Error::other)?;
        mapping.cut(mapping.start.next_multiple_of(HUGE) + offset, len)?;
        mapping.advise(&[libc::MADV_HUGEPAGE]);
        Ok(mapping)
    }

    /// Keeps only the `len` bytes from `start` on, which lie in it.
    fn cut(&mut self, start: usize, len: usize) -> io::Result<()> {
        let head = start - self.start;
        // The kernel refuses to unmap nothing.
        if head > 0 {
            unmap(self.start, head)?;
        }
        (self.start, self.len) = (start, self.len - head);
        if self.len > len {
            unmap(start + len, self.len - len)?;
        }
        self.len = len;
        Ok(())
    }

    /// Asks for what is in `more`, and to be left out where guest RAM would only be in the way: of core
    /// files, and of processes that are forked, for which every page would have to be protected. Kernels
    /// without one of these go without.
    fn advise(&self, more: &[i32]) {
        for &advice in [libc::MADV_DONTDUMP, libc::MADV_DONTFORK]
            .iter()
            .chain(more)
        {
            // SAFETY: the range is this mapping, and none of these changes what it contains.
            unsafe { libc::madvise(self.pointer().cast(), self.len, advice) };
        }
    }

    /// The first byte.
    pub(super) fn pointer(&self) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.start)
    }

    /// Where it lies in this process.
    #[cfg(test)]
    pub(super) fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Maps `file` from `offset` on in its place. What is written stays in memory.
    ///
    /// # Errors
    /// What mmap reports.
    pub(super) fn show(&self, file: &File, offset: u64) -> io::Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        self.replace(flags, file.as_raw_fd(), offset)?;
        // A private mapping of a file gets small pages whatever is asked for (`__thp_vma_allowable_orders`).
        self.advise(&[]);
        Ok(())
    }

    /// Puts fresh, zeroed memory in its place.
    ///
    /// # Errors
    /// What mmap reports.
    pub(super) fn renew(&self) -> io::Result<()> {
        self.replace(FLAGS, -1, 0)?;
        self.advise(&[libc::MADV_HUGEPAGE]);
        Ok(())
    }

    /// The same for `part` of it, of whole pages, which is cut to the mapping. Where it lies in this process.
    ///
    /// # Errors
    /// What mmap reports.
    pub(super) fn renew_part(&self, part: Range<usize>) -> io::Result<Range<usize>> {
        let part = self.part(part);
        part.renew()?;
        Ok(part.start..part.start + part.len)
    }

    /// `part` of it, as far as it is there. It is no owner: it is not dropped.
    fn part(&self, part: Range<usize>) -> ManuallyDrop<Self> {
        let end = part.end.min(self.len);
        let start = part.start.min(end);
        ManuallyDrop::new(Self {
            start: self.start + start,
            len: end - start,
        })
    }

    fn replace(&self, flags: i32, fd: i32, offset: i64) -> io::Result<()> {
        let flags = flags | libc::MAP_FIXED;
        // SAFETY: the range is exactly this mapping; its content is lost, as asked for, and every pointer
        // into it stays valid.
        let at = unsafe { libc::mmap(self.pointer().cast(), self.len, PROT, flags, fd, offset) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Gives its pages back to the host; anonymous memory reads as zeroes again.
    ///
    /// # Errors
    /// What madvise reports.
    pub(super) fn discard(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping; its content is lost, as asked for, and it stays mapped.
        let done = unsafe { libc::madvise(self.pointer().cast(), self.len, libc::MADV_DONTNEED) };
        match done {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The same for `part` of it, of whole pages, which is cut to the mapping.
    ///
    /// # Errors
    /// What madvise reports.
    pub(super) fn discard_part(&self, part: Range<usize>) -> io::Result<()> {
        self.part(part).discard()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // It is there, so that the kernel refuses only what would leave it with too many mappings; then it
        // stays.
        let _unmapped = unmap(self.start, self.len);
    }
}

fn unmap(start: usize, len: usize) -> io::Result<()> {
    // SAFETY: only called with parts of a mapping that is owned here, and that nothing points into any more.
    match unsafe { libc::munmap(ptr::with_exposed_provenance_mut(start), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(mapping: &mut Mapping) -> &mut [u8] {
        // SAFETY: the mapping is readable and writable memory, and this slice is the only way to it
        // meanwhile.
        unsafe { std::slice::from_raw_parts_mut(mapping.pointer(), mapping.range().len()) }
    }

    #[test]
    fn host_and_guest_addresses_agree_within_a_huge_page() {
        for gpa in [0, 0x1000, 0x10_0000, 0x1f_f000, 0x20_0000, 0x1_0000_3000] {
            for len in [0x1000, 0x20_0000, 0x50_3000] {
                let mut mapping = Mapping::new(Gpa(gpa), len).unwrap();
                assert_eq!(mapping.start as u64 % (2 << 20), gpa % (2 << 20));
                let bytes = bytes(&mut mapping);
                assert_eq!((bytes[0], bytes[len - 1]), (0, 0));
                (bytes[0], bytes[len - 1]) = (1, 2);
            }
        }
    }

    #[test]
    fn what_is_discarded_or_renewed_is_zero_and_can_be_written() {
        let mut mapping = Mapping::new(Gpa(0), 3 * HUGE).unwrap();
        for round in 1..4 {
            bytes(&mut mapping).fill(round);
            match round {
                2 => mapping.renew().unwrap(),
                _ => mapping.discard().unwrap(),
            }
            assert!(bytes(&mut mapping).iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn only_the_mapping_itself_stays_mapped() {
        // No other test maps as much, so that nothing takes its place.
        let mapping = Mapping::new(Gpa(0x3000), 5 * HUGE + 0xd000).unwrap();
        let range = mapping.range();
        let named = || {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            maps.contains(&format!("{:x}-{:x} rw-p", range.start, range.end))
        };
        assert!(named());
        drop(mapping);
        assert!(!named());
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        for len in [usize::MAX, usize::MAX / 2] {
            let error = Mapping::new(Gpa(0), len).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
        }
    }
}
