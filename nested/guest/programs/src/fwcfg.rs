//! Reads the firmware configuration device as bare-metal guests do: byte by byte, and by string instructions.

use crate::{Exit, cpu, say};

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;

/// `fwcfg`: prints the numbers that the device offers; fails if there is no device.
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
        // No such item.
        ("files", 0x19, 4),
    ] {
        let (mut bytes, mut string) = ([0; 8], [0; 8]);
        cpu::out16(SELECTOR, key);
        for byte in &mut bytes[..size] {
            *byte = cpu::in8(DATA);
        }
        read_string(key, &mut string[..size]);
        if bytes != string {
            say!(
                "fwcfg: {name} read as {bytes:02x?} and, by a string instruction, as {string:02x?}"
            );
            return Exit::Failed;
        }
        say!("fwcfg: {name} {:#x}", u64::from_le_bytes(bytes));
    }
    Exit::Done
}

fn read_string(key: u16, bytes: &mut [u8]) {
    cpu::out16(SELECTOR, key);
    cpu::in8_string(DATA, bytes);
}
