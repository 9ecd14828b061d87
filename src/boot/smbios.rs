//! System Management BIOS 3.2 (DMTF DSP0134): what the guest's system information shows. Section numbers
//! refer to it.

use std::ops::Range;

use crate::cpuid::Topology;
use crate::units::Gpa;

/// What the structures depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmbiosConfig {
    /// The VM's name: the serial number, and what the UUID is made of.
    pub name: String,
    /// How the vCPUs are grouped.
    pub topology: Topology,
    /// The pieces of RAM.
    pub ram: Vec<(Gpa, u64)>,
}

/// Bytes in the entry point (5.2.2).
pub const ENTRY_POINT_LEN: u8 = 0x18;

const MAKER: &str = "hypernest";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Some day; the field must hold a date.
const RELEASE_DATE: &str = "01/01/2026";

/// The entry point for structures of `len` bytes at `at`.
pub fn entry_point(at: Gpa, len: usize) -> Vec<u8> {
    let mut entry = b"_SM3_".to_vec();
    // Checksum, length, version 3.2.0 of the specification, revision 1 of the entry point, reserved.
    entry.extend([0, ENTRY_POINT_LEN, 3, 2, 0, 1, 0]);
    entry.extend(u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
    entry.extend(at.0.to_le_bytes());
    let sum = entry.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    entry[5] = sum.wrapping_neg();
    entry
}

/// A UUID that is always the same for a name: 128 bits of FNV-1a, marked as version 8 (RFC 9562, 5.8).
pub fn uuid(name: &str) -> [u8; 16] {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = (1 << 88) + 0x13b;
    let hash = name.bytes().fold(OFFSET, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(PRIME)
    });
    let mut uuid = hash.to_be_bytes();
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// All structures, one after the other.
pub fn structures(config: &SmbiosConfig) -> Vec<u8> {
    let mut table = Table {
        bytes: Vec::new(),
        next_handle: 0,
    };
    bios(&mut table);
    system(&mut table, &config.name);
    chassis(&mut table, &config.name);
    for socket in 0..config.topology.sockets {
        processor(&mut table, socket, &config.topology);
    }
    memory(&mut table, &config.ram);
    // System boot information (7.33): no error.
    table.add(Structure::new(32).reserved(6).byte(0));
    // End of table (7.45).
    table.add(Structure::new(127));
    table.bytes
}

struct Table {
    bytes: Vec<u8>,
    next_handle: u16,
}

impl Table {
    /// Appends a structure; its handle.
    fn add(&mut self, structure: Structure) -> u16 {
        let handle = self.next_handle;
        self.next_handle += 1;
        let Structure {
            kind,
            body,
            strings,
        } = structure;
        // Structures here have at most 0x30 bytes.
        let len = u8::try_from(body.len() + 4).unwrap_or(u8::MAX);
        self.bytes.extend([kind, len]);
        self.bytes.extend(handle.to_le_bytes());
        self.bytes.extend(body);
        for string in &strings {
            self.bytes.extend(string.bytes());
            self.bytes.push(0);
        }
        if strings.is_empty() {
            self.bytes.push(0);
        }
        self.bytes.push(0);
        handle
    }
}

/// A structure being built, field after field.
struct Structure {
    kind: u8,
    body: Vec<u8>,
    strings: Vec<String>,
}

impl Structure {
    fn new(kind: u8) -> Self {
        Self {
            kind,
            body: Vec::new(),
            strings: Vec::new(),
        }
    }
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.body.extend_from_slice(bytes);
        self
    }
    fn byte(self, value: u8) -> Self {
        self.bytes(&[value])
    }
    fn word(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }
    fn dword(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }
    fn qword(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }
    fn reserved(self, len: usize) -> Self {
        self.bytes(&vec![0; len])
    }
    /// A reference to `text`; zero if there is none. A string may hold no zero byte and no more than 64
    /// characters were allowed before 2.7, which readers may still assume.
    fn string(mut self, text: &str) -> Self {
        let text: String = text.chars().filter(|c| *c != '\0').take(64).collect();
        if text.is_empty() {
            return self.byte(0);
        }
        self.strings.push(text);
        let number = u8::try_from(self.strings.len()).unwrap_or(0);
        self.byte(number)
    }
}

/// BIOS information (7.1).
fn bios(table: &mut Table) {
    const CHARACTERISTICS_UNKNOWN: u64 = 1 << 3;
    const VIRTUAL_MACHINE: u8 = 1 << 4;
    table.add(
        Structure::new(0)
            .string(MAKER)
            .string(VERSION)
            // Where its code begins: at the top of the first megabyte; 64 KiB long.
            .word(0xf000)
            .string(RELEASE_DATE)
            .byte(0)
            .qword(CHARACTERISTICS_UNKNOWN)
            .bytes(&[0, VIRTUAL_MACHINE])
            // Releases of system and embedded controller: not given.
            .bytes(&[0xff; 4]),
    );
}

/// System information (7.2).
fn system(table: &mut Table, name: &str) {
    const WOKEN_BY_POWER_SWITCH: u8 = 6;
    let [a, b, c, d, e, f, g, h, rest @ ..] = uuid(name);
    table.add(
        Structure::new(1)
            .string(MAKER)
            .string("hypernest")
            .string(VERSION)
            .string(name)
            // The first three fields of a UUID are little-endian here (7.2.1).
            .bytes(&[d, c, b, a, f, e, h, g])
            .bytes(&rest)
            .byte(WOKEN_BY_POWER_SWITCH)
            .byte(0)
            .string("Virtual Machine"),
    );
}

/// System enclosure (7.4).
fn chassis(table: &mut Table, name: &str) {
    const OTHER: u8 = 1;
    const SAFE: u8 = 3;
    const NO_SECURITY: u8 = 3;
    table.add(
        Structure::new(3)
            .string(MAKER)
            .byte(OTHER)
            .string(VERSION)
            .string(name)
            .byte(0)
            // State at boot of enclosure, power supply and temperature.
            .bytes(&[SAFE, SAFE, SAFE, NO_SECURITY])
            .dword(0)
            // Height, power cords, contained elements (their count and size), SKU number.
            .bytes(&[0, 0, 0, 0, 0]),
    );
}

/// Processor information (7.5).
fn processor(table: &mut Table, socket: u32, topology: &Topology) {
    const CENTRAL_PROCESSOR: u8 = 3;
    const UNKNOWN: u8 = 2;
    const POPULATED_AND_ENABLED: u8 = 0x41;
    const NO_UPGRADE: u8 = 6;
    const NO_CACHE: u16 = 0xffff;
    const CAPABLE_OF_64_BITS: u16 = 1 << 2;
    let (cores, threads) = (
        topology.cores,
        topology.cores.saturating_mul(topology.threads),
    );
    // A count past 255 stands in the 16-bit field alone (7.5.6).
    let short = |count: u32| u8::try_from(count).unwrap_or(u8::MAX);
    let long = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    table.add(
        Structure::new(4)
            .string(&format!("CPU {socket}"))
            .bytes(&[CENTRAL_PROCESSOR, UNKNOWN])
            .string(MAKER)
            // The processor's id is CPUID's to tell.
            .qword(0)
            .string(VERSION)
            // Voltage, external clock, greatest and present speed: unknown.
            .byte(0)
            .word(0)
            .word(0)
            .word(0)
            .bytes(&[POPULATED_AND_ENABLED, NO_UPGRADE])
            .word(NO_CACHE)
            .word(NO_CACHE)
            .word(NO_CACHE)
            // Serial number, asset tag, part number.
            .bytes(&[0, 0, 0])
            .bytes(&[short(cores), short(cores), short(threads)])
            .word(CAPABLE_OF_64_BITS)
            .word(UNKNOWN.into())
            .word(long(cores))
            .word(long(cores))
            .word(long(threads)),
    );
}

/// Physical memory array (7.17), one memory device (7.18), and where it is mapped (7.20).
fn memory(table: &mut Table, ram: &[(Gpa, u64)]) {
    const ON_SYSTEM_BOARD: u8 = 3;
    const SYSTEM_MEMORY: u8 = 3;
    const NO_ERROR_CORRECTION: u8 = 3;
    const NO_ERROR_INFORMATION: u16 = 0xfffe;
    const SEE_EXTENDED: u32 = 0x8000_0000;
    const DIMM: u8 = 9;
    const TYPE_RAM: u8 = 7;
    const DETAIL_OTHER: u16 = 1 << 1;
    const WIDTH_UNKNOWN: u16 = 0xffff;
    const SIZE_IN_EXTENDED: u16 = 0x7fff;
    let size: u64 = ram.iter().map(|&(_, len)| len).sum();

    let array = table.add(
        Structure::new(16)
            .bytes(&[ON_SYSTEM_BOARD, SYSTEM_MEMORY, NO_ERROR_CORRECTION])
            .dword(SEE_EXTENDED)
            .word(NO_ERROR_INFORMATION)
            .word(1)
            .qword(size),
    );
    table.add(
        Structure::new(17)
            .word(array)
            .word(NO_ERROR_INFORMATION)
            .word(WIDTH_UNKNOWN)
            .word(WIDTH_UNKNOWN)
            .word(SIZE_IN_EXTENDED)
            .bytes(&[DIMM, 0])
            .string("DIMM 0")
            .byte(0)
            .byte(TYPE_RAM)
            .word(DETAIL_OTHER)
            // Speed: unknown.
            .word(0)
            .string(MAKER)
            // Serial number, asset tag, part number, attributes.
            .bytes(&[0, 0, 0, 0])
            .dword(u32::try_from(size >> 20).unwrap_or(0x7fff_ffff))
            // Configured speed and voltages: unknown.
            .word(0)
            .bytes(&[0; 6]),
    );
    for &(start, len) in ram {
        let Range { start, end } = start.0..start.0.saturating_add(len);
        table.add(
            Structure::new(19)
                // The 32-bit fields hand over to the 64-bit ones.
                .dword(u32::MAX)
                .dword(u32::MAX)
                .word(array)
                .byte(1)
                .qword(start)
                .qword(end.saturating_sub(1)),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::AddressMap;

    fn config(sockets: u32, cores: u32) -> SmbiosConfig {
        SmbiosConfig {
            name: "web 1".to_owned(),
            topology: Topology {
                sockets,
                cores,
                threads: 2,
            },
            ram: AddressMap::DIRECT_1.ram_ranges(8 << 30),
        }
    }

    /// Type, formatted area, strings.
    fn parse(mut table: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
        let mut all = Vec::new();
        while !table.is_empty() {
            let (area, rest) = table.split_at(table[1].into());
            let end = rest.windows(2).position(|pair| pair == [0, 0]).unwrap();
            let strings = rest[..end]
                .split(|byte| *byte == 0)
                .filter(|string| !string.is_empty())
                .map(|string| String::from_utf8(string.to_vec()).unwrap())
                .collect();
            all.push((area[0], area.to_vec(), strings));
            table = &rest[end + 2..];
        }
        all
    }

    #[test]
    fn every_structure_has_the_length_of_its_version() {
        let all = parse(&structures(&config(2, 4)));
        let shapes: Vec<_> = all
            .iter()
            .map(|(kind, area, _)| (*kind, area.len()))
            .collect();
        assert_eq!(
            shapes,
            [
                (0, 0x18),
                (1, 0x1b),
                (3, 0x16),
                (4, 0x30),
                (4, 0x30),
                (16, 0x17),
                (17, 0x28),
                (19, 0x1f),
                (19, 0x1f),
                (32, 0x0b),
                (127, 4)
            ]
        );
        let handles: Vec<_> = all
            .iter()
            .map(|(_, area, _)| u16::from_le_bytes([area[2], area[3]]))
            .collect();
        assert!(
            handles
                .iter()
                .enumerate()
                .all(|(index, handle)| index == usize::from(*handle))
        );
        for (kind, area, strings) in &all {
            // String references are within what there is: the highest one in use equals the count.
            let highest = match kind {
                0 => area[8],
                1 => area[0x1a],
                3 => area[7],
                4 => area[0x10],
                17 => area[0x17],
                _ => 0,
            };
            assert_eq!(usize::from(highest), strings.len(), "type {kind}");
        }
        assert_eq!(
            all[1].2,
            [
                "hypernest",
                "hypernest",
                VERSION,
                "web 1",
                "Virtual Machine"
            ]
        );
    }

    #[test]
    fn memory_and_processors_are_counted() {
        let all = parse(&structures(&config(1, 4)));
        let of = |kind: u8| {
            all.iter()
                .find(|entry| entry.0 == kind)
                .map(|entry| entry.1.clone())
                .unwrap()
        };
        let processor = of(4);
        assert_eq!(processor[0x23..0x26], [4, 4, 8]);
        assert_eq!(processor[0x2a..0x30], [4, 0, 4, 0, 8, 0]);
        assert_eq!(of(16)[0x0f..0x17], (8_u64 << 30).to_le_bytes());
        assert_eq!(of(17)[0x1c..0x20], 8192_u32.to_le_bytes());
        assert_eq!(
            of(19)[0x0f..0x1f],
            [0_u64.to_le_bytes(), 0xbfff_ffff_u64.to_le_bytes()].concat()
        );
    }

    #[test]
    fn the_largest_machine_fits_below_1_mib() {
        let mut large = config(255, 1);
        large.name = "x".repeat(300);
        assert!(structures(&large).len() < 0xfe00);
    }

    #[test]
    fn the_entry_point_sums_to_zero() {
        let entry = entry_point(Gpa(0xf_0020), 0x1234);
        assert_eq!((entry.len(), &entry[..5]), (24, &b"_SM3_"[..]));
        assert_eq!(
            entry.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
        assert_eq!(entry[12..], [0x34, 0x12, 0, 0, 0x20, 0, 0xf, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn uuids_depend_on_the_name_alone() {
        assert_eq!(uuid("a"), uuid("a"));
        assert_ne!(uuid("a"), uuid("b"));
        for name in ["", "a", "web 1"] {
            let uuid = uuid(name);
            assert_eq!((uuid[6] >> 4, uuid[8] >> 6), (8, 2));
        }
    }
}
