//! Reads the firmware configuration device as bare-metal guests do: byte by byte, by string instructions, and
//! by DMA if the device has it.

use crate::pages::Page;
use crate::{Exit, cpu, say};

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
/// The address of a DMA request, big endian; the write of the lower half, after the upper one, starts it.
const DMA_HIGH: u16 = 0x514;
const DMA_LOW: u16 = 0x518;

/// In the item with the device's interfaces: DMA.
const HAS_DMA: u8 = 1 << 1;
// The control of a DMA request, beside the key in bits 31:16.
const DMA_READ: u32 = 1 << 1;
const DMA_SELECT: u32 = 1 << 3;

/// The item with the directory of files: a big-endian count, then an entry for each: size and key, big
/// endian, two bytes, and the name, which ends with NUL.
const DIRECTORY: u16 = 0x19;
const ENTRY_LEN: usize = 64;
const NAME: usize = 8;

/// `fwcfg`: prints the numbers and the files that the device offers; fails if there is no device.
pub(crate) fn run() -> Exit {
    let mut signature = [0; 4];
    read_string(0x00, &mut signature);
    if &signature != b"QEMU" {
        say!("fwcfg: no device, signature {signature:02x?}");
        return Exit::Failed;
    }
    for (name, key, size) in [
        ("id", 0x01, 4),
        ("ram", 0x03, 8),
        ("nographic", 0x04, 2),
        ("cpus", 0x05, 2),
        ("max-cpus", 0x0f, 2),
    ] {
        let mut bytes = [0; 8];
        if !read(name, key, &mut bytes[..size]) {
            return Exit::Failed;
        }
        say!("fwcfg: {name} {:#x}", u64::from_le_bytes(bytes));
    }
    if files() { Exit::Done } else { Exit::Failed }
}

/// Prints each file's key, name and first bytes.
fn files() -> bool {
    let mut count = [0; 4];
    if !read("files", DIRECTORY, &mut count) {
        return false;
    }
    let count = u32::from_be_bytes(count);
    say!("fwcfg: files {count:#x}");
    for index in 0..count {
        let mut entry = [0; ENTRY_LEN];
        cpu::out16(SELECTOR, DIRECTORY);
        cpu::in8_string(DATA, &mut [0; 4]);
        for _ in 0..index {
            cpu::in8_string(DATA, &mut entry);
        }
        cpu::in8_string(DATA, &mut entry);
        let key = u16::from_be_bytes([entry[4], entry[5]]);
        let name = entry[NAME..].split(|&byte| byte == 0).next();
        let name = str::from_utf8(name.unwrap_or_default()).unwrap_or("?");
        let mut start = [0; 4];
        if !read(name, key, &mut start) {
            return false;
        }
        say!("fwcfg: file {key:#x} {name} begins with {start:02x?}");
    }
    true
}

/// Reads an item's first bytes in each way: whether all agree.
fn read(name: &str, key: u16, bytes: &mut [u8]) -> bool {
    let mut id = [0];
    read_string(0x01, &mut id);
    cpu::out16(SELECTOR, key);
    for byte in &mut *bytes {
        *byte = cpu::in8(DATA);
    }
    let mut string = [0; 8];
    let string = &mut string[..bytes.len()];
    read_string(key, string);
    if bytes != string {
        say!("fwcfg: {name} read as {bytes:02x?} and, by a string instruction, as {string:02x?}");
        return false;
    }
    if id[0] & HAS_DMA == 0 {
        return true;
    }
    let mut copy = [0xff; 8];
    let copy = &mut copy[..bytes.len()];
    if let Err(control) = read_by_dma(key, copy) {
        say!("fwcfg: {name} by DMA: control {control:#x}");
        return false;
    }
    if bytes != copy {
        say!("fwcfg: {name} read as {bytes:02x?} and, by DMA, as {copy:02x?}");
    }
    bytes == copy
}

fn read_string(key: u16, bytes: &mut [u8]) {
    cpu::out16(SELECTOR, key);
    cpu::in8_string(DATA, bytes);
}

/// The request's control if it is not 0 afterwards. Addresses are physical ones here.
fn read_by_dma(key: u16, bytes: &mut [u8]) -> Result<(), u32> {
    /// Where the data goes, in the page of the request.
    const TO: u8 = 0x80;
    let page = Page::new();
    let control = u32::from(key) << 16 | DMA_SELECT | DMA_READ;
    let begin = u64::from(control) << 32 | bytes.len() as u64;
    page.write64(0, begin.swap_bytes());
    page.write64(8, (page.address() + u64::from(TO)).swap_bytes());
    let [a, b, c, d, e, f, g, h] = page.address().to_be_bytes();
    cpu::out32(DMA_HIGH, u32::from_le_bytes([a, b, c, d]));
    cpu::out32(DMA_LOW, u32::from_le_bytes([e, f, g, h]));
    let data = page.read64(TO.into()).to_le_bytes();
    bytes.copy_from_slice(&data[..bytes.len()]);
    match page.read32(0).swap_bytes() {
        0 => Ok(()),
        control => Err(control),
    }
}
