//! The tables as blobs and fix-ups: what they are, wherever they will lie.

use crate::units::Gpa;

/// Where a blob may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// Anywhere below 4 GiB: the FADT has 32-bit fields.
    High,
    /// In the BIOS's area below 1 MiB, which systems search.
    Bios,
}

/// Bytes that keep together: one file of the loader's script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Its name as a file of fw_cfg.
    pub file: &'static str,
    /// The alignment of its first byte: a power of two, and at most a page.
    pub align: u32,
    /// Where it may lie.
    pub zone: Zone,
    /// Its content before all fix-ups: each pointer is an offset in the blob that it leads to, and each
    /// checksum is 0.
    pub bytes: Vec<u8>,
}

/// A blob by its index in [`Tables::blobs`].
pub(super) type BlobIndex = usize;

/// What depends on where the blobs lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fixup {
    /// The address of blob `to` is added to the little-endian field of `size` bytes at offset `at` of `blob`.
    Pointer {
        blob: BlobIndex,
        at: u32,
        size: u8,
        to: BlobIndex,
    },
    /// The sum of `len` bytes from `start` is subtracted from the byte at `at`, which is among them: their
    /// sum then is 0.
    Checksum {
        blob: BlobIndex,
        at: u32,
        start: u32,
        len: u32,
    },
}

/// All tables: blobs, and fix-ups in the order in which they are to be applied. The installers are
/// [`Tables::placed`], for RAM, and [`Tables::files`](super::loader), for firmware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    pub(super) blobs: Vec<Blob>,
    pub(super) fixups: Vec<Fixup>,
}

impl Tables {
    /// The blobs as they are where `place` puts them: address and bytes, with all fix-ups applied.
    pub fn placed(&self, place: impl Fn(&Blob) -> Gpa) -> Vec<(Gpa, Vec<u8>)> {
        let placed = self.blobs.iter();
        let mut placed: Vec<_> = placed
            .map(|blob| (place(blob), blob.bytes.clone()))
            .collect();
        for &fixup in &self.fixups {
            match fixup {
                Fixup::Pointer { blob, at, size, to } => {
                    let base = placed[to].0.0;
                    let field = &mut placed[blob].1[index(at)..][..usize::from(size)];
                    let mut value = [0; 8];
                    value[..field.len()].copy_from_slice(field);
                    let value = u64::from_le_bytes(value).wrapping_add(base).to_le_bytes();
                    field.copy_from_slice(&value[..field.len()]);
                }
                Fixup::Checksum {
                    blob,
                    at,
                    start,
                    len,
                } => {
                    let bytes = &mut placed[blob].1;
                    let sum = bytes[index(start)..][..index(len)].iter();
                    let sum = sum.fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
                    bytes[index(at)] = bytes[index(at)].wrapping_sub(sum);
                }
            }
        }
        placed
    }

    /// Bytes of the blobs in `zone`.
    pub fn len(&self, zone: Zone) -> u64 {
        let blobs = self.blobs.iter().filter(|blob| blob.zone == zone);
        blobs.map(|blob| blob.bytes.len() as u64).sum()
    }

    /// Appends a table to blob `blob`, at an address aligned to 16. Returns its offset.
    pub(super) fn add(&mut self, blob: BlobIndex, bytes: &[u8]) -> u32 {
        const TABLE_ALIGN: usize = 16;
        let to = &mut self.blobs[blob].bytes;
        to.resize(to.len().next_multiple_of(TABLE_ALIGN), 0);
        let at = offset(to.len());
        to.extend_from_slice(bytes);
        at
    }

    /// The field of `size` bytes at `at` in `blob` holds an offset in `to`.
    pub(super) fn pointer(&mut self, blob: BlobIndex, at: u32, size: u8, to: BlobIndex) {
        let pointer = Fixup::Pointer { blob, at, size, to };
        self.fixups.push(pointer);
    }

    /// The byte at `at` is the checksum of `len` bytes from `start`, which are complete but for it.
    pub(super) fn checksum(&mut self, blob: BlobIndex, at: u32, start: u32, len: u32) {
        self.blobs[blob].bytes[index(at)] = 0;
        self.fixups.push(Fixup::Checksum {
            blob,
            at,
            start,
            len,
        });
    }
}

fn index(offset: u32) -> usize {
    usize::try_from(offset).expect("usize has 64 bits")
}

pub(super) fn offset(index: usize) -> u32 {
    u32::try_from(index).expect("tables of at most 255 processors have less than 64 KiB")
}
