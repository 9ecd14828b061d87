//! The freestanding guest programs as files: one image that contains them all, for either boot protocol.
//!
//! `hypernest_guest_programs` documents the programs and their command lines; `hypernest_nested::probe`
//! decodes their reports.
#![no_std]
#![forbid(unsafe_code)]

/// Boots by PVH (the entry is in a Xen note). ELF, 64-bit, loaded at 1 MiB, requires 16 MiB of RAM.
pub static GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest"));

/// The same programs, for Multiboot, version 1, whose header contains the load addresses.
pub static GUEST_MULTIBOOT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest-multiboot"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_elf_files_for_x86_64() {
        for image in [GUEST, GUEST_MULTIBOOT] {
            assert_eq!(image[..5], *b"\x7FELF\x02");
            // e_machine: EM_X86_64.
            assert_eq!(image[18..20], [62, 0]);
        }
    }

    #[test]
    fn the_multiboot_header_is_where_loaders_look_and_sums_to_zero() {
        let words = |at: usize| {
            u32::from_le_bytes(GUEST_MULTIBOOT[at..at + 4].try_into().expect("four bytes"))
        };
        let headers: [_; 1] = {
            let mut found = (0..8192).step_by(4).filter(|&at| words(at) == 0x1BAD_B002);
            [found.next().expect("a header in the first 8 KiB")]
        };
        let [at] = headers;
        assert_eq!(
            words(at)
                .wrapping_add(words(at + 4))
                .wrapping_add(words(at + 8)),
            0
        );
        assert!(
            !GUEST[..8192]
                .chunks_exact(4)
                .any(|word| word == 0x1BAD_B002_u32.to_le_bytes())
        );
    }

    #[test]
    fn a_multiboot_loader_that_goes_by_the_header_finds_the_same_bytes_as_one_that_goes_by_the_elf()
    {
        let word = |at: usize| {
            u32::from_le_bytes(GUEST_MULTIBOOT[at..at + 4].try_into().expect("four bytes")) as usize
        };
        let at = (0..8192)
            .step_by(4)
            .find(|&at| word(at) == 0x1BAD_B002)
            .expect("header");
        let (header_addr, load_addr, load_end) = (word(at + 12), word(at + 16), word(at + 20));
        // The first program header of a 64-bit ELF: e_phoff at 32; p_offset, p_vaddr, p_filesz at 8, 16, 32.
        let program_header = word(32);
        let (offset, address, size) = (
            word(program_header + 8),
            word(program_header + 16),
            word(program_header + 32),
        );
        assert_eq!(at - (header_addr - load_addr), offset);
        assert_eq!(load_addr, address);
        assert_eq!(load_end - load_addr, size);
    }
}
