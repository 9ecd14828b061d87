//! ELF files: what is to be loaded where, and the entry point for PVH. Sections, symbols and relocations do
//! not matter here.

use std::io;

use thiserror::Error;

use super::claims::{ClaimError, Claims};
use super::error::BootError;
use super::image::{Content, Image};
use crate::memory::GuestRam;
use crate::units::Gpa;

// Offsets and values from the System V ABI, chapters 4 and 5.
const MAGIC: &[u8] = b"\x7fELF";
const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;
/// Kernels have about ten segments.
const SEGMENTS_MAX: u16 = 128;
/// Linux's notes take some hundred bytes.
const NOTES_MAX: u64 = 64 << 10;

/// `XEN_ELFNOTE_PHYS32_ENTRY`: the physical address at which a PVH kernel is entered.
const NOTE_PHYS32_ENTRY: u32 = 18;
const NOTE_NAME: &[u8] = b"Xen\0";

/// Why an ELF file cannot be loaded.
#[derive(Debug, Error)]
pub enum ElfError {
    /// The file ends too early.
    #[error("{what} lies past the end of the file: it is damaged or not wholly downloaded")]
    CutOff {
        /// What is missing.
        what: String,
    },
    /// The file cannot be read.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// Not an ELF file for this machine.
    #[error("{0}: use a kernel for x86")]
    NotForX86(String),
    /// The program headers make no sense.
    #[error("its program headers are damaged: {0}")]
    ProgramHeaders(String),
    /// There is nothing to load.
    #[error("it has nothing to load: is it a module or a debug file?")]
    NothingToLoad,
    /// The segments cannot lie where they must.
    #[error(transparent)]
    Claim(#[from] ClaimError),
}

/// A piece of the file to be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its bytes in the file.
    pub file_len: u64,
    /// Where it goes to in guest RAM.
    pub physical: u64,
    /// The address that the kernel will see it at.
    pub virtual_: u64,
    /// Its bytes in guest RAM; what the file does not give is zero.
    pub memory_len: u64,
}

/// What matters of an ELF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    /// The entry point of the ELF header.
    pub entry: u64,
    /// The entry point for PVH, if the file has that note.
    pub pvh_entry: Option<u32>,
    /// What is to be loaded; never empty.
    pub segments: Vec<Segment>,
}

/// Reads little-endian fields.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn word<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut word = [0; N];
        if let Some(bytes) = self.0.get(offset..).and_then(|rest| rest.get(..N)) {
            word.copy_from_slice(bytes);
        }
        word
    }
    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.word(offset))
    }
    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.word(offset))
    }
    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.word(offset))
    }
}

struct ProgramHeader {
    kind: u32,
    align: u64,
    segment: Segment,
}

fn read(
    content: &(impl Content + ?Sized),
    what: &str,
    offset: u64,
    buffer: &mut [u8],
) -> Result<(), ElfError> {
    content.read_exact_at(offset, buffer).map_err(|error| {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            ElfError::CutOff {
                what: what.to_owned(),
            }
        } else {
            ElfError::Read(error)
        }
    })
}

/// Parses an ELF file of either class.
///
/// # Errors
/// If it is damaged, not for x86, or has nothing to load.
pub fn parse(content: &(impl Content + ?Sized)) -> Result<Elf, ElfError> {
    let mut ident = [0; 16];
    read(content, "the ELF header", 0, &mut ident)?;
    if !ident.starts_with(MAGIC) {
        return Err(ElfError::NotForX86("it is no ELF file".to_owned()));
    }
    let wide = match ident[4] {
        CLASS_32 => false,
        CLASS_64 => true,
        other => return Err(ElfError::NotForX86(format!("its ELF class is {other}"))),
    };
    if ident[5] != LITTLE_ENDIAN {
        return Err(ElfError::NotForX86("it is big-endian".to_owned()));
    }
    let mut header = [0; 64];
    let header = &mut header[..if wide { 64 } else { 52 }];
    read(content, "the ELF header", 0, header)?;
    let header = Fields(header);
    let machine = header.u16(18);
    if machine != MACHINE_386 && machine != MACHINE_X86_64 {
        return Err(ElfError::NotForX86(format!(
            "it is for ELF machine {machine}"
        )));
    }
    let (entry, table, size, count) = if wide {
        (
            header.u64(24),
            header.u64(32),
            header.u16(54),
            header.u16(56),
        )
    } else {
        (
            header.u32(24).into(),
            header.u32(28).into(),
            header.u16(42),
            header.u16(44),
        )
    };
    let headers = program_headers(content, wide, table, size, count)?;

    let mut elf = Elf {
        entry,
        pvh_entry: None,
        segments: Vec::new(),
    };
    for (index, header) in headers.iter().enumerate() {
        let segment = header.segment;
        match header.kind {
            SEGMENT_LOAD if segment.memory_len > 0 => {
                check_segment(content.len(), index, &segment)?;
                elf.segments.push(segment);
            }
            SEGMENT_NOTE if elf.pvh_entry.is_none() => {
                elf.pvh_entry = pvh_entry(content, header)?;
            }
            _ => {}
        }
    }
    if elf.segments.is_empty() {
        return Err(ElfError::NothingToLoad);
    }
    Ok(elf)
}

fn program_headers(
    content: &(impl Content + ?Sized),
    wide: bool,
    table: u64,
    size: u16,
    count: u16,
) -> Result<Vec<ProgramHeader>, ElfError> {
    let expected = if wide { 56 } else { 32 };
    if count > 0 && size != expected {
        return Err(ElfError::ProgramHeaders(format!(
            "each has {size} bytes instead of {expected}"
        )));
    }
    if count > SEGMENTS_MAX {
        return Err(ElfError::ProgramHeaders(format!(
            "there are {count}, more than {SEGMENTS_MAX}"
        )));
    }
    let mut raw = vec![0; usize::from(size) * usize::from(count)];
    read(content, "the program header table", table, &mut raw)?;
    Ok(raw
        .chunks_exact(usize::from(expected))
        .map(|raw| {
            let fields = Fields(raw);
            if wide {
                ProgramHeader {
                    kind: fields.u32(0),
                    align: fields.u64(48),
                    segment: Segment {
                        offset: fields.u64(8),
                        virtual_: fields.u64(16),
                        physical: fields.u64(24),
                        file_len: fields.u64(32),
                        memory_len: fields.u64(40),
                    },
                }
            } else {
                ProgramHeader {
                    kind: fields.u32(0),
                    align: fields.u32(28).into(),
                    segment: Segment {
                        offset: fields.u32(4).into(),
                        virtual_: fields.u32(8).into(),
                        physical: fields.u32(12).into(),
                        file_len: fields.u32(16).into(),
                        memory_len: fields.u32(20).into(),
                    },
                }
            }
        })
        .collect())
}

fn check_segment(file_len: u64, index: usize, segment: &Segment) -> Result<(), ElfError> {
    if segment.file_len > segment.memory_len {
        return Err(ElfError::ProgramHeaders(format!(
            "segment {index} has {:#x} bytes in the file but only {:#x} in memory",
            segment.file_len, segment.memory_len
        )));
    }
    match segment.offset.checked_add(segment.file_len) {
        Some(end) if end <= file_len => Ok(()),
        _ => Err(ElfError::CutOff {
            what: format!("segment {index}"),
        }),
    }
}

fn pvh_entry(
    content: &(impl Content + ?Sized),
    header: &ProgramHeader,
) -> Result<Option<u32>, ElfError> {
    let Segment {
        offset, file_len, ..
    } = header.segment;
    let len = usize::try_from(file_len.min(NOTES_MAX)).unwrap_or(0);
    let mut notes = vec![0; len];
    read(content, "a note segment", offset, &mut notes)?;
    // Notes are aligned to 4 bytes, unless the segment says 8 (gABI errata for 64-bit property notes).
    let align = if header.align == 8 { 8 } else { 4 };
    let Some(found) = find_note(&notes, align) else {
        return Ok(None);
    };
    let entry = match *found {
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
        // Linux makes it 64 bits wide.
        [a, b, c, d, 0, 0, 0, 0] => u32::from_le_bytes([a, b, c, d]),
        _ => {
            return Err(ElfError::ProgramHeaders(format!(
                "the PVH note holds no 32-bit address but {found:x?}"
            )));
        }
    };
    Ok(Some(entry))
}

/// The content of the PVH entry note among `notes`, if there is one. A damaged note ends the search.
pub fn find_note(mut notes: &[u8], align: usize) -> Option<&[u8]> {
    loop {
        let header = Fields(notes.get(..12)?);
        let name_len = usize::try_from(header.u32(0)).ok()?;
        let content_len = usize::try_from(header.u32(4)).ok()?;
        let kind = header.u32(8);
        let content_at = 12_usize
            .checked_add(name_len)?
            .checked_next_multiple_of(align)?;
        let end = content_at.checked_add(content_len)?;
        let name = notes.get(12..)?.get(..name_len)?;
        let content = notes.get(content_at..end)?;
        if kind == NOTE_PHYS32_ENTRY && name == NOTE_NAME {
            return Some(content);
        }
        notes = notes.get(end.checked_next_multiple_of(align)?..)?;
    }
}

impl Elf {
    /// Takes the RAM that the segments need.
    ///
    /// # Errors
    /// If they overlap something, or there is no RAM where they must lie.
    pub fn claim(&self, claims: &mut Claims) -> Result<(), ClaimError> {
        for (index, segment) in self.segments.iter().enumerate() {
            let what = format!("segment {index} of the kernel");
            claims.at(&what, segment.physical, segment.memory_len)?;
        }
        Ok(())
    }

    /// Copies the segments from `image` into guest RAM, which is zero elsewhere.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub fn load(&self, image: &Image, ram: &GuestRam) -> Result<(), BootError> {
        for segment in self.segments.iter().filter(|segment| segment.file_len > 0) {
            image.copy_to(ram, Gpa(segment.physical), segment.offset, segment.file_len)?;
        }
        Ok(())
    }

    /// The first address after all segments.
    pub fn end(&self) -> u64 {
        let ends = self.segments.iter();
        ends.map(|segment| segment.physical.saturating_add(segment.memory_len))
            .max()
            .unwrap_or(0)
    }

    /// Where the ELF header's entry point lies in guest RAM: it may be given as the address that the kernel
    /// will see.
    pub fn physical_entry(&self) -> u64 {
        self.segments
            .iter()
            .find_map(|segment| {
                let offset = self.entry.checked_sub(segment.virtual_)?;
                (offset < segment.memory_len).then(|| segment.physical.wrapping_add(offset))
            })
            .unwrap_or(self.entry)
    }
}
