//! Guest memory in frames: runs of pages that are zero, plain or compressed.
//!
//! ```text
//! a run:  u64  first guest address, a multiple of 4096
//!         u32  pages, 1..=256
//!         u32  0 zero, 1 plain, 2 zstd
//!         u32  bytes that follow: 0, 4096 a page, or fewer
//! ```
//! A frame holds any number of runs. RAM at the destination is zero at first, so the first round omits zero
//! pages.

use thiserror::Error;
use zstd::bulk::{Compressor, Decompressor};

use super::wire::MAX_BODY;
use crate::memory::dirty::PAGE;
use crate::memory::{GuestRam, NoRam};
use crate::units::Gpa;

/// The maximum number of pages in a run.
pub const MAX_RUN: u64 = 256;
const PAGE_BYTES: usize = 4096;
const RUN_HEADER: usize = 20;
const ZERO: u32 = 0;
const PLAIN: u32 = 1;
const ZSTD: u32 = 2;
/// Faster than most links, with most of the savings of a higher level.
const ZSTD_LEVEL: i32 = 1;

/// Why received pages are invalid.
#[derive(Debug, Error)]
pub enum PagesError {
    /// The body ends inside a run's header or its data.
    #[error("a frame of guest memory ends inside a run of pages")]
    Short,
    /// A run that is not valid in this protocol.
    #[error("a run of {pages} pages at {gpa:#x} as {kind} in {len} bytes is invalid")]
    Nonsense {
        /// First address.
        gpa: u64,
        /// The number of pages.
        pages: u32,
        /// The kind of the run.
        kind: u32,
        /// Bytes.
        len: u32,
    },
    /// Compressed pages without an agreement on compression, or with the wrong length.
    #[error("compressed pages at {gpa:#x} cannot be unpacked")]
    Zstd {
        /// First address.
        gpa: u64,
    },
    /// The guest has no RAM there.
    #[error(transparent)]
    NoRam(#[from] NoRam),
}

/// Packs pages into the bodies of frames.
pub struct Packer {
    body: Vec<u8>,
    compressor: Option<Compressor<'static>>,
    squeezed: Vec<u8>,
    zeroes: bool,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer")
            .field("bytes", &self.body.len())
            .field("zstd", &self.compressor.is_some())
            .finish_non_exhaustive()
    }
}

impl Packer {
    /// Creates a packer with an empty body. `zeroes` includes zero pages.
    ///
    /// # Errors
    /// If zstd cannot be initialized.
    pub fn new(zstd: bool, zeroes: bool) -> std::io::Result<Self> {
        let compressor = match zstd {
            true => Some(Compressor::new(ZSTD_LEVEL)?),
            false => None,
        };
        Ok(Self {
            body: Vec::with_capacity(MAX_BODY),
            compressor,
            squeezed: Vec::new(),
            zeroes,
        })
    }

    /// Whether `pages` more pages surely fit.
    pub fn has_room(&self, pages: u64) -> bool {
        // In the worst case every page is its own run.
        let pages = usize::try_from(pages).unwrap_or(usize::MAX);
        pages
            .checked_mul(PAGE_BYTES + RUN_HEADER)
            .and_then(|bytes| bytes.checked_add(self.body.len()))
            .is_some_and(|bytes| bytes <= MAX_BODY)
    }

    /// Adds whole pages at `gpa`. There must be room.
    pub fn add(&mut self, gpa: Gpa, data: &[u8]) {
        let mut rest = data;
        let mut gpa = gpa.0;
        while !rest.is_empty() {
            let zero = is_zero(&rest[..PAGE_BYTES.min(rest.len())]);
            let alike = rest
                .chunks_exact(PAGE_BYTES)
                .take_while(|page| is_zero(page) == zero)
                .count()
                .max(1);
            let (these, after) = rest.split_at((alike * PAGE_BYTES).min(rest.len()));
            if !zero {
                self.add_data(gpa, these);
            } else if self.zeroes {
                self.header(gpa, these.len(), ZERO, 0);
            }
            gpa += these.len() as u64;
            rest = after;
        }
    }

    /// Returns the body, if it is not empty. The caller then calls [`Packer::clear`].
    pub fn body(&self) -> Option<&[u8]> {
        (!self.body.is_empty()).then_some(&self.body)
    }

    /// Empties the body.
    pub fn clear(&mut self) {
        self.body.clear();
    }

    fn add_data(&mut self, gpa: u64, data: &[u8]) {
        if let Some(compressor) = &mut self.compressor {
            // Data that does not shrink by a sixteenth is sent plain, which spares decompressing it.
            self.squeezed.resize(data.len() - data.len() / 16, 0);
            if let Ok(len) = compressor.compress_to_buffer(data, &mut self.squeezed[..]) {
                self.header(gpa, data.len(), ZSTD, len);
                self.body.extend_from_slice(&self.squeezed[..len]);
                return;
            }
        }
        self.header(gpa, data.len(), PLAIN, data.len());
        self.body.extend_from_slice(data);
    }

    fn header(&mut self, gpa: u64, bytes: usize, kind: u32, len: usize) {
        let number = |n: usize| u32::try_from(n).expect("a frame is shorter than 4 GiB");
        self.body.extend_from_slice(&gpa.to_le_bytes());
        for n in [number(bytes / PAGE_BYTES), kind, number(len)] {
            self.body.extend_from_slice(&n.to_le_bytes());
        }
    }
}

/// Writes the pages of frames to guest RAM.
pub struct Unpacker {
    decompressor: Option<Decompressor<'static>>,
    plain: Vec<u8>,
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacker")
            .field("zstd", &self.decompressor.is_some())
            .finish_non_exhaustive()
    }
}

impl Unpacker {
    /// Creates an unpacker; without `zstd` it refuses compressed pages.
    ///
    /// # Errors
    /// If zstd cannot be initialized.
    pub fn new(zstd: bool) -> std::io::Result<Self> {
        let decompressor = match zstd {
            true => Some(Decompressor::new()?),
            false => None,
        };
        Ok(Self {
            decompressor,
            plain: Vec::new(),
        })
    }

    /// Writes all runs of a frame's body to guest RAM.
    ///
    /// # Errors
    /// If a run is invalid, or the guest has no RAM there. Earlier runs have been written.
    pub fn unpack(&mut self, mut body: &[u8], ram: &GuestRam) -> Result<(), PagesError> {
        while !body.is_empty() {
            let (header, rest) = body
                .split_first_chunk::<RUN_HEADER>()
                .ok_or(PagesError::Short)?;
            let [
                a,
                b,
                c,
                d,
                e,
                f,
                g,
                h,
                p0,
                p1,
                p2,
                p3,
                k0,
                k1,
                k2,
                k3,
                l0,
                l1,
                l2,
                l3,
            ] = *header;
            let gpa = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            let pages = u32::from_le_bytes([p0, p1, p2, p3]);
            let kind = u32::from_le_bytes([k0, k1, k2, k3]);
            let len = u32::from_le_bytes([l0, l1, l2, l3]);
            let nonsense = || PagesError::Nonsense {
                gpa,
                pages,
                kind,
                len,
            };
            if pages == 0 || u64::from(pages) > MAX_RUN || gpa % PAGE != 0 {
                return Err(nonsense());
            }
            let bytes = usize::try_from(u64::from(pages) * PAGE).map_err(|_| nonsense())?;
            let len_here = usize::try_from(len).map_err(|_| nonsense())?;
            let (data, after) = rest.split_at_checked(len_here).ok_or(PagesError::Short)?;
            body = after;
            match kind {
                ZERO if len == 0 => {
                    self.plain.clear();
                    self.plain.resize(bytes, 0);
                    ram.write(Gpa(gpa), &self.plain)?;
                }
                PLAIN if len_here == bytes => ram.write(Gpa(gpa), data)?,
                ZSTD if len_here < bytes => {
                    self.plain.resize(bytes, 0);
                    let unpacked = self
                        .decompressor
                        .as_mut()
                        .and_then(|zstd| zstd.decompress_to_buffer(data, &mut self.plain[..]).ok());
                    if unpacked != Some(bytes) {
                        return Err(PagesError::Zstd { gpa });
                    }
                    ram.write(Gpa(gpa), &self.plain)?;
                }
                _ => return Err(nonsense()),
            }
        }
        Ok(())
    }
}

/// Whether `data` contains only zeroes.
pub fn is_zero(data: &[u8]) -> bool {
    let (blocks, rest) = data.as_chunks::<64>();
    // Folding a whole block lets the compiler use vectors; a page with content usually differs in one of
    // its first blocks.
    blocks
        .iter()
        .all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::MemoryConfig;

    fn ram(pages: u64) -> GuestRam {
        let config = MemoryConfig::of(0);
        GuestRam::new(&config, &[(Gpa(0), pages * PAGE)]).unwrap()
    }

    fn content(pages: &[u8]) -> Vec<u8> {
        pages.iter().flat_map(|&byte| [byte; PAGE_BYTES]).collect()
    }

    #[test]
    fn zero_pages_take_one_header_per_run_and_nothing_in_the_first_round() {
        let data = content(&[0, 0, 0, 7, 7, 0]);
        let mut packer = Packer::new(false, true).unwrap();
        packer.add(Gpa(0x1000), &data);
        let body = packer.body().unwrap().to_vec();
        assert_eq!(body.len(), 3 * RUN_HEADER + 2 * PAGE_BYTES);
        let ram = ram(16);
        ram.write(Gpa(0x1000), &[9; 0x6000]).unwrap();
        Unpacker::new(false).unwrap().unpack(&body, &ram).unwrap();
        let mut there = vec![1; data.len()];
        ram.read(Gpa(0x1000), &mut there).unwrap();
        assert!(there == data);

        let mut first = Packer::new(false, false).unwrap();
        first.add(Gpa(0x1000), &content(&[0; 6]));
        assert_eq!(first.body(), None);
        first.add(Gpa(0x1000), &data);
        assert_eq!(first.body().unwrap().len(), RUN_HEADER + 2 * PAGE_BYTES);
    }

    #[test]
    fn a_frame_always_holds_a_run_of_the_largest_size() {
        let mut packer = Packer::new(false, true).unwrap();
        assert!(packer.has_room(MAX_RUN));
        // Every other page is zero: the maximum number of headers.
        let worst: Vec<u8> = (0..MAX_RUN).map(|page| (page % 2) as u8).collect();
        packer.add(Gpa(0), &content(&worst));
        assert!(packer.body().unwrap().len() <= MAX_BODY);
        assert!(!packer.has_room(MAX_RUN));
        packer.clear();
        packer.add(Gpa(0), &content(&[1; 256]));
        assert!(packer.body().unwrap().len() <= MAX_BODY);
    }

    #[test]
    fn compression_is_used_only_if_it_helps_and_was_agreed() {
        let mut packer = Packer::new(true, true).unwrap();
        packer.add(Gpa(0), &content(&[5; 64]));
        let body = packer.body().unwrap().to_vec();
        assert!(body.len() < PAGE_BYTES);
        let ram = ram(64);
        Unpacker::new(true).unwrap().unpack(&body, &ram).unwrap();
        let mut there = content(&[0; 64]);
        ram.read(Gpa(0), &mut there).unwrap();
        assert!(there == content(&[5; 64]));
        assert!(matches!(
            Unpacker::new(false).unwrap().unpack(&body, &ram),
            Err(PagesError::Zstd { gpa: 0 })
        ));
        // Random data does not compress.
        let mut noise = vec![0_u8; PAGE_BYTES];
        let mut x = 1_u64;
        for byte in &mut noise {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = x.to_le_bytes()[7];
        }
        packer.clear();
        packer.add(Gpa(0), &noise);
        assert_eq!(packer.body().unwrap().len(), RUN_HEADER + PAGE_BYTES);
    }

    #[test]
    fn nonsense_is_refused() {
        let ram = ram(16);
        let run = |gpa: u64, pages: u32, kind: u32, len: u32| {
            let mut body = gpa.to_le_bytes().to_vec();
            for n in [pages, kind, len] {
                body.extend_from_slice(&n.to_le_bytes());
            }
            body.resize(body.len() + (len as usize).min(8192), 0);
            body
        };
        for (body, why) in [
            (
                run(0, 1, PLAIN, 4096)[..RUN_HEADER - 1].to_vec(),
                "ends inside a run",
            ),
            (
                run(0, 1, PLAIN, 4096)[..RUN_HEADER + 4095].to_vec(),
                "ends inside a run",
            ),
            (run(0, 3, PLAIN, 0xffff_ffff), "ends inside a run"),
            (run(0, 0, ZERO, 0), "is invalid"),
            (run(1, 1, ZERO, 0), "is invalid"),
            (run(0, 257, ZERO, 0), "is invalid"),
            (run(0, 1, ZERO, 1), "is invalid"),
            (run(0, 2, PLAIN, 4096), "is invalid"),
            (run(0, 1, 3, 0), "is invalid"),
            (run(0, 1, ZSTD, 4096), "is invalid"),
            (run(0, 1, ZSTD, 5), "unpacked"),
            (run(16 * PAGE, 1, ZERO, 0), "no RAM"),
            (run(15 * PAGE, 2, ZERO, 0), "no RAM"),
            (run(u64::MAX - 4095, 256, ZERO, 0), "no RAM"),
        ] {
            let e = Unpacker::new(true).unwrap().unpack(&body, &ram);
            let e = e.unwrap_err().to_string();
            assert!(e.contains(why), "{e}: not {why}");
        }
    }

    proptest! {
        #[test]
        fn unpacked_pages_equal_the_packed_pages(
            pages in proptest::collection::vec(0_u8..4, 1..60), zstd: bool, first in 0_u64..4
        ) {
            let data = content(&pages);
            let (from, to) = (ram(64), ram(64));
            from.write(Gpa(first * PAGE), &data).unwrap();
            to.write(Gpa(0), &[3; 64 * PAGE_BYTES]).unwrap();
            let mut packer = Packer::new(zstd, true).unwrap();
            packer.add(Gpa(first * PAGE), &data);
            Unpacker::new(zstd).unwrap().unpack(packer.body().unwrap(), &to).unwrap();
            let mut there = vec![0; data.len()];
            to.read(Gpa(first * PAGE), &mut there).unwrap();
            prop_assert!(there == data);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), zstd: bool) {
            let _refused = Unpacker::new(zstd).unwrap().unpack(&bytes, &ram(16));
        }
    }
}
