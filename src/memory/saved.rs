//! RAM that comes from a saved image, and which parts of RAM are worth saving.

#![allow(unsafe_code, reason = "regions over mappings that are owned elsewhere")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

use super::anonymous::{FLAGS, Mapping};
use super::release::Parts;
use super::{GuestRam, HostMemory, MemoryError, pagemap, pieces_of};
use crate::sys::fatal::OnDeath;
use crate::units::Gpa;

/// The file that RAM is mapped from after a lazy restore. Others can still truncate it, or its disk can fail:
/// an access by this process then raises SIGBUS, and one by the guest makes KVM_RUN fail with EFAULT.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    /// Bytes that are mapped, from its beginning.
    len: u64,
    /// What is reported when it cannot be read.
    message: String,
    /// RAM is still mapped from it.
    mapped: AtomicBool,
    /// What was put in its place.
    parts: Parts,
    _explained: Vec<OnDeath>,
}

impl Image {
    fn new(file: File, path: &Path, mmap: &GuestMemoryMmap) -> Self {
        let message = format!(
            "the VM was ended: its saved RAM {} can no longer be read: the file was truncated, or its disk \
             failed; `hypernest restore --eager` reads all of it before the VM runs",
            path.display()
        );
        let explained = pieces_of(mmap).filter_map(|piece| {
            let start = usize::try_from(piece.host).ok()?;
            let end = start.checked_add(usize::try_from(piece.len).ok()?)?;
            Some(OnDeath::explain(start..end, &message))
        });
        Self {
            _explained: explained.collect(),
            len: pieces_of(mmap).map(|piece| piece.len).sum(),
            file,
            message,
            mapped: AtomicBool::new(true),
            parts: Parts::default(),
        }
    }

    /// RAM has been mapped afresh.
    pub(super) fn unmapped(&self) {
        self.mapped.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_mapped(&self) -> bool {
        self.mapped.load(Ordering::Relaxed)
    }

    pub(super) fn parts(&self) -> &Parts {
        &self.parts
    }

    fn is_lost(&self) -> bool {
        let truncated = || self.file.metadata().map_or(true, |m| m.len() < self.len);
        self.is_mapped() && truncated()
    }
}

impl GuestRam {
    /// Why its content cannot be read any more: the saved image that it is mapped from was truncated.
    pub fn lost(&self) -> Option<&str> {
        let image = self.image.as_ref().filter(|image| image.is_lost())?;
        Some(&image.message)
    }

    /// Maps `image`, which was opened at `path`, and has the host do with it what `host` says. `ranges`
    /// (first guest address, length) lie one after the other in it. The guest runs before it is read, and
    /// what the guest writes stays in memory: the image does not change. Others must not change or truncate
    /// it either while this RAM is in use; its name may go.
    ///
    /// # Errors
    /// If the file cannot be mapped, or the host cannot do that.
    pub fn map_saved(
        image: &File,
        path: &Path,
        ranges: &[(Gpa, u64)],
        host: HostMemory,
    ) -> Result<Self, MemoryError> {
        let mut offset = 0;
        let mut pieces = Vec::with_capacity(ranges.len());
        let mut mappings = Vec::with_capacity(ranges.len());
        for &(gpa, len) in ranges {
            let (region, mapping) = map_piece(image, offset, gpa, len)?;
            pieces.push(region);
            mappings.push(mapping);
            offset = u64::saturating_add(offset, len);
        }
        let file = image.try_clone().map_err(|source| MemoryError::MapSaved {
            gpa: ranges.first().map_or(Gpa(0), |range| range.0),
            size: offset,
            source: MmapRegionError::Mmap(source),
        })?;
        let mut ram = Self::over(pieces, mappings)?;
        ram.image = Some(Arc::new(Image::new(file, path, &ram.mmap)));
        ram.settled(host)
    }

    /// Where something may have been written: everything outside reads as zeroes. Finding that out by looking
    /// would give every page its memory.
    pub fn data(&self) -> Vec<Range<Gpa>> {
        let shows_image = self.image.as_ref().is_some_and(|image| image.is_mapped());
        self.mmap
            .iter()
            .flat_map(|region| {
                let start = region.start_addr().0;
                let parts = match shared_file(region) {
                    Some(file) => data_of(file.file(), region.len()),
                    // What the guest has written is not in the file, and what is in the file is in no page
                    // yet.
                    None if shows_image => std::iter::once(0..region.len()).collect(),
                    None => pagemap::data(region.as_ptr().addr(), region.size()),
                };
                parts
                    .into_iter()
                    .map(move |part| Gpa(start + part.start)..Gpa(start + part.end))
            })
            .collect()
    }
}

/// The parts of the first `len` bytes of `file` that are not holes.
pub(crate) fn data_of(file: &File, len: u64) -> Vec<Range<u64>> {
    let Ok(end) = i64::try_from(len) else {
        return Vec::new();
    };
    let mut parts = Vec::new();
    let mut at = 0;
    while at < end {
        let start = match lseek(file, at, Whence::SeekData) {
            Ok(start) if start < end => start,
            // ENXIO: nothing but a hole from here on.
            Ok(_) | Err(Errno::ENXIO) => break,
            // A file system that does not know of holes has none: hugetlbfs, for one.
            Err(_) => at,
        };
        let hole = lseek(file, start, Whence::SeekHole).unwrap_or(end);
        let hole = hole.clamp(start + 1, end);
        parts.push(start.unsigned_abs()..hole.unsigned_abs());
        at = hole;
    }
    parts
}

/// The memory file that holds the region's content.
pub(super) fn shared_file(region: &GuestRegionMmap) -> Option<&FileOffset> {
    region.file_offset()
}

/// Fresh memory for RAM at `gpa`.
pub(super) fn map_anonymous(gpa: Gpa, len: u64) -> Result<(GuestRegionMmap, Mapping), MemoryError> {
    map(gpa, len, |_| Ok(())).map_err(|source| match source {
        Some(source) => MemoryError::Map {
            gpa,
            size: len,
            hugepages: None,
            source,
        },
        None => MemoryError::TooLarge { gpa, size: len },
    })
}

fn map_piece(
    image: &File,
    offset: u64,
    gpa: Gpa,
    len: u64,
) -> Result<(GuestRegionMmap, Mapping), MemoryError> {
    map(gpa, len, |mapping| mapping.show(image, offset)).map_err(|source| match source {
        Some(source) => MemoryError::MapSaved {
            gpa,
            size: len,
            source,
        },
        None => MemoryError::TooLarge { gpa, size: len },
    })
}

/// A mapping that `fill` has put something into, and the region that shows it. `None`: it does not fit into
/// the address space.
fn map(
    gpa: Gpa,
    len: u64,
    fill: impl FnOnce(&Mapping) -> io::Result<()>,
) -> Result<(GuestRegionMmap, Mapping), Option<MmapRegionError>> {
    let size = usize::try_from(len).map_err(|_| None)?;
    let mapping = Mapping::new(gpa, size).map_err(MmapRegionError::Mmap)?;
    fill(&mapping).map_err(MmapRegionError::Mmap)?;
    let builder = MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(FLAGS);
    // SAFETY: the range is exactly `mapping`. `GuestRam` keeps it for as long as the region, and nothing else
    // has either.
    let region = unsafe { builder.with_raw_mmap_pointer(mapping.pointer()) }.build()?;
    let region = GuestRegionMmap::new(region, GuestAddress(gpa.0)).ok_or(None)?;
    Ok((region, mapping))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;
    use crate::memory::MemoryConfig;

    const RANGES: [(Gpa, u64); 2] = [(Gpa(0), 0x4000), (Gpa(0x10_0000), 0x2000)];

    fn image() -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(0x6000).unwrap();
        file.seek(io::SeekFrom::Start(0x1000)).unwrap();
        file.write_all(&[1; 16]).unwrap();
        file.seek(io::SeekFrom::Start(0x4000)).unwrap();
        file.write_all(&[2; 16]).unwrap();
        file
    }

    fn at(ram: &GuestRam, gpa: u64) -> u8 {
        let mut byte = [9];
        ram.read(Gpa(gpa), &mut byte).unwrap();
        byte[0]
    }

    #[test]
    fn a_saved_image_is_ram_and_stays_as_it_is() {
        let mut image = image();
        let ram =
            GuestRam::map_saved(&image, Path::new("ram"), &RANGES, HostMemory::default()).unwrap();
        assert_eq!(
            [0, 0x1000, 0x10_0000, 0x10_1000].map(|a| at(&ram, a)),
            [0, 1, 2, 0]
        );
        ram.write(Gpa(0x1000), &[7]).unwrap();
        ram.write(Gpa(0), &[8]).unwrap();
        assert_eq!([0, 0x1000].map(|a| at(&ram, a)), [8, 7]);
        let mut bytes = Vec::new();
        image.rewind().unwrap();
        image.read_to_end(&mut bytes).unwrap();
        assert_eq!((bytes[0], bytes[0x1000]), (0, 1));
    }

    #[test]
    fn discarding_a_saved_image_leaves_zeroes_that_can_be_written() {
        let ram = GuestRam::map_saved(&image(), Path::new("ram"), &RANGES, HostMemory::default())
            .unwrap();
        let handle = ram.clone();
        for _ in 0..2 {
            ram.write(Gpa(0x3000), &[7]).unwrap();
            ram.discard().unwrap();
            assert_eq!(
                [0, 0x1000, 0x3000, 0x10_0000].map(|a| at(&handle, a)),
                [0; 4]
            );
        }
    }

    #[test]
    fn data_is_found_without_touching_the_rest() {
        let config = MemoryConfig::of(0);
        let ram = GuestRam::new(&config, &[(Gpa(0), 1 << 40), (Gpa(1 << 41), 0x3000)]).unwrap();
        assert!(ram.data().is_empty());
        ram.write(Gpa(0x5800), &[1]).unwrap();
        ram.write(Gpa((1 << 41) + 0x2000), &[1]).unwrap();
        // One page each, or one huge page.
        let data = ram.data();
        assert_eq!(data.len(), 2);
        for (part, written) in data.iter().zip([0x5800, (1 << 41) + 0x2000]) {
            assert!(part.contains(&Gpa(written)) && part.end.0 - part.start.0 <= 2 << 20);
        }
    }

    #[test]
    fn all_of_a_saved_image_may_have_been_written() {
        let ram = GuestRam::map_saved(&image(), Path::new("ram"), &RANGES, HostMemory::default())
            .unwrap();
        assert_eq!(
            ram.data(),
            [Gpa(0)..Gpa(0x4000), Gpa(0x10_0000)..Gpa(0x10_2000)]
        );
    }
}
