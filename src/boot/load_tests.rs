//! Whole boots into real guest RAM, from kernels made here and from damaged ones.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::entry::Mode;
use super::{BootError, Entry, Platform, load};
use crate::boot::BootModule;
use crate::boot::KernelBoot;
use crate::cpuid::Topology;
use crate::layout::{self, AddressMap, AddressWidth};
use crate::memory::GuestRam;
use crate::memory::MemoryConfig;
use crate::units::Gpa;

const MIB: u64 = 1 << 20;

struct Files {
    dir: TempDir,
    boot: KernelBoot,
}

impl Files {
    fn new(kernel: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        fs::write(&path, kernel).unwrap();
        Self {
            dir,
            boot: KernelBoot {
                kernel: path,
                initrd: None,
                cmdline: "console=ttyS0".to_owned(),
                modules: Vec::new(),
            },
        }
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn initrd(mut self, content: &[u8]) -> Self {
        self.boot.initrd = Some(self.file("initrd", content));
        self
    }

    fn module(mut self, name: &str, content: &[u8], cmdline: &str) -> Self {
        let path = self.file(name, content);
        self.boot.modules.push(BootModule {
            path,
            cmdline: cmdline.to_owned(),
        });
        self
    }

    fn load(&self, size: u64) -> Result<(Entry, GuestRam), BootError> {
        let ram = ram(size);
        load(&self.boot, &ram, &platform()).map(|entry| (entry, ram))
    }

    fn refused(&self, size: u64) -> String {
        let Err(error) = self.load(size) else {
            panic!("{:?} was loaded", self.boot.kernel);
        };
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    }
}

const MACHINE: AddressMap = AddressMap::PC_1;

fn ram(size: u64) -> GuestRam {
    let config = MemoryConfig::of(size);
    GuestRam::new(&config, &MACHINE.ram_ranges(size)).unwrap()
}

fn platform() -> Platform {
    Platform {
        name: "test".to_owned(),
        apic_ids: vec![0, 1],
        topology: Topology {
            sockets: 1,
            cores: 2,
            threads: 1,
        },
        pic: true,
        map: &MACHINE,
        address_width: AddressWidth {
            bits: 40,
            firmware: None,
        },
        fw_cfg: true,
    }
}

fn bytes(ram: &GuestRam, gpa: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    ram.read(Gpa(gpa), &mut data).unwrap();
    data
}

fn u32_at(ram: &GuestRam, gpa: u64) -> u32 {
    u32::from_le_bytes(bytes(ram, gpa, 4).try_into().unwrap())
}

fn u64_at(ram: &GuestRam, gpa: u64) -> u64 {
    u64::from_le_bytes(bytes(ram, gpa, 8).try_into().unwrap())
}

fn put(file: &mut [u8], at: usize, value: &[u8]) {
    file[at..at + value.len()].copy_from_slice(value);
}

/// A bzImage of one setup sector and `payload`.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 1024];
    file[0x1f1] = 1;
    put(
        &mut file,
        0x1f4,
        &u32::try_from(payload.len() / 16).unwrap().to_le_bytes(),
    );
    put(&mut file, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut file, 0x202, b"HdrS");
    put(&mut file, 0x206, &0x20f_u16.to_le_bytes());
    file[0x211] = 1;
    put(&mut file, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(&mut file, 0x230, &0x20_0000_u32.to_le_bytes());
    file[0x234] = 1;
    put(&mut file, 0x236, &3_u16.to_le_bytes());
    put(&mut file, 0x238, &2047_u32.to_le_bytes());
    put(&mut file, 0x258, &0x100_0000_u64.to_le_bytes());
    put(&mut file, 0x260, &0x80_0000_u32.to_le_bytes());
    file.extend_from_slice(payload);
    file
}

/// An ELF64 file with one segment of `code` at `physical`, and a PVH note if `pvh`.
fn elf64(code: &[u8], physical: u64, pvh: bool) -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, &[2, 0, 62, 0, 1]);
    put(
        &mut file,
        24,
        &(0xffff_ffff_8000_0000 + physical).to_le_bytes(),
    );
    put(&mut file, 32, &64_u64.to_le_bytes());
    put(&mut file, 54, &[56, 0, 2, 0]);
    let load: [u64; 6] = [
        0x1000,
        0xffff_ffff_8000_0000 + physical,
        physical,
        code.len() as u64,
        code.len() as u64 + 0x5000,
        0x1000,
    ];
    put(&mut file, 64, &[1, 0, 0, 0, 7, 0, 0, 0]);
    for (index, field) in load.iter().enumerate() {
        put(&mut file, 72 + 8 * index, &field.to_le_bytes());
    }
    put(&mut file, 120, &[4, 0, 0, 0]);
    let note: [u64; 6] = [0x200, 0, 0, 44, 44, 4];
    for (index, field) in note.iter().enumerate() {
        put(&mut file, 128 + 8 * index, &field.to_le_bytes());
    }
    // Another note first, with a name that needs padding.
    put(&mut file, 0x200, &[3, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    put(&mut file, 0x20c, b"Go\0");
    put(
        &mut file,
        0x214,
        &[4, 0, 0, 0, 8, 0, 0, 0, if pvh { 18 } else { 17 }, 0, 0, 0],
    );
    put(&mut file, 0x220, b"Xen\0");
    put(&mut file, 0x224, &(physical + 4).to_le_bytes());
    file.extend_from_slice(code);
    file
}

/// An ELF32 file with a multiboot header in its one segment.
fn multiboot_elf32(physical: u32) -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    put(&mut file, 0, b"\x7fELF\x01\x01\x01");
    put(&mut file, 16, &[2, 0, 3, 0, 1]);
    put(&mut file, 24, &(physical + 0x20).to_le_bytes());
    put(&mut file, 28, &52_u32.to_le_bytes());
    put(&mut file, 42, &[32, 0, 1, 0]);
    let load = [1, 0x1000, physical, physical, 0x40, 0x2000, 7, 0x1000_u32];
    for (index, field) in load.iter().enumerate() {
        put(&mut file, 52 + 4 * index, &field.to_le_bytes());
    }
    let mut code = vec![0xf4; 0x40];
    let magic = 0x1bad_b002_u32;
    put(&mut code, 0, &magic.to_le_bytes());
    put(&mut code, 4, &3_u32.to_le_bytes());
    put(&mut code, 8, &0_u32.wrapping_sub(magic + 3).to_le_bytes());
    file.extend_from_slice(&code);
    file
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_bzimage_gets_its_zero_page_initrd_and_long_mode() {
    let payload: Vec<u8> = (0..0x2340_u32).map(|i| i.to_le_bytes()[0]).collect();
    let files = Files::new(&bzimage(&payload)).initrd(&[7; 5000]);
    let (entry, ram) = files.load(256 * MIB).unwrap();
    assert_eq!((entry.mode, entry.rip), (Mode::Long64, 0x100_0200));
    assert_eq!(bytes(&ram, 0x100_0000, payload.len()), payload);
    let zero_page = entry.rsi;
    assert_eq!(bytes(&ram, zero_page + 0x202, 4), b"HdrS");
    assert_eq!(bytes(&ram, zero_page + 0x210, 1), [0xff]);
    let cmdline = u32_at(&ram, zero_page + 0x228).into();
    assert_eq!(bytes(&ram, cmdline, 14), b"console=ttyS0\0");
    let initrd = u64::from(u32_at(&ram, zero_page + 0x218));
    assert_eq!((initrd % 4096, u32_at(&ram, zero_page + 0x21c)), (0, 5000));
    assert!(initrd > 254 * MIB);
    assert_eq!(
        bytes(&ram, initrd, 5001),
        [[7; 5000].as_slice(), &[0]].concat()
    );
    assert_eq!(u64_at(&ram, entry.cr3), (entry.cr3 + 0x1000) | 3);
    assert_eq!(bytes(&ram, entry.gdt.0, 32), entry.gdt_bytes());
    // e820: low memory first.
    assert!(bytes(&ram, zero_page + 0x1e8, 1)[0] >= 5);
    assert_eq!(u64_at(&ram, zero_page + 0x2d0 + 8), layout::EBDA.start);
}

#[test]
fn a_bzimage_moves_down_and_its_initrd_up_when_ram_is_small() {
    // 8 MiB of working room at 16 MiB do not fit into 20 MiB of RAM, but at 2 MiB they do.
    let files = Files::new(&bzimage(&[1; 512])).initrd(&[7; 5000]);
    let (entry, _) = files.load(20 * MIB).unwrap();
    assert_eq!(entry.rip, 0x20_0200);
    let mut fixed = bzimage(&[1; 512]);
    fixed[0x234] = 0;
    let text = Files::new(&fixed).refused(20 * MIB);
    assert!(
        text.contains("the kernel must lie at 0x1000000..0x1800000"),
        "{text}"
    );
    assert!(text.contains("--memory"), "{text}");
}

#[test]
fn the_tables_are_where_kernels_search_for_them_and_the_map_protects_them() {
    let (entry, ram) = Files::new(&bzimage(&[1; 512])).load(64 * MIB).unwrap();
    let zero_page = entry.rsi;
    assert_eq!(u64_at(&ram, zero_page + 0x70), 0xe_0000);
    assert_eq!(bytes(&ram, 0xe_0000, 8), b"RSD PTR ");
    let xsdt = u64_at(&ram, 0xe_0000 + 24);
    assert_eq!(bytes(&ram, xsdt, 4), b"XSDT");
    let fadt = u64_at(&ram, xsdt + 36);
    assert_eq!(bytes(&ram, fadt, 4), b"FACP");
    assert_eq!(bytes(&ram, u64_at(&ram, fadt + 140), 4), b"DSDT");
    let facs = u64::from(u32_at(&ram, fadt + 36));
    assert_eq!(bytes(&ram, facs, 4), b"FACS");
    assert_eq!(bytes(&ram, 0xf_0000, 5), b"_SM3_");
    let count = bytes(&ram, zero_page + 0x1e8, 1)[0];
    let kind_of = |gpa: u64| {
        (0..u64::from(count))
            .map(|index| zero_page + 0x2d0 + 20 * index)
            .find(|&entry| {
                (u64_at(&ram, entry)..u64_at(&ram, entry) + u64_at(&ram, entry + 8)).contains(&gpa)
            })
            .map(|entry| u32_at(&ram, entry + 16))
    };
    assert_eq!(
        [0xe_0000, 0xf_0000, xsdt, facs, 0xe000_0000].map(kind_of),
        [Some(2), Some(2), Some(3), Some(4), Some(2)]
    );
}

#[test]
fn too_little_ram_is_an_error_whatever_its_size() {
    let files = Files::new(&bzimage(&[1; 512]));
    for pages in (1..0x140).chain([0x200, 0x400]) {
        let text = files.refused(pages * 4096);
        assert!(text.contains("--memory"), "{pages} pages: {text}");
    }
}

#[test]
fn an_initrd_too_large_for_low_ram_goes_above_4_gib_if_allowed() {
    let mut kernel = bzimage(&[1; 512]);
    put(&mut kernel, 0x22c, &0x10_0fff_u32.to_le_bytes());
    let files = Files::new(&kernel).initrd(&[7; 5000]);
    let (entry, ram) = files.load(4 << 30).unwrap();
    let zero_page = entry.rsi;
    assert_eq!(u32_at(&ram, zero_page + 0xc0), 1);
    let initrd = (1 << 32) + u64::from(u32_at(&ram, zero_page + 0x218));
    assert_eq!(bytes(&ram, initrd, 5000), [7; 5000]);

    kernel[0x236] = 1;
    let text = Files::new(&kernel).initrd(&[7; 5000]).refused(4 << 30);
    assert!(
        text.contains("no 5000 bytes of RAM in one piece are free at 0x100000..0x101000"),
        "{text}"
    );
}

#[test]
fn damaged_and_unfit_bzimages_are_refused_with_advice() {
    let good = bzimage(&[1; 0x1000]);
    let changed = |at: usize, value: &[u8]| {
        let mut file = good.clone();
        put(&mut file, at, value);
        file
    };
    for (file, expected) in [
        (good[..0x300].to_vec(), "not wholly downloaded"),
        (
            good[..0x1200].to_vec(),
            "the header promises 5120 bytes, but the file has 4608",
        ),
        (changed(0x206, &[0x0a, 2]), "speaks boot protocol 2.10"),
        (changed(0x211, &[0]), "zImage"),
        (changed(0x236, &[2]), "no 64-bit entry point"),
        (changed(0x230, &[1, 2, 3, 4]), "not a power of two"),
        (changed(0x260, &[0xff; 4]), "free at 0x100000"),
        (changed(0x258, &[0xff; 8]), ""),
    ] {
        let files = Files::new(&file);
        if expected.is_empty() {
            files.load(64 * MIB).unwrap();
        } else {
            let text = files.refused(64 * MIB);
            assert!(text.contains(expected), "{text}");
        }
    }
    let mut files = Files::new(&good);
    files.boot.cmdline = "x".repeat(2048);
    assert!(files.refused(64 * MIB).contains("this kernel takes 2047"));
    let files = Files::new(&good).module("m", b"x", "");
    assert!(files.refused(64 * MIB).contains("no modules"));
}

#[test]
fn an_elf_kernel_with_a_note_starts_by_pvh_with_its_modules() {
    let files = Files::new(&elf64(&[0xf4; 0x900], 0x100_0000, true))
        .initrd(&[7; 5000])
        .module("second", &[8; 10], "two words");
    let (entry, ram) = files.load(128 * MIB).unwrap();
    assert_eq!((entry.mode, entry.rip), (Mode::Protected32, 0x100_0004));
    assert_eq!(
        bytes(&ram, 0x100_0000, 0x901),
        [[0xf4; 0x900].as_slice(), &[0]].concat()
    );
    assert_eq!(u32_at(&ram, entry.rbx), 0x336e_c578);
    let modules = u64_at(&ram, entry.rbx + 16);
    assert_eq!(bytes(&ram, u64_at(&ram, modules), 5000), [7; 5000]);
    assert_eq!(bytes(&ram, u64_at(&ram, modules + 32), 10), [8; 10]);
    assert_eq!(bytes(&ram, u64_at(&ram, modules + 48), 10), b"two words\0");
}

#[test]
fn a_multiboot_kernel_starts_with_names_in_its_command_lines_even_gzipped() {
    for kernel in [
        multiboot_elf32(0x20_0000),
        gzip(&multiboot_elf32(0x20_0000)),
    ] {
        let files = Files::new(&kernel)
            .module("dom0 kernel", &[8; 0x1800], "root=/dev/x")
            .module("last", &[9; 10], "");
        let (entry, ram) = files.load(64 * MIB).unwrap();
        assert_eq!(
            (entry.mode, entry.rip, entry.rax),
            (Mode::Protected32, 0x20_0020, 0x2bad_b002)
        );
        let cmdline = u32_at(&ram, entry.rbx + 16).into();
        assert_eq!(bytes(&ram, cmdline, 21), b"kernel console=ttyS0\0");
        let modules: u64 = u32_at(&ram, entry.rbx + 24).into();
        assert_eq!(u32_at(&ram, modules), 0x20_2000);
        assert_eq!(bytes(&ram, 0x20_2000, 0x1800), [8; 0x1800]);
        let name = u32_at(&ram, modules + 8).into();
        assert_eq!(bytes(&ram, name, 24), b"dom0_kernel root=/dev/x\0");
        assert_eq!(u32_at(&ram, modules + 16), 0x20_4000);
        // A BIOS call finds code that fails it.
        assert_eq!(u32_at(&ram, 4 * 0x15), 0xf000_ff53);
        assert_eq!(bytes(&ram, 0xf_ff5b, 1), [0xcf]);
    }
}

#[test]
fn damaged_and_unfit_elf_files_are_refused_with_advice() {
    let good = elf64(&[0xf4; 0x900], 0x100_0000, true);
    let changed = |at: usize, value: &[u8]| {
        let mut file = good.clone();
        put(&mut file, at, value);
        file
    };
    for (file, expected) in [
        (good[..40].to_vec(), "the ELF header lies past the end"),
        (
            good[..100].to_vec(),
            "the program header table lies past the end",
        ),
        (good[..0x1800].to_vec(), "segment 0 lies past the end"),
        (changed(5, &[2]), "big-endian"),
        (changed(18, &[183]), "ELF machine 183"),
        (changed(54, &[1]), "1 bytes instead of 56"),
        (changed(56, &[0xff, 0xff]), "more than 128"),
        (changed(72, &[0xff; 8]), "segment 0 lies past the end"),
        (changed(88, &[0xff; 8]), "past the end of the address space"),
        (changed(88, &[0, 0, 0, 0x40]), "which is not all RAM"),
        (
            changed(88, &[0, 0, 0, 0]),
            "but the BIOS data area is already at 0x0..0x1000",
        ),
        (changed(88, &[0, 0xf0, 9, 0]), "which is not all RAM"),
        (changed(104, &[0; 8]), "nothing to load"),
        (
            changed(104, &[1, 0, 0, 0, 0, 0, 0, 0]),
            "only 0x1 in memory",
        ),
        (changed(0x228, &[1]), "no 32-bit address"),
        (
            changed(152, &[0; 8]),
            "neither a PVH note nor a multiboot header",
        ),
        (changed(152, &[0xff; 8]), "a note segment lies past the end"),
        (
            elf64(&[0xf4; 16], 0x100_0000, false),
            "neither a PVH note nor a multiboot header",
        ),
    ] {
        let text = Files::new(&file).refused(64 * MIB);
        assert!(text.contains(expected), "wanted {expected:?}, got {text:?}");
    }
}

#[test]
fn files_that_are_no_kernels_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = Files::new(b"#!/bin/sh\nexit\n");
    assert!(
        files
            .refused(64 * MIB)
            .contains("is not a kernel that hypernest can start")
    );
    files.boot.kernel = dir.path().to_owned();
    assert!(files.refused(64 * MIB).contains("is not a regular file"));
    files.boot.kernel = dir.path().join("missing");
    assert!(files.refused(64 * MIB).contains("missing: No such file"));
    assert!(Files::new(b"").refused(64 * MIB).contains("is empty"));
    let mut bad = gzip(&multiboot_elf32(0x20_0000));
    bad.truncate(40);
    assert!(
        Files::new(&bad)
            .refused(64 * MIB)
            .contains("gzip data are damaged")
    );
    let bomb = gzip(&vec![0; 64 << 20]);
    assert!(
        Files::new(&bomb)
            .refused(16 * MIB)
            .contains("unpacks to more than 16 MiB")
    );
    assert!(
        Files::new(&gzip(&gzip(b"x")))
            .refused(64 * MIB)
            .contains("gzipped twice")
    );
    let mut files = Files::new(&bzimage(&[1; 512]));
    files.boot.initrd = Some(dir.path().join("none"));
    assert!(files.refused(64 * MIB).contains("cannot read the initrd"));
}

proptest! {
    /// Whatever bytes are damaged, loading ends with an entry or an error.
    #[test]
    fn damaged_kernels_never_panic(
        which in 0_usize..3,
        damage in proptest::collection::vec((0_usize..0x1100, any::<u8>()), 1..12),
        cut in proptest::option::of(0_usize..0x1900),
    ) {
        let mut file = match which {
            0 => bzimage(&[1; 0x1000]),
            1 => elf64(&[0xf4; 0x900], 0x100_0000, true),
            _ => multiboot_elf32(0x20_0000),
        };
        for (at, value) in damage {
            if let Some(byte) = file.get_mut(at) { *byte = value; }
        }
        if let Some(cut) = cut { file.truncate(cut); }
        let _entry_or_error = Files::new(&file).initrd(&[7; 100]).load(32 * MIB);
    }

    /// The same where damage hurts most: the headers.
    #[test]
    fn damaged_headers_never_panic(
        which in 0_usize..3,
        damage in proptest::collection::vec((0_usize..0x80, any::<[u8; 4]>()), 1..6),
    ) {
        let (mut file, base) = match which {
            0 => (bzimage(&[1; 0x1000]), 0x1f1),
            1 => (elf64(&[0xf4; 0x900], 0x100_0000, true), 0x10),
            _ => (multiboot_elf32(0x20_0000), 0x10),
        };
        for (at, value) in damage { put(&mut file, base + at, &value); }
        let _entry_or_error = Files::new(&file).load(32 * MIB);
    }
}
