//! The loader's data: the command line and the free memory.
#![allow(
    unsafe_code,
    reason = "entry, and the loader's structures at physical addresses"
)]

use core::fmt;

use crate::{apic, console, pages, smp, trap};

/// EAX at the entry from a Multiboot loader.
const MULTIBOOT_MAGIC: u32 = 0x2BAD_B002;
/// The first word of `hvm_start_info`.
const START_INFO_MAGIC: u32 = 0x336E_C578;
const MIB: u64 = 1 << 20;
/// One-to-one mapped.
const MAPPED: u64 = 1 << 32;

/// The values that the start-up assembly passes.
#[derive(Debug)]
pub struct Boot {
    /// EAX at the entry.
    pub magic: u32,
    /// EBX at the entry: the address of the loader's structure.
    pub info: u32,
    /// Code that takes an application processor from real mode to [`crate::application_processor`].
    pub trampoline: &'static [u8],
    /// The end of the image.
    pub free_from: usize,
}

/// The entry of the boot processor from the start-up assembly.
///
/// # Safety
/// Once per boot, on the boot processor, in long mode, with the first 4 GiB identity-mapped and
/// writable, and with correct values in `boot`.
pub unsafe fn boot_processor(boot: Boot) -> ! {
    console::detect_width();
    // SAFETY: the caller guarantees that this is the only call, in the required state.
    let start = unsafe { boot.take_over() };
    trap::set_up(0);
    apic::set_up();
    crate::run(&start)
}

/// The entry of an application processor from the start-up assembly.
///
/// # Safety
/// Once per boot for each `order`, from 1 to below [`crate::MAX_CPUS`], in the state that
/// [`boot_processor`] requires.
pub unsafe fn application_processor(order: u32) -> ! {
    let order = order as usize;
    trap::set_up(order);
    apic::set_up();
    smp::work_for_ever(order)
}

/// The loader's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Pvh,
    Multiboot,
    Unknown,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pvh => "booted by PVH",
            Self::Multiboot => "booted by Multiboot",
            Self::Unknown => "booted by an unknown protocol",
        })
    }
}

/// A copy of the required parts of the loader's structures, so that their memory is free.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) protocol: Protocol,
    pub(crate) trampoline: &'static [u8],
    line: [u8; 1024],
    line_len: usize,
}

impl Start {
    /// The command line up to the first byte that is not UTF-8.
    pub(crate) fn command_line(&self) -> &str {
        let line = &self.line[..self.line_len];
        match core::str::from_utf8(line) {
            Ok(line) => line,
            Err(error) => core::str::from_utf8(&line[..error.valid_up_to()]).unwrap_or(""),
        }
    }
}

impl Boot {
    /// Copies the loader's data and passes the memory after the image to [`pages`].
    ///
    /// # Safety
    /// Once per boot, with identity-mapped memory, and with correct values in `self`.
    pub(crate) unsafe fn take_over(self) -> Start {
        let info = u64::from(self.info);
        // The structure's own magic first: qboot leaves Multiboot's in EAX for PVH too.
        let protocol = if read32(info) == START_INFO_MAGIC {
            Protocol::Pvh
        } else if self.magic == MULTIBOOT_MAGIC {
            Protocol::Multiboot
        } else {
            Protocol::Unknown
        };
        let free_from = self.free_from as u64;
        let (line_at, ram_end) = match protocol {
            Protocol::Pvh => (read64(info + 24), pvh_ram_end(info, free_from)),
            Protocol::Multiboot => multiboot(info),
            Protocol::Unknown => (0, 0),
        };
        let mut line = [0; 1024];
        let line_len = if line_at == 0 {
            0
        } else {
            copy_string(line_at, &mut line)
        };
        // Loaders that report no memory provide at least this much.
        let ram_end = if ram_end > free_from {
            ram_end
        } else {
            free_from.next_multiple_of(MIB) + 8 * MIB
        };
        // SAFETY: RAM after the image, which contains no loader data that is still used.
        unsafe { pages::give(free_from, ram_end.min(MAPPED)) };
        Start {
            protocol,
            trampoline: self.trampoline,
            line,
            line_len,
        }
    }
}

/// The end of the RAM that contains `free_from`, from `hvm_start_info` version 1; 0 if it contains none.
fn pvh_ram_end(info: u64, free_from: u64) -> u64 {
    const RAM: u32 = 1;
    if read32(info + 4) < 1 {
        return 0;
    }
    let (map, entries) = (read64(info + 40), u64::from(read32(info + 48)));
    (0..entries.min(128))
        .map(|index| map.wrapping_add(index * 24))
        .filter(|&entry| read32(entry + 16) == RAM)
        .map(|entry| (read64(entry), read64(entry + 8)))
        .find(|&(start, size)| start <= free_from && free_from - start < size)
        .map_or(0, |(start, size)| start.saturating_add(size))
}

/// The command line's address and the end of RAM below 4 GiB, from the Multiboot information; 0 if it
/// contains none.
fn multiboot(info: u64) -> (u64, u64) {
    const MEMORY: u32 = 1 << 0;
    const COMMAND_LINE: u32 = 1 << 2;
    let flags = read32(info);
    let line = if flags & COMMAND_LINE != 0 {
        u64::from(read32(info + 16))
    } else {
        0
    };
    let end = if flags & MEMORY != 0 {
        MIB + u64::from(read32(info + 8)) * 1024
    } else {
        0
    };
    (line, end)
}

fn copy_string(at: u64, into: &mut [u8]) -> usize {
    for (index, byte) in (at..).zip(0..into.len()) {
        match read8(index) {
            0 => return byte,
            read => into[byte] = read,
        }
    }
    into.len()
}

fn read8(address: u64) -> u8 {
    if address == 0 || address >= MAPPED {
        return 0;
    }
    let pointer = core::ptr::with_exposed_provenance::<u8>(usize::try_from(address).unwrap_or(0));
    // SAFETY: identity-mapped, not null; volatile because it is not Rust's. Addresses without RAM read as
    // ones.
    unsafe { pointer.read_volatile() }
}

fn read32(address: u64) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|byte| read8(address.wrapping_add(byte))))
}

fn read64(address: u64) -> u64 {
    u64::from(read32(address.wrapping_add(4))) << 32 | u64::from(read32(address))
}
