//! The loader's script, interpreted as firmware does.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::loader::SCRIPT;
use super::tests::{Memory, large, small, sums_to_zero, walk};
use super::{AcpiConfig, Zone, build};
use crate::units::Gpa;

/// Firmware with the files of fw_cfg that it has allocated, and what its pointers lead to.
#[derive(Default)]
struct Firmware {
    memory: BTreeMap<String, (Gpa, Vec<u8>)>,
    /// File and offset.
    targets: Vec<(String, usize)>,
}

impl Firmware {
    /// Executes the script among `files`. `place` chooses an address by alignment and zone.
    fn run(files: &[(&str, Vec<u8>)], place: impl Fn(u32, u8) -> Gpa) -> Self {
        let files: BTreeMap<_, _> = files.iter().cloned().collect();
        let script = &files[SCRIPT];
        assert!(!script.is_empty() && script.len().is_multiple_of(128));
        let mut firmware = Self::default();
        for command in script.chunks(128) {
            firmware.command(command, &files, &place);
        }
        firmware
    }

    fn command(
        &mut self,
        command: &[u8],
        files: &BTreeMap<&str, Vec<u8>>,
        place: impl Fn(u32, u8) -> Gpa,
    ) {
        let number = |at: usize| u32::from_le_bytes(command[at..at + 4].try_into().unwrap());
        let offset = |at| usize::try_from(number(at)).unwrap();
        let name = |at: usize| {
            let field = &command[at..at + 56];
            let len = field.iter().position(|&byte| byte == 0).unwrap();
            assert_eq!(field[len..], vec![0; 56 - len]);
            String::from_utf8(field[..len].to_vec()).unwrap()
        };
        let end = match number(0) {
            1 => {
                let (file, align, zone) = (name(4), number(60), command[64]);
                assert!(align.is_power_of_two() && align <= 4096);
                let gpa = place(align, zone);
                assert!(gpa.0.is_multiple_of(align.into()));
                let blob = (gpa, files[file.as_str()].clone());
                assert!(self.memory.insert(file, blob).is_none());
                65
            }
            2 => {
                let (file, to, at, size) = (name(4), name(60), offset(116), command[120]);
                let (base, target_len) = (self.memory[&to].0, self.memory[&to].1.len());
                let bytes = &mut self.memory.get_mut(&file).unwrap().1;
                let field = &mut bytes[at..at + usize::from(size)];
                let mut value = [0; 8];
                value[..field.len()].copy_from_slice(field);
                let target = usize::try_from(u64::from_le_bytes(value)).unwrap();
                assert!([1, 2, 4, 8].contains(&size) && target < target_len);
                let address = (base.0 + target as u64).to_le_bytes();
                assert_eq!(address[field.len()..], vec![0; 8 - field.len()]);
                field.copy_from_slice(&address[..field.len()]);
                self.targets.push((to, target));
                121
            }
            3 => {
                let (file, at, start, len) = (name(4), offset(60), offset(64), offset(68));
                let bytes = &mut self.memory.get_mut(&file).unwrap().1;
                // Firmware differs in whether it counts what the byte held: edk2 does.
                assert!(bytes[at] == 0 && (start..start + len).contains(&at));
                let sum = bytes[start..start + len].iter();
                let sum = sum.fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
                bytes[at] = sum.wrapping_neg();
                72
            }
            other => panic!("command {other}"),
        };
        assert_eq!(command[end..], vec![0; 128 - end]);
    }

    /// The signatures of all tables that firmware installs: those that its pointers lead to.
    fn installs(&self) -> Vec<&[u8]> {
        let mut targets = self.targets.clone();
        targets.sort_unstable();
        targets.dedup();
        let tables = targets.iter().map(|(file, at)| {
            let bytes = &self.memory[file].1[*at..];
            let len = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
            let bytes = &bytes[..usize::try_from(len).unwrap()];
            assert!(bytes.starts_with(b"FACS") || sums_to_zero(bytes));
            &bytes[..4]
        });
        tables.collect()
    }
}

/// Both installers put the same tables at these addresses.
fn installers_agree(config: &AcpiConfig, high: Gpa, bios: Gpa) {
    let tables = build(config);
    let files = tables.clone().files();
    let firmware = Firmware::run(&files, |_, zone| if zone == 1 { high } else { bios });
    let expected = tables.placed(|blob| match blob.zone {
        Zone::High => high,
        Zone::Bios => bios,
    });
    let memory: Memory = firmware.memory.values().cloned().collect();
    assert_eq!(memory.len(), expected.len());
    assert!(expected.iter().all(|blob| memory.contains(blob)));
    let found = walk(&memory, bios);
    assert_eq!(found, walk(&expected, bios));
    let mut names: Vec<_> = found.iter().map(|table| &table.name[..]).collect();
    let mut installs = firmware.installs();
    names.sort_unstable();
    installs.sort_unstable();
    assert_eq!(installs, names);
}

#[test]
fn the_files_have_the_names_that_firmware_knows() {
    let files = build(&small()).files();
    let names: Vec<_> = files.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        ["etc/acpi/tables", "etc/acpi/rsdp", "etc/table-loader"]
    );
}

proptest! {
    #[test]
    fn firmware_installs_the_tables_that_direct_boot_has(
        // Pages from 1 MiB to 4 GiB, and every 16 bytes of the last 64 KiB below 1 MiB.
        high in (0x100..0xf_ff00_u64).prop_map(|page| Gpa(page << 12)),
        bios in (0xf000..0xfffd_u64).prop_map(|place| Gpa(place << 4)),
    ) {
        installers_agree(&small(), high, bios);
        installers_agree(&large(), high, bios);
    }
}
