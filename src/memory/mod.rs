//! Guest RAM: anonymous memory, for which the host is asked for huge pages; or a memfd of reserved huge pages
//! per piece; or, after a lazy restore, the saved RAM's file mapped privately ([`GuestRam::map_saved`]).

mod anonymous;
pub mod balloon;
mod config;
pub mod dirty;
pub mod dirty_log;
mod dma;
mod host;
mod pagemap;
mod release;
mod saved;
pub mod slots;
mod usage;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use thiserror::Error;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, VolatileSlice,
};

use crate::units::Gpa;
use anonymous::Mapping;
pub use config::{HostMemory, HugePageSize, MemoryConfig, NodeSet, Numa, NumaPolicy};
use dirty::WrittenPages;
pub use dma::{Access, Dma, DmaError, Gate, Readable, Writable};
pub use host::HostMemoryError;
pub(crate) use saved::data_of;
pub use usage::Usage;

/// Why guest RAM could not be had.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// memfd_create or ftruncate failed.
    #[error("cannot create a {} MiB memory file for guest RAM", .size >> 20)]
    Create {
        /// Bytes asked for.
        size: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// mmap failed.
    #[error("cannot map {} MiB of guest RAM at guest address {gpa}{}", .size >> 20, hint(*.hugepages))]
    Map {
        /// First guest address.
        gpa: Gpa,
        /// Bytes asked for.
        size: u64,
        /// Huge pages asked for.
        hugepages: Option<HugePageSize>,
        /// What vm-memory said.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The pieces do not fit together.
    #[error("guest RAM pieces do not fit into the guest's address space")]
    Layout(#[source] vm_memory::GuestRegionCollectionError),
    /// A saved RAM image cannot be mapped.
    #[error("cannot map {} MiB of the saved RAM at guest address {gpa}", .size >> 20)]
    MapSaved {
        /// First guest address.
        gpa: Gpa,
        /// Bytes asked for.
        size: u64,
        /// What vm-memory said.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The host cannot do with it what is asked for.
    #[error(transparent)]
    Host(#[from] HostMemoryError),
    /// The piece does not fit into this process's address space or guest addresses.
    #[error("guest RAM of {size:#x} bytes at {gpa} does not fit into the address space")]
    TooLarge {
        /// First guest address.
        gpa: Gpa,
        /// Bytes asked for.
        size: u64,
    },
}

fn hint(hugepages: Option<HugePageSize>) -> &'static str {
    match hugepages {
        None => " (do ulimit -d, ulimit -v and vm.overcommit_memory allow it?)",
        Some(HugePageSize::Size2M) => {
            " with 2 MiB pages (are enough reserved? see \
             /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)"
        }
        Some(HugePageSize::Size1G) => {
            " with 1 GiB pages (are enough reserved? see \
             /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages)"
        }
    }
}

/// The guest does not have memory at an address, or not enough of it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the guest has no RAM at {gpa} for {len:#x} bytes")]
pub struct NoRam {
    /// First address.
    pub gpa: Gpa,
    /// Bytes accessed.
    pub len: usize,
}

/// The guest's RAM.
#[derive(Clone, Debug)]
pub struct GuestRam {
    mmap: GuestMemoryMmap,
    written: Arc<WrittenPages>,
    /// The saved image that it is mapped from, if it is.
    image: Option<Arc<saved::Image>>,
    /// What `mmap` shows, in its order; empty for a memfd, whose regions own their mappings. It goes after
    /// `mmap`.
    mappings: Arc<Vec<Mapping>>,
    host: HostMemory,
}

/// What guest RAM is backed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Anonymous memory.
    Anonymous,
    /// A memory file of reserved huge pages.
    Reserved,
    /// The file of a saved VM, and anonymous memory for what has been written since.
    Saved,
}

/// One piece of RAM, as KVM wants to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamPiece {
    /// First guest address.
    pub gpa: Gpa,
    /// Bytes.
    pub len: u64,
    /// Where it is mapped in this process.
    pub host: u64,
}

impl GuestRam {
    /// Allocates `ranges` (first address, length), each multiples of the page size in use and in ascending
    /// order. Pages are given by the host on first touch, except huge pages, which are reserved now.
    ///
    /// # Errors
    /// If the host does not give the memory.
    pub fn new(config: &MemoryConfig, ranges: &[(Gpa, u64)]) -> Result<Self, MemoryError> {
        let mut pieces = Vec::with_capacity(ranges.len());
        let mut mappings = Vec::new();
        for &(gpa, len) in ranges {
            pieces.push(match config.hugepages {
                Some(page) => map_piece(gpa, len, page)?,
                None => {
                    let (region, mapping) = saved::map_anonymous(gpa, len)?;
                    mappings.push(mapping);
                    region
                }
            });
        }
        Self::over(pieces, mappings)?.settled(config.host)
    }

    /// Has the host do with all of it what `host` says, now and after each [discard](Self::discard).
    fn settled(self, host: HostMemory) -> Result<Self, MemoryError> {
        host::settle(&host, &self.ranges())?;
        Ok(Self { host, ..self })
    }

    /// Where its pieces lie in this process.
    fn ranges(&self) -> Vec<Range<usize>> {
        let regions = self.mmap.iter();
        let range = |region: &GuestRegionMmap| {
            let start = region.as_ptr().addr();
            start..start + region.size()
        };
        regions.map(range).collect()
    }

    /// What the host holds of it at this moment. That takes the longer, the more it holds.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn usage(&self) -> io::Result<Usage> {
        Usage::of(&self.ranges())
    }

    /// What it is backed with.
    pub fn backing(&self) -> Backing {
        match &self.image {
            Some(image) if image.is_mapped() => Backing::Saved,
            _ if self.mappings.is_empty() => Backing::Reserved,
            _ => Backing::Anonymous,
        }
    }

    /// Of `regions` that show `mappings`, or own theirs.
    fn over(regions: Vec<GuestRegionMmap>, mappings: Vec<Mapping>) -> Result<Self, MemoryError> {
        let mmap = GuestMemoryMmap::from_regions(regions).map_err(MemoryError::Layout)?;
        Ok(Self {
            written: Arc::new(WrittenPages::new(pieces_of(&mmap))),
            mmap,
            image: None,
            mappings: Arc::new(mappings),
            host: HostMemory::default(),
        })
    }

    /// Pages that were written other than by the guest itself.
    pub fn written(&self) -> &Arc<WrittenPages> {
        &self.written
    }

    /// The RAM as the rust-vmm crates know it. A clone would not keep it mapped.
    pub(crate) fn mmap(&self) -> &GuestMemoryMmap {
        &self.mmap
    }

    /// The pieces, low to high.
    pub fn pieces(&self) -> impl Iterator<Item = RamPiece> {
        pieces_of(&self.mmap)
    }

    /// Empties all of it: it reads as zeroes again, and the host gets its pages back.
    ///
    /// # Errors
    /// If the host cannot free its pages, or cannot have them again as they were asked for.
    pub fn discard(&self) -> io::Result<()> {
        if self.host.lock {
            self.ranges().iter().for_each(host::unlock);
        }
        for mapping in self.mappings.iter() {
            match &self.image {
                // It shows the image, or what was put in its place.
                Some(_) => mapping.renew()?,
                None => mapping.discard()?,
            }
        }
        if let Some(image) = &self.image {
            image.unmapped();
        }
        for file in self.mmap.iter().filter_map(saved::shared_file) {
            let length = file.file().metadata()?.len();
            fallocate(
                file.file(),
                FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
                0,
                i64::try_from(length).map_err(io::Error::other)?,
            )?;
        }
        host::settle(&self.host, &self.ranges()).map_err(io::Error::other)
    }

    /// Copies guest memory into `data`.
    ///
    /// # Errors
    /// If any of it is not RAM; `data` may be partly filled then.
    pub fn read(&self, gpa: Gpa, data: &mut [u8]) -> Result<(), NoRam> {
        let len = data.len();
        if let Some(slice) = self.in_one_piece(gpa, len) {
            slice.copy_to(data);
            return Ok(());
        }
        self.mmap
            .read_slice(data, GuestAddress(gpa.0))
            .map_err(|_| NoRam { gpa, len })
    }

    /// Copies `data` into guest memory.
    ///
    /// # Errors
    /// If any of it is not RAM; part of it may be written then.
    pub fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), NoRam> {
        let written = match self.in_one_piece(gpa, data.len()) {
            Some(slice) => {
                slice.copy_from(data);
                Ok(())
            }
            None => self.mmap.write_slice(data, GuestAddress(gpa.0)),
        };
        self.written.mark(gpa, data.len() as u64);
        written.map_err(|_| NoRam {
            gpa,
            len: data.len(),
        })
    }

    /// The memory of an access that does not cross from one piece to the next, as nearly none does: going
    /// through pieces takes several times as long.
    #[inline]
    fn in_one_piece(&self, gpa: Gpa, len: usize) -> Option<VolatileSlice<'_>> {
        let (piece, at) = self.mmap.to_region_addr(GuestAddress(gpa.0))?;
        piece.get_slice(at, len).ok()
    }
}

fn pieces_of(mmap: &GuestMemoryMmap) -> impl Iterator<Item = RamPiece> {
    mmap.iter().map(|region| RamPiece {
        gpa: Gpa(region.start_addr().0),
        len: region.len(),
        host: region.as_ptr() as u64,
    })
}

/// A memory file of reserved huge pages.
fn map_piece(gpa: Gpa, len: u64, page: HugePageSize) -> Result<GuestRegionMmap, MemoryError> {
    let too_large = MemoryError::TooLarge { gpa, size: len };
    let Ok(size) = usize::try_from(len) else {
        return Err(too_large);
    };
    let flags = MFdFlags::MFD_CLOEXEC
        | MFdFlags::MFD_HUGETLB
        | match page {
            HugePageSize::Size2M => MFdFlags::MFD_HUGE_2MB,
            HugePageSize::Size1G => MFdFlags::MFD_HUGE_1GB,
        };
    let create = |source| MemoryError::Create { size: len, source };
    let file: File = memfd_create("hypernest-ram", flags)
        .map_err(|e| create(e.into()))?
        .into();
    file.set_len(len).map_err(create)?;
    let region = MmapRegionBuilder::new(size)
        .with_file_offset(FileOffset::new(file, 0))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED)
        .with_hugetlbfs(true)
        .build()
        .map_err(|source| MemoryError::Map {
            gpa,
            size: len,
            hugepages: Some(page),
            source,
        })?;
    GuestRegionMmap::new(region, GuestAddress(gpa.0)).ok_or(too_large)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::AddressMap;

    fn ram(ranges: &[(Gpa, u64)]) -> GuestRam {
        let config = MemoryConfig::of(0);
        GuestRam::new(&config, ranges).unwrap()
    }

    #[test]
    fn what_is_written_reads_back_and_the_rest_is_zero() {
        let ram = ram(&[(Gpa(0), 0x4000)]);
        ram.write(Gpa(0x1fff), &[1, 2]).unwrap();
        let mut data = [9; 4];
        ram.read(Gpa(0x1ffe), &mut data).unwrap();
        assert_eq!(data, [0, 1, 2, 0]);
    }

    #[test]
    fn discarded_ram_is_empty_and_still_there() {
        let ram = ram(&[(Gpa(0), 0x4000), (Gpa(0x10_0000), 0x1000)]);
        ram.write(Gpa(0x1000), &[1; 16]).unwrap();
        ram.write(Gpa(0x10_0000), &[1; 16]).unwrap();
        ram.discard().unwrap();
        for gpa in [0x1000, 0x10_0000] {
            let mut data = [9; 16];
            ram.read(Gpa(gpa), &mut data).unwrap();
            assert_eq!(data, [0; 16]);
        }
        ram.write(Gpa(0x1000), &[1]).unwrap();
    }

    #[test]
    fn holes_and_ends_are_refused() {
        let ram = ram(&[(Gpa(0), 0x2000), (Gpa(0x10_0000), 0x1000)]);
        let mut data = [0; 4];
        for gpa in [0x1ffd, 0x2000, 0xf_fffe, 0x10_0ffd, u64::MAX] {
            let gpa = Gpa(gpa);
            assert_eq!(ram.read(gpa, &mut data), Err(NoRam { gpa, len: 4 }));
            assert_eq!(ram.write(gpa, &data), Err(NoRam { gpa, len: 4 }));
        }
    }

    #[test]
    fn pieces_carry_the_layout_and_cost_nothing_until_touched() {
        let ranges = AddressMap::PC_1.ram_ranges(64 << 30);
        let ram = ram(&ranges);
        let pieces: Vec<_> = ram.pieces().map(|p| (p.gpa, p.len)).collect();
        assert_eq!(pieces, ranges);
    }
}
