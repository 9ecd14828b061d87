//! What a kernel file is, by its content.

use super::{linux, multiboot};

/// A kernel file's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Linux's own format.
    BzImage,
    /// ELF; whether it can be started by PVH or multiboot is in its notes and headers.
    Elf,
    /// A multiboot 1 header in something that is no ELF file.
    Multiboot,
    /// Gzip: what matters is inside.
    Gzip,
}

/// How many bytes at the start of a file tell what it is: multiboot headers lie within the first 8 KiB
/// (Multiboot 0.6.96, 3.1).
pub const HEAD: usize = multiboot::SEARCH;

/// The format of a file that begins with `head`.
///
/// # Errors
/// What it is instead, as far as that can be told.
pub fn kind(head: &[u8]) -> Result<Kind, &'static str> {
    if head.starts_with(&[0x1f, 0x8b]) {
        Ok(Kind::Gzip)
    } else if linux::is_bzimage(head) {
        Ok(Kind::BzImage)
    } else if head.starts_with(b"\x7fELF") {
        Ok(Kind::Elf)
    } else if multiboot::Header::find(head).is_some() {
        Ok(Kind::Multiboot)
    } else {
        Err(OTHERS
            .iter()
            .find(|(magic, _)| head.starts_with(magic))
            .map_or(NO_HEADER, |(_, what)| what))
    }
}

const NO_HEADER: &str = "it has no bzImage, ELF or multiboot header";

const OTHERS: [(&[u8], &str); 7] = [
    (
        b"\x28\xb5\x2f\xfd",
        "it is zstd-compressed: unpack it first",
    ),
    (b"\xfd7zXZ\0", "it is xz-compressed: unpack it first"),
    (b"\x04\x22\x4d\x18", "it is LZ4-compressed: unpack it first"),
    (b"BZh", "it is bzip2-compressed: unpack it first"),
    (b"0707", "it is a cpio archive: was the initrd meant?"),
    (
        b"MZ",
        "it is an EFI program, but not a Linux kernel for x86",
    ),
    (b"QFI\xfb", "it is a qcow2 disk image"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_decides() {
        let mut bzimage = vec![0; 0x400];
        bzimage[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        let mut flat = vec![0; 0x100];
        flat.extend(
            [0x1bad_b002_u32, 0, 0_u32.wrapping_sub(0x1bad_b002)]
                .iter()
                .flat_map(|word| word.to_le_bytes()),
        );
        for (head, expected) in [
            (bzimage.as_slice(), Ok(Kind::BzImage)),
            (b"\x7fELF\x02", Ok(Kind::Elf)),
            (&flat, Ok(Kind::Multiboot)),
            (b"\x1f\x8b\x08", Ok(Kind::Gzip)),
            (
                b"070701",
                Err("it is a cpio archive: was the initrd meant?"),
            ),
            (
                b"#!/bin/sh\n",
                Err("it has no bzImage, ELF or multiboot header"),
            ),
            (b"", Err("it has no bzImage, ELF or multiboot header")),
        ] {
            assert_eq!(kind(head), expected);
        }
    }
}
