//! Kernel images of every kind.
#![no_main]

use hypernest::boot::{elf, kind, linux, multiboot};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|image: &[u8]| {
    let len = image.len() as u64;
    let _ = kind::kind(image);
    if let Ok(header) = linux::Header::parse(image, len) {
        let _ = header.check_cmdline("console=ttyS0");
    }
    if let Ok(elf) = elf::parse(image) {
        let _ = (elf.end(), elf.physical_entry());
    }
    let _ = elf::find_note(image, 4);
    if let Some(header) = multiboot::Header::find(image) {
        let _ = (header.check(), header.flat(len));
    }
});
