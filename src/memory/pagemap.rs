//! Which pages of this process's anonymous memory hold data. Finding that out by reading would give every
//! page its memory.

#![allow(unsafe_code, reason = "an ioctl that nix does not know")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::dirty::PAGE;

/// `struct pm_scan_arg` (include/uapi/linux/fs.h).
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `PAGE_IS_PRESENT`.
const PRESENT: u64 = 1 << 3;
/// `PAGE_IS_SWAPPED`; also of pages that are just being moved in memory.
const SWAPPED: u64 = 1 << 4;
/// `PAGE_IS_PFNZERO`: the page of zeroes that everybody shares, small or huge, where memory was only read.
const PFNZERO: u64 = 1 << 5;

// PAGEMAP_SCAN (Linux 6.7).
nix::ioctl_readwrite!(pagemap_scan, b'f', 16, PmScanArg);

/// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst): in memory, in swap.
const ENTRY_IS_DATA: u64 = 1 << 63 | 1 << 62;
/// Entries that are read at a time.
const ENTRIES: usize = 1 << 16;

/// The parts of the `len` bytes at `start` in this process that may hold anything but zeroes, as offsets from
/// `start`. Both are multiples of the page size, and it is anonymous memory. If the kernel does not tell,
/// that is all of it.
pub(super) fn data(start: usize, len: usize) -> Vec<Range<u64>> {
    let range = start as u64..(start + len) as u64;
    let mut parts = File::open("/proc/self/pagemap")
        .and_then(|pagemap| scan(&pagemap, &range).or_else(|_| read(&pagemap, &range)))
        .unwrap_or_else(|_| vec![range.clone()]);
    for part in &mut parts {
        *part = part.start - range.start..part.end - range.start;
    }
    parts
}

/// Adds `part`, which lies behind all others.
fn push(parts: &mut Vec<Range<u64>>, part: Range<u64>) {
    match parts.last_mut() {
        Some(last) if last.end == part.start => last.end = part.end,
        _ => parts.push(part),
    }
}

fn scan(pagemap: &File, range: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut regions = [PageRegion::default(); 512];
    let mut parts = Vec::new();
    let mut start = range.start;
    while start < range.end {
        // `pagemap_scan_is_interesting_page`: the inverted category must be set, that is, the page be another
        // than that of zeroes, and one of the others.
        let mut arg = PmScanArg {
            size: size_of::<PmScanArg>() as u64,
            start,
            end: range.end,
            vec: (&raw mut regions).expose_provenance() as u64,
            vec_len: regions.len() as u64,
            category_inverted: PFNZERO,
            category_mask: PFNZERO,
            category_anyof_mask: PRESENT | SWAPPED,
            return_mask: PRESENT | SWAPPED,
            ..PmScanArg::default()
        };
        // SAFETY: the kernel writes `arg` and at most `vec_len` elements at `vec`, both of which live here.
        let found = unsafe { pagemap_scan(pagemap.as_raw_fd(), &raw mut arg) }?;
        let found = usize::try_from(found).map_err(io::Error::other)?;
        for region in regions.iter().take(found) {
            push(&mut parts, region.start..region.end);
        }
        if arg.walk_end <= start {
            return Err(io::Error::other("PAGEMAP_SCAN does not go on"));
        }
        start = arg.walk_end;
    }
    Ok(parts)
}

/// For older kernels. The page of zeroes is not told from others.
fn read(pagemap: &File, range: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut buffer = vec![0; ENTRIES * size_of::<u64>()];
    let mut parts = Vec::new();
    let (mut page, end) = (range.start / PAGE, range.end / PAGE);
    while page < end {
        let entries = usize::try_from(end - page).map_or(ENTRIES, |left| left.min(ENTRIES));
        let bytes = &mut buffer[..entries * size_of::<u64>()];
        pagemap.read_exact_at(bytes, page * size_of::<u64>() as u64)?;
        for entry in bytes.as_chunks::<8>().0 {
            if u64::from_ne_bytes(*entry) & ENTRY_IS_DATA != 0 {
                push(&mut parts, page * PAGE..(page + 1) * PAGE);
            }
            page += 1;
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::anonymous::{HUGE, Mapping};
    use super::*;
    use crate::units::Gpa;

    const SMALL: usize = 4096;

    fn at(mapping: &Mapping, offset: usize) -> *mut u8 {
        assert!(offset < mapping.range().len());
        mapping.pointer().wrapping_add(offset)
    }

    fn write(mapping: &Mapping, page: usize) {
        // SAFETY: `at` checks that it lies in the mapping, which is writable.
        unsafe { at(mapping, page * SMALL).write_volatile(1) };
    }

    fn look(mapping: &Mapping, page: usize) -> u8 {
        // SAFETY: as above.
        unsafe { at(mapping, page * SMALL).read_volatile() }
    }

    fn advise(mapping: &Mapping, pages: Range<usize>, advice: i32) {
        let (at, len) = (at(mapping, pages.start * SMALL), pages.len() * SMALL);
        // SAFETY: the range lies in the mapping, which stays mapped.
        assert_eq!(unsafe { libc::madvise(at.cast(), len, advice) }, 0);
    }

    /// A mapping of small pages.
    fn small(pages: usize) -> Mapping {
        let mapping = Mapping::new(Gpa(0), pages * SMALL).unwrap();
        advise(&mapping, 0..pages, libc::MADV_NOHUGEPAGE);
        mapping
    }

    fn pages(parts: &[Range<u64>]) -> BTreeSet<u64> {
        assert!(parts.windows(2).all(|two| two[0].end < two[1].start));
        parts
            .iter()
            .flat_map(|part| part.start / PAGE..part.end / PAGE)
            .collect()
    }

    type Found = io::Result<BTreeSet<u64>>;

    /// What PAGEMAP_SCAN finds, and what the entries say.
    fn both(mapping: &Mapping) -> (Found, Found) {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let range = mapping.range().start as u64..mapping.range().end as u64;
        let first = range.start / PAGE;
        let found = |parts: Vec<_>| pages(&parts).iter().map(|page| page - first).collect();
        (
            scan(&pagemap, &range).map(found),
            read(&pagemap, &range).map(found),
        )
    }

    #[test]
    fn untouched_memory_holds_nothing() {
        let mapping = Mapping::new(Gpa(0), 1 << 40).unwrap();
        write(&mapping, (1 << 28) - 1);
        // Without the ioctl there would be 2 GiB to read.
        if let (Ok(_), _) = both(&small(1)) {
            let found = data(mapping.range().start, mapping.range().len());
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].end, 1 << 40);
        }
    }

    #[test]
    fn pages_that_were_only_read_hold_nothing() {
        let mapping = small(4);
        assert_eq!(look(&mapping, 1), 0);
        write(&mapping, 2);
        let (scanned, read) = both(&mapping);
        if let Ok(scanned) = scanned {
            assert_eq!(scanned, [2].into());
        }
        assert_eq!(read.unwrap(), [1, 2].into());
        // The same for the huge page of zeroes.
        let mapping = Mapping::new(Gpa(0), 2 * HUGE).unwrap();
        assert_eq!(look(&mapping, 3), 0);
        write(&mapping, HUGE / SMALL + 3);
        if let Ok(scanned) = both(&mapping).0 {
            assert!(*scanned.first().unwrap() >= (HUGE / SMALL) as u64);
        }
    }

    #[test]
    fn a_huge_page_and_what_is_left_of_it_are_found() {
        let mapping = Mapping::new(Gpa(0), 2 * HUGE).unwrap();
        write(&mapping, 5);
        let huge = (HUGE / SMALL) as u64;
        for found in [both(&mapping).0.ok(), both(&mapping).1.ok()]
            .into_iter()
            .flatten()
        {
            assert!(found == [5].into() || found == (0..huge).collect());
        }
        for page in 0..HUGE / SMALL {
            write(&mapping, page);
        }
        advise(&mapping, 7..9, libc::MADV_DONTNEED);
        let expected: BTreeSet<_> = (0..huge).filter(|page| ![7, 8].contains(page)).collect();
        let (scanned, read) = both(&mapping);
        assert_eq!(read.unwrap(), expected);
        assert!(scanned.is_err() || scanned.unwrap() == expected);
        assert_eq!(
            data(mapping.range().start, mapping.range().len()),
            [0..7 * PAGE, 9 * PAGE..HUGE as u64]
        );
    }

    #[test]
    fn more_runs_than_fit_into_one_call_are_all_found() {
        let mapping = small(4000);
        for page in (1..4000).step_by(2) {
            write(&mapping, page);
        }
        let found = data(mapping.range().start, mapping.range().len());
        assert_eq!(pages(&found), (1..4000).step_by(2).collect());
        assert_eq!(found.len(), 2000);
    }

    #[test]
    fn what_cannot_be_told_is_all_data() {
        let null = File::open("/dev/null").unwrap();
        assert!(scan(&null, &(0..PAGE)).is_err());
        assert!(read(&null, &(0..PAGE)).is_err());
    }

    proptest! {
        #[test]
        fn entries_and_scan_tell_the_same(
            written in proptest::collection::btree_set(0_usize..600, 0..60),
            dropped in proptest::collection::btree_set(0_usize..600, 0..20),
            huge: bool,
        ) {
            let mapping = match huge {
                true => Mapping::new(Gpa(0x3000), 600 * SMALL).unwrap(),
                false => small(600),
            };
            for &page in &written {
                write(&mapping, page);
            }
            for &page in &dropped {
                advise(&mapping, page..page + 1, libc::MADV_DONTNEED);
            }
            let (scanned, read) = both(&mapping);
            let read = read.unwrap();
            if let Ok(scanned) = scanned {
                prop_assert_eq!(&scanned, &read);
            }
            for page in written.difference(&dropped) {
                prop_assert!(read.contains(&(*page as u64)));
            }
            for page in &dropped {
                prop_assert!(!read.contains(&(*page as u64)));
            }
            if !huge {
                prop_assert_eq!(read.len(), written.difference(&dropped).count());
            }
        }
    }
}
