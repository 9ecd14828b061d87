//! The kernel inside a bzImage: the position and the compression of its payload
//! (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").

use thiserror::Error;

/// The compression of a bzImage's payload; each determines the program that unpacks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// gzip.
    Gzip,
    /// xz, with the x86 branch filter.
    Xz,
    /// LZ4 in its legacy frame.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Packing {
    /// The program that unpacks from standard input to standard output, and its arguments.
    pub fn unpacker(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Packing::Gzip => ("gzip", &["-dc"]),
            Packing::Xz => ("xz", &["-dc", "--single-stream"]),
            Packing::Lz4 => ("lz4", &["-dc"]),
            Packing::Zstd => ("zstd", &["-dc"]),
        }
    }
}

/// A kernel image that is malformed or not supported.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BzImageError {
    /// No setup header.
    #[error("not a Linux kernel image: no \"HdrS\" at offset 0x202")]
    NoHeader,
    /// A header without payload fields.
    #[error("boot protocol {major}.{minor:02} is older than 2.08 and has no payload offset")]
    TooOld {
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    },
    /// The payload fields point outside the file.
    #[error(
        "cut short: the kernel should lie at {start:#x}..{end:#x}, but the file ends at {len:#x}"
    )]
    CutShort {
        /// The start of the payload by the header.
        start: u64,
        /// The end of the payload by the header.
        end: u64,
        /// The length of the file.
        len: usize,
    },
    /// An unknown compression.
    #[error("unknown compression (first bytes {0:02x?})")]
    UnknownPacking([u8; 6]),
}

fn u32_at(image: &[u8], at: usize) -> Option<u32> {
    let bytes = image.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The offset of the protected-mode part of the file.
pub fn protected_mode_offset(image: &[u8]) -> Result<usize, BzImageError> {
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err(BzImageError::NoHeader);
    }
    // 0 means 4, for historical reasons (boot.rst, setup_sects).
    let sectors = match image[0x1f1] {
        0 => 4,
        n => usize::from(n),
    };
    Ok((sectors + 1) * 512)
}

/// The compressed kernel in a bzImage, without the length that the kernel build appends to it.
pub fn payload(image: &[u8]) -> Result<(Packing, &[u8]), BzImageError> {
    let base = protected_mode_offset(image)?;
    let [minor, major] = [
        image[0x206],
        *image.get(0x207).ok_or(BzImageError::NoHeader)?,
    ];
    if (major, minor) < (2, 8) {
        return Err(BzImageError::TooOld { major, minor });
    }
    let offset = u32_at(image, 0x248).ok_or(BzImageError::NoHeader)?;
    let length = u32_at(image, 0x24c).ok_or(BzImageError::NoHeader)?;
    let start = base as u64 + u64::from(offset);
    let end = start + u64::from(length);
    let cut_short = BzImageError::CutShort {
        start,
        end,
        len: image.len(),
    };
    let range = match (usize::try_from(start), usize::try_from(end)) {
        (Ok(start), Ok(end)) => start..end,
        _ => return Err(cut_short),
    };
    let data = image.get(range).ok_or_else(|| cut_short.clone())?;
    let magic: [u8; 6] = data
        .get(..6)
        .and_then(|m| m.try_into().ok())
        .ok_or_else(|| cut_short.clone())?;
    let packing = match magic {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Packing::Xz,
        [0x02, 0x21, 0x4c, 0x18, ..] => Packing::Lz4,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
        other => return Err(BzImageError::UnknownPacking(other)),
    };
    // gzip carries its own length; for the others the build appends it (scripts/Makefile.lib, size_append).
    let tail = if packing == Packing::Gzip { 0 } else { 4 };
    let data = data
        .get(..data.len() - tail)
        .filter(|d| d.len() >= 6)
        .ok_or(cut_short)?;
    Ok((packing, data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image(magic: &[u8], length: u32) -> Vec<u8> {
        let mut image = vec![0; 0x400 + 0x100];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&0x10_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image[0x410..0x410 + magic.len()].copy_from_slice(magic);
        image
    }

    #[test]
    fn every_packing_is_told_by_its_magic() {
        for (magic, packing, length) in [
            (&b"\x1f\x8b\x08\0\0\0"[..], Packing::Gzip, 0x20),
            (b"\xfd7zXZ\0", Packing::Xz, 0x1c),
            (b"\x02\x21\x4c\x18\0\0", Packing::Lz4, 0x1c),
            (b"\x28\xb5\x2f\xfd\0\0", Packing::Zstd, 0x1c),
        ] {
            let image = image(magic, 0x20);
            let (found, data) = payload(&image).unwrap();
            assert_eq!(found, packing);
            assert_eq!(data, &image[0x410..0x410 + length]);
        }
    }

    #[test]
    fn broken_images_are_refused_with_the_reason() {
        assert_eq!(payload(b""), Err(BzImageError::NoHeader));
        assert_eq!(payload(&[0; 0x300]), Err(BzImageError::NoHeader));
        let mut old = image(b"\x1f\x8b", 0x20);
        old[0x206] = 7;
        old[0x207] = 2;
        assert_eq!(
            payload(&old),
            Err(BzImageError::TooOld { major: 2, minor: 7 })
        );
        assert!(matches!(
            payload(&image(b"\x1f\x8b", u32::MAX)),
            Err(BzImageError::CutShort { .. })
        ));
        assert!(matches!(
            payload(&image(b"\x28\xb5\x2f\xfd", 7)),
            Err(BzImageError::CutShort { .. })
        ));
        assert!(matches!(
            payload(&image(b"plain!", 0x20)),
            Err(BzImageError::UnknownPacking(_))
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..2048),
            sectors in any::<u8>(),
        ) {
            if bytes.len() > 0x206 {
                bytes[0x1f1] = sectors;
                bytes[0x202..0x206].copy_from_slice(b"HdrS");
            }
            let _ = payload(&bytes);
        }
    }
}
