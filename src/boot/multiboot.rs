//! The Multiboot Specification, version 0.6.96 ("multiboot 1"): Xen and many small kernels.

use thiserror::Error;

use super::claims::{ClaimError, Claims};
use super::memory_map::{MemoryKind, MemoryRange};
use super::pvh::{Block, LoadedModule};
use crate::layout;
use crate::units::Gpa;

/// The header lies within this many bytes (3.1).
pub const SEARCH: usize = 8192;
/// What EAX holds at the kernel's entry (3.2).
pub const BOOT_MAGIC: u32 = 0x2bad_b002;
const HEADER_MAGIC: u32 = 0x1bad_b002;

// Header flags (3.1.2).
const WANT_VIDEO: u32 = 1 << 2;
const REQUIREMENTS: u32 = 0xffff;
/// Page-aligned modules and memory information are always given.
const REQUIREMENTS_MET: u32 = 0b11;
const HAS_ADDRESSES: u32 = 1 << 16;

/// Why a multiboot image cannot be started.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MultibootError {
    /// A video mode is required.
    #[error(
        "its multiboot header requires a video mode, but the machine has no display: use a build that runs \
         on a serial console"
    )]
    Video,
    /// Something else is required.
    #[error("its multiboot header requires features {0:#x} that multiboot 1 does not define")]
    Unknown(u32),
    /// The addresses make no sense.
    #[error(
        "the addresses in its multiboot header contradict each other ({0}): the file is damaged"
    )]
    Addresses(&'static str),
    /// The file is shorter than the header says.
    #[error(
        "its multiboot header wants {wanted} bytes from offset {offset}, but the file has {found}: it is \
         damaged or not wholly downloaded"
    )]
    CutOff {
        /// Where the kernel begins in the file.
        offset: u64,
        /// Its bytes.
        wanted: u64,
        /// The file.
        found: u64,
    },
    /// The entry point is out of reach.
    #[error("its entry point {0:#x} is above 4 GiB, where a multiboot kernel cannot start")]
    Entry(u64),
    /// Something does not fit into RAM.
    #[error(transparent)]
    Claim(#[from] ClaimError),
}

/// A multiboot header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where in the file it is.
    pub offset: u32,
    /// What the kernel needs.
    pub flags: u32,
    addresses: [u32; 5],
}

/// A kernel that is loaded as the header says, not as an ELF header does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flat {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its bytes in the file.
    pub file_len: u64,
    /// Where it goes to in guest RAM.
    pub physical: u64,
    /// Its bytes in guest RAM.
    pub memory_len: u64,
    /// Where it is entered.
    pub entry: Gpa,
}

impl Header {
    /// The header in a file that begins with `head`.
    pub fn find(head: &[u8]) -> Option<Self> {
        let head = &head[..head.len().min(SEARCH)];
        (0..head.len()).step_by(4).find_map(|offset| {
            let word = |index: usize| {
                let at = offset + 4 * index;
                let bytes = head.get(at..at + 4)?;
                Some(u32::from_le_bytes(bytes.try_into().ok()?))
            };
            let flags = word(1)?;
            if word(0)? != HEADER_MAGIC
                || HEADER_MAGIC.wrapping_add(flags).wrapping_add(word(2)?) != 0
            {
                return None;
            }
            let mut addresses = [0; 5];
            if flags & HAS_ADDRESSES != 0 {
                for (index, address) in addresses.iter_mut().enumerate() {
                    *address = word(3 + index)?;
                }
            }
            Some(Self {
                offset: u32::try_from(offset).ok()?,
                flags,
                addresses,
            })
        })
    }

    /// Refuses what cannot be given to the kernel.
    ///
    /// # Errors
    /// If the kernel requires such a thing.
    pub fn check(&self) -> Result<(), MultibootError> {
        if self.flags & WANT_VIDEO != 0 {
            return Err(MultibootError::Video);
        }
        match self.flags & REQUIREMENTS & !REQUIREMENTS_MET {
            0 => Ok(()),
            unknown => Err(MultibootError::Unknown(unknown)),
        }
    }

    /// What to load if the header has addresses of its own (3.1.3), from a file of `file_len` bytes; `None`
    /// if the kernel is to be loaded as an ELF file.
    ///
    /// # Errors
    /// If the addresses contradict each other or the file.
    pub fn flat(&self, file_len: u64) -> Result<Option<Flat>, MultibootError> {
        if self.flags & HAS_ADDRESSES == 0 {
            return Ok(None);
        }
        let [header, load, load_end, bss_end, entry] = self.addresses.map(u64::from);
        let offset = header
            .checked_sub(load)
            .ok_or(MultibootError::Addresses("header_addr is below load_addr"))?;
        let offset =
            u64::from(self.offset)
                .checked_sub(offset)
                .ok_or(MultibootError::Addresses(
                    "load_addr is before the beginning of the file",
                ))?;
        let rest = file_len.saturating_sub(offset);
        let wanted = match load_end {
            0 => rest,
            end => end.checked_sub(load).ok_or(MultibootError::Addresses(
                "load_end_addr is below load_addr",
            ))?,
        };
        if wanted > rest {
            return Err(MultibootError::CutOff {
                offset,
                wanted,
                found: file_len,
            });
        }
        let memory_len = match bss_end {
            0 => wanted,
            end => end.checked_sub(load).filter(|&len| len >= wanted).ok_or(
                MultibootError::Addresses("bss_end_addr is below the end of the data"),
            )?,
        };
        if !(load..load + memory_len).contains(&entry) {
            return Err(MultibootError::Addresses(
                "entry_addr is outside of what is loaded",
            ));
        }
        Ok(Some(Flat {
            offset,
            file_len: wanted,
            physical: load,
            memory_len,
            entry: Gpa(entry),
        }))
    }
}

impl Flat {
    /// Takes the RAM that the kernel needs.
    ///
    /// # Errors
    /// If it is not free.
    pub fn claim(&self, claims: &mut Claims) -> Result<(), ClaimError> {
        claims
            .at("the kernel", self.physical, self.memory_len)
            .map(|_| ())
    }
}

// Flags of the multiboot information (3.3).
const INFO_MEMORY: u32 = 1 << 0;
const INFO_CMDLINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;
/// Bytes up to and with the framebuffer fields.
const INFO_LEN: usize = 116;
/// Bytes of a map entry that follow its own size field.
const MAP_ENTRY_LEN: u32 = 20;

/// What the kernel is told.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// The command line, beginning with the kernel's name, as boot loaders do it and Xen expects it.
    pub cmdline: &'a str,
    /// The memory map.
    pub map: &'a [MemoryRange],
    /// Further files, their command lines beginning with their names; all below 4 GiB.
    pub modules: &'a [LoadedModule],
}

/// The multiboot information with all that it points to, to be written at `at` (page-aligned, below 4 GiB).
pub fn info(at: Gpa, given: &Given<'_>) -> Vec<u8> {
    let mut block = Block::new(at, INFO_LEN);
    let mut fields = [0_u32; INFO_LEN / 4];
    fields[0] = INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MAP | INFO_LOADER_NAME;
    // KiB from 0, and from 1 MiB on, without a hole.
    let free_from = |start: u64| {
        given
            .map
            .iter()
            .find(|range| range.kind == MemoryKind::Ram && range.start == start)
            .map_or(0, |range| low(range.len >> 10))
    };
    fields[1] = free_from(0);
    fields[2] = free_from(layout::HIGH_MEMORY.0);
    fields[4] = low(block.string(given.cmdline));
    let mut modules = Vec::new();
    for module in given.modules {
        let start = module.gpa.0;
        let cmdline = block.string(&module.cmdline);
        for word in [start, start + module.len, cmdline, 0] {
            modules.extend_from_slice(&low(word).to_le_bytes());
        }
    }
    fields[5] = low(given.modules.len() as u64);
    fields[6] = low(block.push(&modules));
    let mut map = Vec::new();
    for range in given.map {
        map.extend_from_slice(&MAP_ENTRY_LEN.to_le_bytes());
        map.extend_from_slice(&range.start.to_le_bytes());
        map.extend_from_slice(&range.len.to_le_bytes());
        map.extend_from_slice(&(range.kind as u32).to_le_bytes());
    }
    fields[11] = low(map.len() as u64);
    fields[12] = low(block.push(&map));
    fields[16] = low(block.string(concat!("hypernest ", env!("CARGO_PKG_VERSION"))));
    let header: Vec<u8> = fields.iter().flat_map(|word| word.to_le_bytes()).collect();
    block.finish(&header)
}

/// Addresses here are below 4 GiB, and so are counts; what is not would be a kernel's to reject.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u32, addresses: &[u32]) -> Vec<u8> {
        let mut words = vec![
            HEADER_MAGIC,
            flags,
            0_u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags),
        ];
        words.extend_from_slice(addresses);
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn file(at: usize, flags: u32, addresses: &[u32]) -> Vec<u8> {
        let mut file = vec![0; at];
        file.extend(header(flags, addresses));
        file
    }

    #[test]
    fn the_header_is_found_at_aligned_offsets_of_the_first_8_kib() {
        for (at, found) in [
            (0, true),
            (4, true),
            (8180, true),
            (8184, false),
            (8192, false),
            (2, false),
        ] {
            assert_eq!(Header::find(&file(at, 3, &[])).is_some(), found, "at {at}");
        }
        let mut wrong_sum = header(3, &[]);
        wrong_sum[8] ^= 1;
        assert_eq!(Header::find(&wrong_sum), None);
        // Addresses promised but cut off.
        assert_eq!(Header::find(&header(HAS_ADDRESSES, &[1, 2, 3, 4])), None);
    }

    #[test]
    fn what_cannot_be_given_is_refused() {
        let check = |flags| Header::find(&file(0, flags, &[0; 5])).unwrap().check();
        assert_eq!(check(3), Ok(()));
        assert_eq!(check(HAS_ADDRESSES), Ok(()));
        assert_eq!(check(7), Err(MultibootError::Video));
        assert_eq!(check(0x8001), Err(MultibootError::Unknown(0x8000)));
        // Bits 16 to 31 are wishes.
        assert_eq!(check(0x8000_0000), Ok(()));
    }

    #[test]
    fn flat_images_load_by_address() {
        let flat = |addresses: [u32; 5], len| {
            Header::find(&file(0x20, HAS_ADDRESSES, &addresses))
                .unwrap()
                .flat(len)
        };
        assert_eq!(
            flat(
                [0x10_0010, 0x10_0000, 0x10_0800, 0x10_2000, 0x10_0040],
                0x1000
            ),
            Ok(Some(Flat {
                offset: 0x10,
                file_len: 0x800,
                physical: 0x10_0000,
                memory_len: 0x2000,
                entry: Gpa(0x10_0040),
            }))
        );
        let all = flat([0x10_0020, 0x10_0000, 0, 0, 0x10_0040], 0x1000)
            .unwrap()
            .unwrap();
        assert_eq!(
            (all.offset, all.file_len, all.memory_len),
            (0, 0x1000, 0x1000)
        );
        for bad in [
            [0xf_0000, 0x10_0000, 0, 0, 0x10_0040],
            [0x10_0030, 0x10_0000, 0, 0, 0x10_0040],
            [0x10_0010, 0x10_0000, 0xf_0000, 0, 0x10_0040],
            [0x10_0010, 0x10_0000, 0x10_0800, 0x10_0700, 0x10_0040],
            [0x10_0010, 0x10_0000, 0x10_0800, 0, 0x10_0800],
        ] {
            assert!(
                matches!(flat(bad, 0x1000), Err(MultibootError::Addresses(_))),
                "{bad:x?}"
            );
        }
        assert!(matches!(
            flat([0x10_0010, 0x10_0000, 0x10_0ff1, 0, 0x10_0040], 0x1000),
            Err(MultibootError::CutOff { .. })
        ));
        assert_eq!(Header::find(&header(3, &[])).unwrap().flat(100), Ok(None));
    }

    #[test]
    fn everything_is_reachable_from_the_information() {
        let at = Gpa(0x9000);
        let bytes = info(
            at,
            &Given {
                cmdline: "xen dom0_mem=1G",
                map: &[
                    MemoryRange {
                        start: 0,
                        len: 0x9_f000,
                        kind: MemoryKind::Ram,
                    },
                    MemoryRange {
                        start: 0x10_0000,
                        len: 0x3ff0_0000,
                        kind: MemoryKind::Ram,
                    },
                ],
                modules: &[LoadedModule {
                    gpa: Gpa(0x200_0000),
                    len: 0x123,
                    cmdline: "vmlinux console=hvc0".to_owned(),
                }],
            },
        );
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let offset = |field: usize| usize::try_from(u64::from(word(field)) - at.0).unwrap();
        assert_eq!(word(0), 0b10_0100_1101);
        assert_eq!((word(4), word(8)), (636, 0x3ff0_0000 >> 10));
        assert!(bytes[offset(16)..].starts_with(b"xen dom0_mem=1G\0"));
        assert_eq!(word(20), 1);
        let module = offset(24);
        assert_eq!((word(module), word(module + 4)), (0x200_0000, 0x200_0123));
        assert!(bytes[offset(module + 8)..].starts_with(b"vmlinux console=hvc0\0"));
        let map = offset(48);
        assert_eq!(word(44), 2 * 24);
        assert_eq!(
            (word(map), word(map + 24 + 4), word(map + 24 + 20)),
            (20, 0x10_0000, 1)
        );
        assert!(bytes[offset(64)..].starts_with(b"hypernest "));
    }
}
