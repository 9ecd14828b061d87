//! The tables for firmware: the blobs as files of fw_cfg, and a script by which firmware allocates memory for
//! them and applies the fix-ups (QEMU's table loader: hw/acpi/bios-linker-loader.c describes the commands,
//! edk2's OvmfPkg/AcpiPlatformDxe/QemuLoader.h their layout).

use super::blobs::{Fixup, Tables, Zone};

/// The script's name as a file of fw_cfg.
pub const SCRIPT: &str = "etc/table-loader";

/// Bytes of a command: a number, its fields without padding, and zeros.
const COMMAND_LEN: usize = 128;
/// Bytes of a file's name in a command, with at least one NUL.
const NAME_LEN: usize = 56;

const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;

// Zones of ALLOCATE.
const ZONE_HIGH: u8 = 1;
const ZONE_F_SEGMENT: u8 = 2;

impl Tables {
    /// The files of fw_cfg from which firmware installs the tables: name and content.
    pub fn files(self) -> Vec<(&'static str, Vec<u8>)> {
        let script = (SCRIPT, self.script());
        let blobs = self.blobs.into_iter();
        blobs
            .map(|blob| (blob.file, blob.bytes))
            .chain([script])
            .collect()
    }

    fn script(&self) -> Vec<u8> {
        let allocations = self.blobs.iter().map(|blob| {
            let zone = match blob.zone {
                Zone::High => ZONE_HIGH,
                Zone::Bios => ZONE_F_SEGMENT,
            };
            let fields: [&[u8]; 3] = [&name(blob.file), &blob.align.to_le_bytes(), &[zone]];
            command(ALLOCATE, &fields)
        });
        let file = |blob: usize| name(self.blobs[blob].file);
        let fixups = self.fixups.iter().map(|fixup| match *fixup {
            Fixup::Pointer { blob, at, size, to } => {
                let fields: [&[u8]; 4] = [&file(blob), &file(to), &at.to_le_bytes(), &[size]];
                command(ADD_POINTER, &fields)
            }
            Fixup::Checksum {
                blob,
                at,
                start,
                len,
            } => {
                let numbers = [at, start, len].map(u32::to_le_bytes).concat();
                command(ADD_CHECKSUM, &[&file(blob), &numbers])
            }
        });
        allocations.chain(fixups).flatten().collect()
    }
}

fn command(number: u32, fields: &[&[u8]]) -> [u8; COMMAND_LEN] {
    let mut command = [0; COMMAND_LEN];
    let bytes = [&number.to_le_bytes(), fields.concat().as_slice()].concat();
    command[..bytes.len()].copy_from_slice(&bytes);
    command
}

fn name(file: &str) -> [u8; NAME_LEN] {
    let mut name = [0; NAME_LEN];
    name[..file.len()].copy_from_slice(file.as_bytes());
    name
}
