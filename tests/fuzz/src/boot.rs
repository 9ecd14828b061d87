//! Kernel images, and loading one with its initrd and modules.

use std::path::PathBuf;

use hypernest::boot::{self, Platform, elf, kind, linux, multiboot};
use hypernest::boot::{BootModule, KernelBoot};
use hypernest::cpuid::Topology;
use hypernest::layout::{AddressMap, AddressWidth};
use hypernest::memory::{GuestRam, MemoryConfig};
use hypernest::units::Gpa;

use crate::Input;

/// Kernel images of every kind.
pub(crate) fn image(image: &[u8]) -> bool {
    let len = image.len() as u64;
    let mut parsed = kind::kind(image).is_ok();
    if let Ok(header) = linux::Header::parse(image, len) {
        let _fits = header.check_cmdline("console=ttyS0");
        parsed = true;
    }
    if let Ok(elf) = elf::parse(image) {
        let _addresses = (elf.end(), elf.physical_entry());
        parsed = true;
    }
    let _note = elf::find_note(image, 4);
    if let Some(header) = multiboot::Header::find(image) {
        let _valid = (header.check(), header.flat(len));
    }
    parsed
}

const RAM: u64 = 16 << 20;

/// `flags, kernel length u32, initrd length u16, module length u16`, the files, and the command line.
pub(crate) fn load(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let flags = input.u8();
    let lengths = [input.u32(), input.u16().into(), input.u16().into()];
    let Ok(directory) = tempfile::tempdir() else {
        return false;
    };
    let paths: [PathBuf; 3] =
        ["kernel", "initrd", "module"].map(|name| directory.path().join(name));
    for (path, len) in paths.iter().zip(lengths) {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if std::fs::write(path, input.bytes(len)).is_err() {
            return false;
        }
    }
    let cmdline = String::from_utf8_lossy(input.rest()).into_owned();
    let [kernel, initrd, module] = paths;
    let module = BootModule {
        path: module,
        cmdline: cmdline.clone(),
    };
    let config = KernelBoot {
        kernel,
        initrd: (flags & 1 != 0).then_some(initrd),
        cmdline,
        modules: vec![module; usize::from(flags >> 1 & 3)],
    };
    let memory = MemoryConfig::of(RAM);
    let Ok(ram) = GuestRam::new(&memory, &[(Gpa(0), RAM)]) else {
        return false;
    };
    let map = if flags & 8 == 0 {
        &AddressMap::PC_1
    } else {
        &AddressMap::DIRECT_1
    };
    let platform = Platform {
        name: "fuzz".to_owned(),
        apic_ids: vec![0],
        topology: Topology {
            sockets: 1,
            cores: 1,
            threads: 1,
        },
        pic: true,
        map,
        address_width: AddressWidth {
            bits: 40,
            firmware: None,
        },
        fw_cfg: true,
    };
    boot::load(&config, &ram, &platform).is_ok()
}
