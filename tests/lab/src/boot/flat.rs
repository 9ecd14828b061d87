//! A bzImage without compression: the kernel's real-mode part, then the kernel's memory image. Decompression
//! is three quarters of the start-up work of a 6.12 kernel in the Intel lab, and reading a larger file costs
//! next to nothing there.

use thiserror::Error;

use crate::bzimage::{BzImageError, protected_mode_offset};

/// The image cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FlatError {
    /// The bzImage is malformed.
    #[error(transparent)]
    BzImage(#[from] BzImageError),
    /// The unpacked kernel is malformed.
    #[error("the unpacked kernel: {0}")]
    Elf(&'static str),
}

/// The maximum size of a kernel; Debian's are 50 MiB.
const MAX_SIZE: u64 = 256 << 20;
/// The address at which isolinux loads the protected-mode part of any kernel, relocatable or not.
const BASE: u32 = 0x10_0000;
/// The space before the kernel: entry code, descriptor table, page tables.
const PROLOGUE: u32 = 0x1_0000;
const GDT: u32 = 0x100;
const GDT_POINTER: u32 = 0x140;
const PML4: u32 = 0x1000;
const PDPT: u32 = 0x2000;
const PAGE_DIRECTORIES: u32 = 0x3000;
const STACK_TOP: u32 = 0x8000;

struct Segment<'a> {
    physical: u64,
    in_memory: u64,
    contents: &'a [u8],
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], FlatError> {
    at.checked_add(N)
        .and_then(|end| bytes.get(at..end))
        .and_then(|part| part.try_into().ok())
        .ok_or(FlatError::Elf("cut short"))
}

/// The entry point and loadable segments of a 64-bit ELF file.
fn segments(elf: &[u8]) -> Result<(u64, Vec<Segment<'_>>), FlatError> {
    let u16_at = |at| number(elf, at).map(u16::from_le_bytes);
    let u32_at = |at| number(elf, at).map(u32::from_le_bytes);
    let u64_at = |at| number(elf, at).map(u64::from_le_bytes);
    let index = |value: u64| usize::try_from(value).map_err(|_| FlatError::Elf("cut short"));
    // e_ident: magic, 64 bits, little endian (System V ABI, ELF header).
    if number::<6>(elf, 0)? != *b"\x7fELF\x02\x01" {
        return Err(FlatError::Elf("not a 64-bit ELF file"));
    }
    let entry = u64_at(24)?;
    let table = index(u64_at(32)?)?;
    let entry_size = usize::from(u16_at(54)?);
    let mut segments = Vec::new();
    for n in 0..usize::from(u16_at(56)?) {
        let header = table.saturating_add(n * entry_size);
        const PT_LOAD: u32 = 1;
        if u32_at(header)? != PT_LOAD {
            continue;
        }
        let offset = index(u64_at(header + 8)?)?;
        let size = index(u64_at(header + 32)?)?;
        let contents = offset
            .checked_add(size)
            .and_then(|end| elf.get(offset..end));
        segments.push(Segment {
            physical: u64_at(header + 24)?,
            in_memory: u64_at(header + 40)?,
            contents: contents.ok_or(FlatError::Elf("cut short"))?,
        });
    }
    Ok((entry, segments))
}

/// Makes the image from a bzImage and the vmlinux inside it.
pub(super) fn flat_image(bzimage: &[u8], vmlinux: &[u8]) -> Result<Vec<u8>, FlatError> {
    let setup_size = protected_mode_offset(bzimage)?;
    let mut image = bzimage
        .get(..setup_size)
        .ok_or(BzImageError::NoHeader)?
        .to_vec();
    let (entry, segments) = segments(vmlinux)?;
    let start = segments.iter().map(|segment| segment.physical).min();
    let start = start.ok_or(FlatError::Elf("nothing to load"))?;
    let ends = segments.iter().map(|s| {
        s.physical
            .saturating_add(s.in_memory.max(s.contents.len() as u64))
    });
    let end = ends.max().unwrap_or(start);
    let too_large = FlatError::Elf("not where a kernel lies");
    let small = |value: u64| u32::try_from(value).map_err(|_| too_large.clone());
    if end - start > MAX_SIZE || start < u64::from(BASE + PROLOGUE) {
        return Err(too_large);
    }
    let (start, end, entry) = (small(start)?, small(end)?, small(entry)?);
    if !(start..end).contains(&entry) {
        return Err(FlatError::Elf("starts outside itself"));
    }

    let mut kernel = vec![0; (end - start) as usize];
    for segment in &segments {
        // In bounds: `start` is the lowest address and `end` is not below the highest.
        let at = (small(segment.physical)? - start) as usize;
        kernel[at..at + segment.contents.len()].copy_from_slice(segment.contents);
    }
    // The kernel clears its own BSS, and the memory of a new machine is zero anyway.
    let used = kernel
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    kernel.truncate(used.next_multiple_of(16));

    // The space between the prologue and the kernel is empty, but reading it is cheaper than moving the
    // kernel.
    let mut prologue = prologue(BASE, entry);
    prologue.resize((start - BASE) as usize, 0);
    let size = prologue.len() + kernel.len();
    // Real-mode kernel header (Documentation/arch/x86/boot.rst): the load address is set; fields about a
    // payload and other entries are cleared.
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f4, &small((size / 16) as u64)?.to_le_bytes()); // syssize
    put(0x234, &[0]); // relocatable_kernel
    put(0x236, &[0, 0]); // xloadflags: 32-bit entry only
    put(0x248, &[0; 8]); // payload_offset, payload_length
    put(0x258, &u64::from(BASE).to_le_bytes()); // pref_address
    put(0x260, &(end - BASE).to_le_bytes()); // init_size
    put(0x264, &[0; 4]); // handover_offset
    image.extend(prologue);
    image.extend(kernel);
    Ok(image)
}

/// The code at the 32-bit entry: enters 64-bit mode with the first 4 GiB identity-mapped, and jumps to the
/// kernel.
fn prologue(base: u32, entry: u32) -> Vec<u8> {
    let mut code = Vec::new();
    let mut emit = |bytes: &[u8], address: Option<u32>| {
        code.extend(bytes);
        code.extend(address.map(u32::to_le_bytes).into_iter().flatten());
    };
    emit(&[0xfa, 0xfc], None); // cli; cld
    emit(&[0x0f, 0x01, 0x15], Some(base + GDT_POINTER)); // lgdt [pointer]
    emit(
        &[0x0f, 0x20, 0xe0, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0],
        None,
    ); // cr4 |= PAE
    emit(&[0xb8], Some(base + PML4)); // mov eax, page tables
    emit(&[0x0f, 0x22, 0xd8], None); // mov cr3, eax
    emit(&[0xb9], Some(0xc000_0080)); // mov ecx, IA32_EFER
    emit(&[0x0f, 0x32, 0x0d], Some(1 << 8)); // rdmsr; or eax, LME
    emit(&[0x0f, 0x30, 0x0f, 0x20, 0xc0, 0x0d], Some(1 << 31)); // wrmsr; eax = cr0 | PG
    emit(&[0x0f, 0x22, 0xc0], None); // mov cr0, eax
    const FAR_JUMP: u32 = 7;
    let long = base + u32::try_from(code.len()).unwrap_or(0) + FAR_JUMP;
    code.push(0xea); // jmp 0x10:long
    code.extend(long.to_le_bytes());
    code.extend([0x10, 0]);
    code.extend([0x89, 0xf6, 0xbc]); // mov esi, esi (the boot parameters); mov esp, stack
    code.extend((base + STACK_TOP).to_le_bytes());
    code.push(0xb8); // mov eax, entry
    code.extend(entry.to_le_bytes());
    code.extend([0xff, 0xe0]); // jmp rax

    let mut prologue = vec![0; PROLOGUE as usize];
    let mut put = |at: u32, bytes: &[u8]| {
        let at = at as usize;
        prologue[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &code);
    // Flat segments at the selectors of the boot protocol: 0x10 code (64 bits), 0x18 data.
    put(GDT + 0x10, &0x00af_9b00_0000_ffff_u64.to_le_bytes());
    put(GDT + 0x18, &0x00cf_9300_0000_ffff_u64.to_le_bytes());
    put(GDT_POINTER, &0x1f_u16.to_le_bytes());
    put(GDT_POINTER + 2, &(base + GDT).to_le_bytes());
    const PRESENT_WRITABLE: u32 = 0b11;
    const LARGE: u64 = 1 << 7;
    put(PML4, &((base + PDPT) | PRESENT_WRITABLE).to_le_bytes());
    for gib in 0..4 {
        let directory = PAGE_DIRECTORIES + gib * 0x1000;
        put(
            PDPT + gib * 8,
            &((base + directory) | PRESENT_WRITABLE).to_le_bytes(),
        );
        for page in 0..512 {
            let address = u64::from(gib) << 30 | u64::from(page) << 21;
            let entry = address | LARGE | u64::from(PRESENT_WRITABLE);
            put(directory + page * 8, &entry.to_le_bytes());
        }
    }
    prologue
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bzimage() -> Vec<u8> {
        let mut image = vec![0; 0x1000];
        image[0x1f1] = 3;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image
    }

    fn elf(segments: &[(u64, u64, &[u8])], entry: u64) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56 * segments.len()];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[24..32].copy_from_slice(&entry.to_le_bytes());
        elf[32..40].copy_from_slice(&64_u64.to_le_bytes());
        elf[54..56].copy_from_slice(&56_u16.to_le_bytes());
        elf[56..58].copy_from_slice(&u16::try_from(segments.len()).unwrap().to_le_bytes());
        for (n, (physical, in_memory, contents)) in segments.iter().enumerate() {
            let offset = elf.len() as u64;
            elf.extend(*contents);
            let header = 64 + 56 * n;
            elf[header..header + 4].copy_from_slice(&1_u32.to_le_bytes());
            for (at, value) in [
                (8, offset),
                (24, *physical),
                (32, contents.len() as u64),
                (40, *in_memory),
            ] {
                elf[header + at..header + at + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        elf
    }

    #[test]
    fn segments_lie_in_the_file_as_in_memory() {
        let elf = elf(
            &[(0x100_1000, 0x3000, b"data"), (0x100_0000, 4, b"text")],
            0x100_0002,
        );
        let image = flat_image(&bzimage(), &elf).unwrap();
        let kernel = 0x800 + 0xf0_0000;
        assert_eq!(&image[kernel..kernel + 4], b"text");
        assert_eq!(&image[kernel + 0x1000..kernel + 0x1004], b"data");
        assert_eq!(image.len(), kernel + 0x1010);
        assert_eq!(image[0x1f4..0x1f8], 0xf_0101_u32.to_le_bytes());
        assert_eq!(image[0x260..0x264], 0xf0_4000_u32.to_le_bytes());
        assert_eq!(&image[0x800..0x805], &[0xfa, 0xfc, 0x0f, 0x01, 0x15]);
        // 0x200000 is identity-mapped.
        let entry = 0x800 + PAGE_DIRECTORIES as usize + 8;
        assert_eq!(image[entry..entry + 8], 0x20_0083_u64.to_le_bytes());
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        for (name, elf) in [
            ("empty", Vec::new()),
            ("no segments", elf(&[], 0)),
            ("too low", elf(&[(0x10_0000, 4, b"text")], 0x10_0000)),
            (
                "too far apart",
                elf(
                    &[(0x100_0000, 4, b"text"), (0x8000_0000, 4, b"x")],
                    0x100_0000,
                ),
            ),
            (
                "no address",
                elf(&[(u64::MAX - 0xffff, u64::MAX, b"text")], 0),
            ),
            (
                "entry elsewhere",
                elf(&[(0x100_0000, 4, b"text")], 0x200_0000),
            ),
        ] {
            assert!(flat_image(&bzimage(), &elf).is_err(), "{name}");
        }
        assert!(flat_image(b"", &elf(&[(0x100_0000, 4, b"text")], 0x100_0000)).is_err());
    }

    proptest! {
        #[test]
        fn broken_headers_never_panic(
            at in 0_usize..176,
            value in any::<u64>(),
        ) {
            let mut elf = elf(&[(0x100_0000, 4, b"text"), (0x100_1000, 0x20, b"data")], 0x100_0000);
            let end = elf.len().min(at + 8);
            elf[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
            let _ = flat_image(&bzimage(), &elf);
        }
    }
}
