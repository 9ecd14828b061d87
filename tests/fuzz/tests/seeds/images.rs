//! The smallest kernel images of each protocol.

use super::{put, words};

/// An ELF file of one segment at 1 MiB, with the note that names its 32-bit entry (XEN_ELFNOTE_PHYS32_ENTRY).
pub(super) fn pvh() -> Vec<u8> {
    let mut elf = vec![0; 64 + 2 * 56];
    put(&mut elf, 0, b"\x7fELF\x02\x01\x01");
    put(&mut elf, 16, &2_u16.to_le_bytes());
    put(&mut elf, 18, &62_u16.to_le_bytes());
    put(&mut elf, 20, &1_u32.to_le_bytes());
    put(&mut elf, 24, &0x10_0000_u64.to_le_bytes());
    put(&mut elf, 32, &64_u64.to_le_bytes());
    put(&mut elf, 52, &64_u16.to_le_bytes());
    put(&mut elf, 54, &56_u16.to_le_bytes());
    put(&mut elf, 56, &2_u16.to_le_bytes());
    // PT_LOAD, readable and executable, and PT_NOTE: offset, virtual and physical address, sizes, alignment.
    for (number, kind, offset, size) in [(0, 1_u32, 0_u64, 208_u64), (1, 4, 176, 20)] {
        let header = 64 + number * 56;
        put(&mut elf, header, &kind.to_le_bytes());
        put(&mut elf, header + 4, &5_u32.to_le_bytes());
        let address = 0x10_0000 + offset;
        put(
            &mut elf,
            header + 8,
            &words(&[offset, address, address, size, size, 4]),
        );
    }
    elf.extend([4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    elf.extend(b"Xen\0");
    elf.extend(0x10_0000_u32.to_le_bytes());
    elf.resize(208, 0xf4);
    elf
}

/// A flat multiboot 1 image at 1 MiB (flag 16).
pub(super) fn multiboot() -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    const FLAGS: u32 = 1 << 16 | 3;
    const AT: u32 = 0x10_0000;
    let header = [
        MAGIC,
        FLAGS,
        0_u32.wrapping_sub(MAGIC.wrapping_add(FLAGS)),
        AT,
        AT,
        AT + 64,
        AT + 128,
        AT + 32,
    ];
    let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.resize(64, 0xf4);
    image
}

/// The setup header of Linux's boot protocol 2.15, and a page of kernel.
pub(super) fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 0x400];
    put(&mut image, 0x1f1, &[1]);
    put(&mut image, 0x1f4, &(4096_u32 / 16).to_le_bytes());
    put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut image, 0x202, b"HdrS\x0f\x02");
    put(&mut image, 0x211, &[1]);
    put(&mut image, 0x214, &0x10_0000_u32.to_le_bytes());
    put(&mut image, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(&mut image, 0x230, &0x20_0000_u32.to_le_bytes());
    put(&mut image, 0x234, &[1, 21, 3, 0]);
    put(&mut image, 0x238, &2047_u32.to_le_bytes());
    put(&mut image, 0x258, &0x10_0000_u64.to_le_bytes());
    put(&mut image, 0x260, &0x10_0000_u32.to_le_bytes());
    image.resize(0x400 + 4096, 0xf4);
    image
}
