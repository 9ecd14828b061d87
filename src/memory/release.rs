//! Guest RAM that is given back to the host while the guest runs: pages that the guest says it does not use.
//! They read as zeroes afterwards, or have kept their content.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::GuestRam;
use super::anonymous::Mapping;
use super::config::HostMemory;
use super::dirty::PAGE;
use super::host;
use crate::units::Gpa;

/// How many parts of a saved image may get other memory in its place: each makes up to two more mappings of
/// the process, which has 65530 (`vm.max_map_count`) and needs some for itself.
const MAX_PARTS: u32 = 8192;

/// How many parts are replaced.
#[derive(Debug, Default)]
pub(super) struct Parts(AtomicU32);

impl Parts {
    /// Whether there may be one more, which then counts.
    fn take(&self) -> bool {
        let one_more = |parts: u32| (parts < MAX_PARTS).then_some(parts + 1);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .is_ok()
    }
}

impl GuestRam {
    /// Gives the whole pages in the `len` bytes from `gpa` on back to the host, as far as they are RAM; how
    /// many bytes that were. The guest may use them again at any time. Pages of a saved image that has been
    /// replaced in too many parts stay as they are.
    ///
    /// # Errors
    /// If the host refuses; nothing has changed then, or a part is released.
    pub fn release(&self, gpa: Gpa, len: u64) -> io::Result<u64> {
        let end = gpa.0.saturating_add(len);
        let mut released = 0;
        for (number, region) in self.mmap().iter().enumerate() {
            let (base, size) = (region.start_addr().0, region.len());
            let Some(part) = whole_pages(gpa.0..end, base..base.saturating_add(size)) else {
                continue;
            };
            // Reserved huge pages have no mapping here, and cannot be given back in pieces.
            let Some(mapping) = self.mappings.get(number) else {
                return Err(io::ErrorKind::Unsupported.into());
            };
            let offset = part.start - base;
            let bytes = part.end - part.start;
            let [at, count] = [offset, bytes].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
            if self.release_part(mapping, at..at.saturating_add(count))? {
                // A migration that has sent the page sends it again.
                self.written().mark(Gpa(part.start), bytes);
                released += bytes;
            }
        }
        Ok(released)
    }

    fn release_part(&self, mapping: &Mapping, part: Range<usize>) -> io::Result<bool> {
        let Some(image) = self.image.as_ref().filter(|image| image.is_mapped()) else {
            mapping.discard_part(part)?;
            return Ok(true);
        };
        // To discard a page would show the image's again, which may be older than the guest's.
        if !image.parts().take() {
            return Ok(false);
        }
        let range = mapping.renew_part(part)?;
        let host = HostMemory {
            prealloc: false,
            lock: false,
            ..self.host
        };
        // It is empty now, whether or not the host can have it as it was asked for.
        if let Err(error) = host::settle(&host, std::slice::from_ref(&range)) {
            tracing::debug!("memory that was given back: {error}");
        }
        Ok(true)
    }
}

/// The whole pages of `wanted` that are in `there`, which is of whole pages; none, if there are none.
fn whole_pages(wanted: Range<u64>, there: Range<u64>) -> Option<Range<u64>> {
    let start = wanted
        .start
        .checked_next_multiple_of(PAGE)?
        .max(there.start);
    let end = (wanted.end / PAGE * PAGE).min(there.end);
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::memory::dirty::PageSet;
    use crate::memory::{Backing, MemoryConfig};

    const RANGES: [(Gpa, u64); 2] = [(Gpa(0), 0x8000), (Gpa(0x10_0000), 0x4000)];

    fn ram() -> GuestRam {
        let ram = GuestRam::new(&MemoryConfig::of(0), &RANGES).unwrap();
        fill(&ram);
        ram
    }

    fn fill(ram: &GuestRam) {
        for (gpa, len) in RANGES {
            ram.write(gpa, &vec![7; usize::try_from(len).unwrap()])
                .unwrap();
        }
    }

    /// A RAM that shows an image, with other content in what was written since.
    fn lazy() -> (GuestRam, File) {
        let mut image = tempfile::tempfile().unwrap();
        image.write_all(&[5; 0xc000]).unwrap();
        let host = HostMemory::default();
        let ram = GuestRam::map_saved(&image, Path::new("ram"), &RANGES, host).unwrap();
        (ram, image)
    }

    /// The first byte of each page of the first piece.
    fn pages(ram: &GuestRam) -> [u8; 8] {
        let mut page = 0;
        [0; 8].map(|_: u8| {
            let mut byte = [9];
            ram.read(Gpa(page * PAGE), &mut byte).unwrap();
            page += 1;
            byte[0]
        })
    }

    #[test]
    fn whole_pages_of_ram_are_released_and_nothing_else() {
        let ram = ram();
        for (gpa, len, released) in [
            (0x1000, 0x2000, 0x2000),
            // No whole page.
            (0x3001, 0x1ffe, 0),
            (0x3000, 0xfff, 0),
            (0x4fff, 0x1001, 0x1000),
            (0x7000, 0, 0),
            // None of RAM.
            (0x8000, 0x1000, 0),
            (0xf_f000, 0x1000, 0),
            (0xffff_ffff_ffff_f001, u64::MAX, 0),
            // Out of the end of one piece, and over the hole.
            (0x7000, 0x10_0000 - 0x7000 + 0x1800, 0x2000),
        ] {
            assert_eq!(ram.release(Gpa(gpa), len).unwrap(), released, "{gpa:#x}");
        }
        assert_eq!(pages(&ram), [7, 0, 0, 7, 7, 0, 7, 0]);
        let mut second = [9; 0x1001];
        ram.read(Gpa(0x10_0000), &mut second).unwrap();
        assert_eq!((second[0], second[0xfff], second[0x1000]), (0, 0, 7));
        fill(&ram);
        assert_eq!(pages(&ram), [7; 8]);
    }

    #[test]
    fn released_pages_are_sent_again() {
        let ram = ram();
        ram.written().switch(true);
        ram.release(Gpa(0x2000), 0x1000).unwrap();
        let mut set = PageSet::none(ram.pieces());
        ram.written().collect(&mut set);
        let runs: Vec<_> = set.runs(64).map(|run| (run.gpa, run.pages)).collect();
        assert_eq!(runs, [(Gpa(0x2000), 1)]);
    }

    #[test]
    fn released_pages_of_a_saved_image_are_zero_and_the_others_stay() {
        let (ram, _image) = lazy();
        ram.write(Gpa(0x3000), &[8]).unwrap();
        ram.release(Gpa(0x2000), 0x2000).unwrap();
        assert_eq!(pages(&ram), [5, 5, 0, 0, 5, 5, 5, 5]);
        assert_eq!(ram.backing(), Backing::Saved);
        ram.write(Gpa(0x3000), &[9]).unwrap();
        assert_eq!(pages(&ram), [5, 5, 0, 9, 5, 5, 5, 5]);
        ram.discard().unwrap();
        assert_eq!(pages(&ram), [0; 8]);
        ram.write(Gpa(0x5000), &[1]).unwrap();
        assert_eq!(ram.release(Gpa(0), 0x8000).unwrap(), 0x8000);
        assert_eq!(pages(&ram), [0; 8]);
    }

    #[test]
    fn a_saved_image_is_replaced_in_so_many_parts_and_no_more() {
        let (ram, _image) = lazy();
        for _ in 0..MAX_PARTS {
            assert_eq!(ram.release(Gpa(0x1000), 0x1000).unwrap(), 0x1000);
        }
        assert_eq!(ram.release(Gpa(0x2000), 0x1000).unwrap(), 0);
        assert_eq!(pages(&ram), [5, 0, 5, 5, 5, 5, 5, 5]);
    }

    proptest! {
        #[test]
        fn no_page_is_released_in_part(
            wanted in any::<(u64, u64)>(),
            near in (0..0x6000_u64, 0..0x6000_u64),
            base in 0..4_u64,
            pages in 0..4_u64,
        ) {
            let there = base * PAGE..(base + pages) * PAGE;
            for (start, end) in [wanted, near] {
                let found = whole_pages(start..end, there.clone());
                for page in 0..8 {
                    let page = page * PAGE..(page + 1) * PAGE;
                    let is = |range: &Range<u64>| range.start <= page.start && page.end <= range.end;
                    let released = found.as_ref().is_some_and(is);
                    prop_assert_eq!(released, is(&(start..end)) && is(&there));
                }
                if let Some(found) = found {
                    prop_assert!(found.start.is_multiple_of(PAGE) && found.end.is_multiple_of(PAGE));
                }
            }
        }
    }
}
