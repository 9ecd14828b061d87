//! Kernels, ACPI and SMBIOS tables, written into guest RAM, and the registers that the boot vCPU starts with.
//!
//! There is no firmware: [`load`] leaves behind what one would have left, by the boot protocol that the
//! kernel's content asks for ([`kind`]):
//!
//! | kernel | protocol | starts in |
//! |---|---|---|
//! | bzImage | Linux 64-bit boot protocol | long mode |
//! | ELF with a PVH note | PVH | protected mode |
//! | multiboot 1 image | multiboot 1 | protected mode |
//!
//! The last two may be gzipped. All parsers are pure functions over bytes; every address that a file asks for
//! goes through [`claims::Claims`], so that nothing is loaded over anything else or outside RAM.

pub mod acpi;
pub mod claims;
mod config;
pub mod elf;
pub mod entry;
pub mod error;
mod files;
pub mod find;
mod firmware;
mod flash;
pub mod image;
pub mod kind;
pub mod linux;
mod load;
#[cfg(test)]
mod load_tests;
pub mod memory_map;
pub mod multiboot;
pub mod pvh;
pub mod smbios;

pub use config::{Boot, BootModule, FirmwareBoot, KernelBoot};
pub use entry::Entry;
pub use error::BootError;
pub use files::BootFiles;
pub use firmware::{Platform, acpi_tables, acpi_tables_with, e820, smbios_blobs};
pub use flash::{firmware_code, firmware_template};
pub use load::{check, load, load_files};
