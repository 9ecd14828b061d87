//! The PVH boot protocol (Xen's docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h): any ELF kernel
//! with the note.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::ByteValued;

use super::memory_map::MemoryRange;
use crate::units::Gpa;

/// The longest command line: Linux on x86 cuts off what is longer (`COMMAND_LINE_SIZE` is 2048 with the final
/// zero).
pub const CMDLINE_MAX: usize = 2047;

/// Version 1 brought the memory map.
const VERSION: u32 = 1;

/// A file that lies in guest RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedModule {
    /// Where.
    pub gpa: Gpa,
    /// Its bytes.
    pub len: u64,
    /// Its own command line.
    pub cmdline: String,
}

/// What the kernel is told.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// The command line.
    pub cmdline: &'a str,
    /// Where the RSDP lies.
    pub rsdp: Gpa,
    /// The memory map.
    pub map: &'a [MemoryRange],
    /// Further files; Linux takes the first as its initrd.
    pub modules: &'a [LoadedModule],
}

/// The start info structure with all that it points to, to be written at `at` (page-aligned).
pub fn start_info(at: Gpa, given: &Given<'_>) -> Vec<u8> {
    let mut block = Block::new(at, size_of::<hvm_start_info>());
    let cmdline_paddr = block.string(given.cmdline);
    let map: Vec<u8> = given
        .map
        .iter()
        .flat_map(|range| {
            let entry = hvm_memmap_table_entry {
                addr: range.start,
                size: range.len,
                type_: range.kind as u32,
                reserved: 0,
            };
            entry.as_slice().to_vec()
        })
        .collect();
    let memmap_paddr = block.push(&map);
    let mut modules = Vec::new();
    for module in given.modules {
        let entry = hvm_modlist_entry {
            paddr: module.gpa.0,
            size: module.len,
            cmdline_paddr: block.string(&module.cmdline),
            reserved: 0,
        };
        modules.extend_from_slice(entry.as_slice());
    }
    let modlist_paddr = if modules.is_empty() {
        0
    } else {
        block.push(&modules)
    };
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        flags: 0,
        nr_modules: count(given.modules.len()),
        modlist_paddr,
        cmdline_paddr,
        rsdp_paddr: given.rsdp.0,
        memmap_paddr,
        memmap_entries: count(given.map.len()),
        reserved: 0,
    };
    block.finish(info.as_slice())
}

/// The length of a list that was built here and has far fewer than 2^32 entries.
fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// A header and what it points to, one after the other in guest RAM.
#[derive(Debug)]
pub(super) struct Block {
    at: Gpa,
    bytes: Vec<u8>,
}

impl Block {
    /// A block at `at`, beginning with a header of `header_len` bytes that is given at the end.
    pub(super) fn new(at: Gpa, header_len: usize) -> Self {
        Self {
            at,
            bytes: vec![0; header_len],
        }
    }

    /// Appends `data`, aligned to 8 bytes; where it will lie.
    pub(super) fn push(&mut self, data: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        let gpa = self.at.0 + self.bytes.len() as u64;
        self.bytes.extend_from_slice(data);
        gpa
    }

    /// Appends a string and its final zero; where it will lie.
    pub(super) fn string(&mut self, text: &str) -> u64 {
        let gpa = self.push(text.as_bytes());
        self.bytes.push(0);
        gpa
    }

    /// The block with its header.
    pub(super) fn finish(mut self, header: &[u8]) -> Vec<u8> {
        self.bytes[..header.len()].copy_from_slice(header);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory_map::MemoryKind;
    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }
    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn everything_is_reachable_from_the_start_info() {
        let at = Gpa(0x3000);
        let given = Given {
            cmdline: "console=ttyS0",
            rsdp: Gpa(0xe_0000),
            map: &[
                MemoryRange {
                    start: 0,
                    len: 0x9_f000,
                    kind: MemoryKind::Ram,
                },
                MemoryRange {
                    start: 0x10_0000,
                    len: 0x700_0000,
                    kind: MemoryKind::AcpiData,
                },
            ],
            modules: &[
                LoadedModule {
                    gpa: Gpa(0x200_0000),
                    len: 77,
                    cmdline: "dom0 args".to_owned(),
                },
                LoadedModule {
                    gpa: Gpa(0x300_0000),
                    len: 88,
                    cmdline: String::new(),
                },
            ],
        };
        let bytes = start_info(at, &given);
        let offset = |field: usize| usize::try_from(u64_at(&bytes, field) - at.0).unwrap();
        // Offsets of start_info.h.
        assert_eq!((u32_at(&bytes, 0), u32_at(&bytes, 4)), (0x336e_c578, 1));
        assert_eq!(u32_at(&bytes, 12), 2);
        assert!(bytes[offset(24)..].starts_with(b"console=ttyS0\0"));
        assert_eq!(u64_at(&bytes, 32), 0xe_0000);
        assert_eq!(u32_at(&bytes, 48), 2);
        let map = offset(40);
        assert_eq!(
            (
                u64_at(&bytes, map + 24),
                u64_at(&bytes, map + 32),
                u32_at(&bytes, map + 40)
            ),
            (0x10_0000, 0x700_0000, 3)
        );
        let modules = offset(16);
        assert_eq!(
            (u64_at(&bytes, modules), u64_at(&bytes, modules + 8)),
            (0x200_0000, 77)
        );
        let cmdline = usize::try_from(u64_at(&bytes, modules + 16) - at.0).unwrap();
        assert!(bytes[cmdline..].starts_with(b"dom0 args\0"));
        assert_eq!(
            (u64_at(&bytes, modules + 32), u64_at(&bytes, modules + 40)),
            (0x300_0000, 88)
        );
    }
}
