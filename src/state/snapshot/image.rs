//! The RAM file: the regions in sequence, with a checksum per chunk of the file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::{RAM_VERSION, SnapshotError};
use crate::memory::{GuestRam, HostMemory, MemoryConfig, data_of};
use crate::state::{Encoder, Section, StateError};
use crate::units::Gpa;

/// The size of a chunk, which one checksum covers, in bytes.
pub const CHUNK: u64 = 2 << 20;

/// The unit that is written, or left out as a hole, in bytes.
const PAGE: usize = 4096;

static ZEROES: [u8; PAGE] = [0; PAGE];

/// The RAM regions in the guest and in the file, and the file's checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamIndex {
    pieces: Vec<(Gpa, u64)>,
    /// The CRC32C of each chunk of the file; the last chunk may be shorter.
    chunks: Vec<u32>,
}

impl RamIndex {
    /// (First guest address, length) of each region.
    pub fn pieces(&self) -> &[(Gpa, u64)] {
        &self.pieces
    }

    /// The length of the file, in bytes.
    pub fn len(&self) -> u64 {
        self.pieces.iter().map(|&(_, len)| len).sum()
    }

    /// Whether there is no RAM.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(super) fn save(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        e.u64(self.pieces.len() as u64);
        for &(gpa, len) in &self.pieces {
            e.u64(gpa.0);
            e.u64(len);
        }
        e.u64(CHUNK);
        e.u64(self.chunks.len() as u64);
        for crc in &self.chunks {
            e.u32(*crc);
        }
        e.into_body()
    }

    /// Parses the section.
    ///
    /// # Errors
    /// If it is incomplete, or the regions are not valid RAM.
    pub fn load(section: &Section) -> Result<Self, StateError> {
        let mut d = section.decoder(RAM_VERSION)?;
        let count = d.count("number of regions", 16)?;
        let mut pieces: Vec<(Gpa, u64)> = Vec::with_capacity(count);
        let (mut end, mut total) = (0_u64, 0_u64);
        for _ in 0..count {
            let (gpa, len) = (d.u64("address of a region")?, d.u64("length of a region")?);
            let next = gpa.checked_add(len);
            let sum = total.checked_add(len).filter(|n| i64::try_from(*n).is_ok());
            let aligned = (gpa | len).is_multiple_of(PAGE as u64);
            let (Some(next), Some(sum), true) = (next, sum, aligned && len > 0 && gpa >= end)
            else {
                return Err(d.invalid(
                    "piece",
                    format!("no RAM can be at {gpa:#x} with {len:#x} bytes"),
                ));
            };
            pieces.push((Gpa(gpa), len));
            (end, total) = (next, sum);
        }
        let chunk = d.u64("size of a chunk")?;
        if chunk != CHUNK {
            return Err(d.invalid("size of a chunk", format!("{chunk} is not {CHUNK}")));
        }
        let count = d.count("number of checksums", 4)?;
        if count as u64 != total.div_ceil(CHUNK) {
            return Err(d.invalid("number of checksums", format!("{count} for {total} bytes")));
        }
        let chunks = (0..count)
            .map(|_| d.u32("checksum"))
            .collect::<Result<_, _>>()?;
        d.finish()?;
        Ok(Self { pieces, chunks })
    }

    /// The range of chunk `index` in the file.
    fn chunk(&self, index: u64) -> Range<u64> {
        let start = index * CHUNK;
        start..(start + CHUNK).min(self.len())
    }

    /// The guest address for an offset in the file, and the rest of its region in bytes.
    fn place(&self, mut offset: u64) -> io::Result<(Gpa, u64)> {
        for &(gpa, len) in &self.pieces {
            if offset < len {
                return Ok((Gpa(gpa.0 + offset), len - offset));
            }
            offset -= len;
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Writes `ram` into `file`, which is empty, with holes for pages of zeroes. Calls `written` after each
/// chunk.
pub(super) fn write(
    file: &File,
    ram: &GuestRam,
    written: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<RamIndex> {
    let pieces: Vec<_> = ram.pieces().map(|piece| (piece.gpa, piece.len)).collect();
    let mut index = RamIndex {
        pieces,
        chunks: Vec::new(),
    };
    file.set_len(index.len())?;
    let data = in_file(&index.pieces, ram.data());
    let mut data = data.iter().peekable();
    let mut buffer = vec![0; usize::try_from(CHUNK).map_err(io::Error::other)?];
    for number in 0..index.len().div_ceil(CHUNK) {
        let chunk = index.chunk(number);
        let bytes = &mut buffer[..length(&chunk)?];
        bytes.fill(0);
        let mut touched = false;
        while let Some(part) = data.peek() {
            let part_in_chunk = part.start.max(chunk.start)..part.end.min(chunk.end);
            if part_in_chunk.start < part_in_chunk.end {
                touched = true;
                copy(&index, ram, &part_in_chunk, chunk.start, bytes)?;
            }
            if part.end > chunk.end {
                break;
            }
            data.next();
        }
        index.chunks.push(crc32c::crc32c(bytes));
        if touched {
            write_pages(file, chunk.start, bytes)?;
        }
        written()?;
    }
    Ok(index)
}

fn length(range: &Range<u64>) -> io::Result<usize> {
    usize::try_from(range.end - range.start).map_err(io::Error::other)
}

/// Converts guest addresses to offsets in the file.
fn in_file(pieces: &[(Gpa, u64)], data: Vec<Range<Gpa>>) -> Vec<Range<u64>> {
    let offset_of = |part: &Range<Gpa>| {
        let mut offset = 0;
        for &(gpa, len) in pieces {
            if (gpa.0..gpa.0 + len).contains(&part.start.0) {
                return Some(offset + part.start.0 - gpa.0);
            }
            offset += len;
        }
        None
    };
    data.into_iter()
        .filter_map(|part| {
            let start = offset_of(&part)?;
            Some(start..start + (part.end.0 - part.start.0))
        })
        .collect()
}

/// Copies the range `part` of the file from guest RAM into `bytes`, which start at `base`. A part never
/// crosses regions.
fn copy(
    index: &RamIndex,
    ram: &GuestRam,
    part: &Range<u64>,
    base: u64,
    bytes: &mut [u8],
) -> io::Result<()> {
    let from = usize::try_from(part.start - base).map_err(io::Error::other)?;
    let bytes = &mut bytes[from..from + length(part)?];
    ram.read(index.place(part.start)?.0, bytes)
        .map_err(io::Error::other)
}

/// Writes runs of pages that are not all zero.
fn write_pages(file: &File, base: u64, bytes: &[u8]) -> io::Result<()> {
    let is_zero = |page: &[u8]| page == &ZEROES[..page.len()];
    let mut at = 0;
    for run in bytes
        .chunks(PAGE)
        .collect::<Vec<_>>()
        .chunk_by(|a, b| is_zero(a) == is_zero(b))
    {
        let len: usize = run.iter().map(|page| page.len()).sum();
        if !run.first().is_some_and(|page| is_zero(page)) {
            file.write_all_at(&bytes[at..at + len], base + at as u64)?;
        }
        at += len;
    }
    Ok(())
}

/// A saved VM's RAM, not yet read.
#[derive(Debug)]
pub struct RamImage {
    file: File,
    path: PathBuf,
    index: RamIndex,
}

impl RamImage {
    pub(super) fn new(file: File, path: PathBuf, index: RamIndex) -> Result<Self, SnapshotError> {
        let image = Self { file, path, index };
        let metadata = image.file.metadata().map_err(|e| image.failed(e))?;
        let (found, expected) = (metadata.len(), image.index.len());
        if found != expected || !metadata.is_file() {
            return Err(SnapshotError::RamSize {
                path: image.path,
                expected,
                found,
            });
        }
        Ok(image)
    }

    /// The index of the regions.
    pub fn index(&self) -> &RamIndex {
        &self.index
    }

    /// The number of bytes of the file that are not holes.
    pub fn data(&self) -> u64 {
        let data = data_of(&self.file, self.index.len());
        data.iter().map(|part| part.end - part.start).sum()
    }

    /// Maps the file as RAM; it is read when the guest accesses it. Its content is not checked.
    ///
    /// # Errors
    /// If it cannot be mapped, or the host cannot fulfil `host`.
    pub fn map(&self, host: HostMemory) -> Result<GuestRam, SnapshotError> {
        Ok(GuestRam::map_saved(
            &self.file,
            &self.path,
            &self.index.pieces,
            host,
        )?)
    }

    /// Reads and checks the complete RAM, into memory by `config`.
    ///
    /// # Errors
    /// If memory cannot be allocated, or the file cannot be read or is damaged.
    pub fn read(&self, config: &MemoryConfig) -> Result<GuestRam, SnapshotError> {
        let ram = GuestRam::new(config, &self.index.pieces)?;
        self.each_chunk(&mut |at, bytes| {
            let mut bytes = bytes;
            let mut at = at;
            // A chunk may span two regions.
            while !bytes.is_empty() {
                let (gpa, left) = self.index.place(at)?;
                let len = usize::try_from(left).map_or(bytes.len(), |n| n.min(bytes.len()));
                let (now, later) = bytes.split_at(len);
                ram.write(gpa, now).map_err(io::Error::other)?;
                (bytes, at) = (later, at + len as u64);
            }
            Ok(())
        })?;
        Ok(ram)
    }

    /// Reads and checks the complete file.
    ///
    /// # Errors
    /// If the file cannot be read or is damaged.
    pub fn verify(&self) -> Result<(), SnapshotError> {
        self.each_chunk(&mut |_, _| Ok(()))
    }

    /// Passes every chunk that is not a hole, checked, to the callback: its offset in the file and its
    /// bytes.
    fn each_chunk(
        &self,
        take: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), SnapshotError> {
        let data = data_of(&self.file, self.index.len());
        let mut data = data.iter().peekable();
        let mut buffer = Vec::new();
        let mut zeroes = (0, 0);
        for (number, &expected) in (0..).zip(&self.index.chunks) {
            let chunk = self.index.chunk(number);
            while data.next_if(|part| part.end <= chunk.start).is_some() {}
            let size = length(&chunk).map_err(|e| self.failed(e))?;
            let is_hole = data.peek().is_none_or(|part| part.start >= chunk.end);
            let found = if is_hole {
                if zeroes.0 != size {
                    zeroes = (size, crc32c::crc32c(&vec![0; size]));
                }
                zeroes.1
            } else {
                buffer.resize(size, 0);
                self.file
                    .read_exact_at(&mut buffer, chunk.start)
                    .map_err(|e| self.failed(e))?;
                crc32c::crc32c(&buffer)
            };
            if found != expected {
                let (gpa, _) = self.index.place(chunk.start).map_err(|e| self.failed(e))?;
                return Err(SnapshotError::RamDamaged {
                    path: self.path.clone(),
                    gpa,
                    expected,
                    found,
                });
            }
            if !is_hole {
                take(chunk.start, &buffer).map_err(|e| self.failed(e))?;
            }
        }
        Ok(())
    }

    fn failed(&self, source: io::Error) -> SnapshotError {
        SnapshotError::File {
            doing: "read",
            path: self.path.clone(),
            source,
        }
    }
}
