use super::*;
use crate::layout::AddressWidth;

const NVS: Gpa = Gpa(0x7ff_0000);
const RSDP_AT: Gpa = Gpa(0xe_0000);

/// A table with its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: [u8; 4],
    pub(super) gpa: Gpa,
    pub(super) bytes: Vec<u8>,
}

/// Ranges of memory: first address and bytes.
pub(super) type Memory = Vec<(Gpa, Vec<u8>)>;

fn read(memory: &Memory, gpa: u64, len: usize) -> &[u8] {
    let found = memory.iter().find_map(|(start, bytes)| {
        let at = usize::try_from(gpa.checked_sub(start.0)?).unwrap();
        bytes.get(at..at + len)
    });
    found.unwrap_or_else(|| panic!("{gpa:#x} leads to no table"))
}

/// Every table that a system finds from the RSDP at `rsdp`, each with its length and checksum; the FACS
/// first.
pub(super) fn walk(memory: &Memory, rsdp: Gpa) -> Vec<Table> {
    let rsdp = read(memory, rsdp.0, 36);
    assert!(rsdp.starts_with(b"RSD PTR "));
    assert_eq!((rsdp[15], u32_at(rsdp, 20)), (2, 36));
    assert!(sums_to_zero(&rsdp[..20]) && sums_to_zero(rsdp));
    let table = |gpa: u64| {
        let header = read(memory, gpa, 8);
        let len = usize::try_from(u32_at(header, 4)).unwrap();
        let (name, bytes) = (header[..4].try_into().unwrap(), read(memory, gpa, len));
        assert!(name == *b"FACS" || sums_to_zero(bytes), "{name:?}");
        let (gpa, bytes) = (Gpa(gpa), bytes.to_vec());
        Table { name, gpa, bytes }
    };
    let xsdt = table(u64_at(rsdp, 24));
    assert_eq!(xsdt.name, *b"XSDT");
    let listed = xsdt.bytes[36..].chunks(8);
    let listed: Vec<_> = listed.map(|entry| table(u64_at(entry, 0))).collect();
    let fadt = &listed[0];
    assert_eq!(fadt.name, *b"FACP");
    let facs = table(u32_at(&fadt.bytes, 36).into());
    let dsdt = table(u64_at(&fadt.bytes, 140));
    assert_eq!((facs.name, facs.gpa.0 % 64), (*b"FACS", 0));
    assert_eq!(dsdt.name, *b"DSDT");
    assert_eq!(u64::from(u32_at(&fadt.bytes, 40)), dsdt.gpa.0);
    [vec![facs, dsdt], listed, vec![xsdt]].concat()
}

fn placed(config: &AcpiConfig) -> Memory {
    build(config).placed(|blob| match blob.zone {
        Zone::High => NVS,
        Zone::Bios => RSDP_AT,
    })
}

fn installed(config: &AcpiConfig) -> Vec<Table> {
    walk(&placed(config), RSDP_AT)
}

fn config(apic_ids: Vec<u32>, pic: bool, ram: u64) -> AcpiConfig {
    of(&AddressMap::DIRECT_1, apic_ids, pic, ram)
}

fn of(map: &'static AddressMap, apic_ids: Vec<u32>, pic: bool, ram: u64) -> AcpiConfig {
    let width = AddressWidth {
        bits: 40,
        firmware: Some(40),
    };
    AcpiConfig {
        apic_ids,
        pic,
        ram: map.ram_ranges(ram),
        map,
        ecam: map.ecam.clone(),
        pci_mmio32: map.pci_mmio32(ram),
        pci_mmio64: map.pci_mmio64(ram, width),
        fw_cfg: true,
    }
}

pub(super) fn small() -> AcpiConfig {
    config(vec![0], true, 128 << 20)
}

/// As large as it can get: 255 vCPUs, of which some have APIC ids past 254, and RAM above 4 GiB.
pub(super) fn large() -> AcpiConfig {
    config((0..255).map(|i| i * 2).collect(), false, 8 << 30)
}

fn find<'a>(tables: &'a [Table], name: &[u8; 4]) -> &'a Table {
    let mut tables = tables.iter();
    tables.find(|table| &table.name == name).unwrap()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub(super) fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// The entries of a MADT (`header` 44) or SRAT (48): type and bytes.
fn entries(table: &Table, header: usize) -> Vec<(u8, Vec<u8>)> {
    let mut rest = &table.bytes[header..];
    let mut entries = Vec::new();
    while let [kind, len, ..] = *rest {
        let (entry, next) = rest.split_at(len.into());
        entries.push((kind, entry.to_vec()));
        rest = next;
    }
    assert!(rest.is_empty());
    entries
}

#[test]
fn every_table_has_its_length_and_checksum_and_hangs_on_the_rsdp() {
    for config in [small(), large()] {
        let tables = installed(&config);
        let names: Vec<_> = tables.iter().map(|table| &table.name).collect();
        assert_eq!(
            names,
            [
                b"FACS", b"DSDT", b"FACP", b"APIC", b"MCFG", b"SRAT", b"WAET", b"XSDT"
            ]
        );
        let ranges = tables.iter();
        let mut ranges: Vec<_> = ranges
            .map(|table| (table.gpa.0, table.gpa.0 + table.bytes.len() as u64))
            .collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        // The FACS has a page of its own.
        assert_eq!((ranges[0].0, ranges[1].0), (NVS.0, NVS.0 + NVS_LEN));
        let len = build(&config).len(Zone::High);
        assert_eq!(ranges.last().map(|range| range.1), Some(NVS.0 + len));
        assert!(len < 48 << 10);
    }
}

/// Offsets of table 5.9.
#[test]
fn the_fadt_names_the_fixed_hardware_twice() {
    let built = installed(&small());
    let fadt = &find(&built, b"FACP").bytes;
    assert_eq!(fadt.len(), 276);
    assert_eq!(u32_at(fadt, 36), u32::try_from(NVS.0).unwrap());
    let dsdt = find(&built, b"DSDT").gpa.0;
    assert_eq!(
        (u64::from(u32_at(fadt, 40)), u64_at(fadt, 140)),
        (dsdt, dsdt)
    );
    assert_eq!((u16_at(fadt, 46), u32_at(fadt, 48)), (9, 0));
    for (short, length, long, range) in [
        (56, 88, 148, layout::PM1A_EVENT),
        (64, 89, 172, layout::PM1A_CONTROL),
        (76, 91, 208, layout::PM_TIMER),
        (80, 92, 220, layout::GPE0),
    ] {
        assert_eq!(u32_at(fadt, short), u32::from(range.start));
        assert_eq!(usize::from(fadt[length]), range.len());
        // System I/O, width in bits, address.
        assert_eq!(
            (fadt[long], usize::from(fadt[long + 1])),
            (1, 8 * range.len())
        );
        assert_eq!(u64_at(fadt, long + 4), u64::from(range.start));
        assert_ne!(range.start, 0);
    }
    let flags = u32_at(fadt, 112);
    let hardware_reduced = 1 << 20;
    assert_eq!(flags & hardware_reduced, 0);
    assert_eq!(flags, 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10);
    assert_eq!((fadt[108], u16_at(fadt, 109)), (0x32, 0b111));
    assert_eq!((fadt[116], u64_at(fadt, 120), fadt[128]), (1, 0xcf9, 6));
}

#[test]
fn the_madt_lists_processors_by_the_size_of_their_ids() {
    let madt = entries(find(&installed(&large()), b"APIC"), 44);
    let of = |kind: u8| {
        madt.iter()
            .filter(move |entry| entry.0 == kind)
            .map(|entry| &entry.1)
    };
    assert_eq!((of(0).count(), of(9).count()), (128, 127));
    assert_eq!(of(0).next_back().unwrap()[..], [0, 8, 127, 254, 1, 0, 0, 0]);
    let first = of(9).next().unwrap();
    assert_eq!(
        (u32_at(first, 4), u32_at(first, 8), u32_at(first, 12)),
        (256, 1, 128)
    );
    assert_eq!(of(10).count(), 1);
    assert_eq!(
        of(1).next().unwrap()[..],
        [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]
    );
    // No PIC: no timer to redirect.
    assert_eq!(
        of(2).collect::<Vec<_>>(),
        [&[2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0]]
    );

    let built = installed(&small());
    let table = find(&built, b"APIC");
    assert_eq!(
        (u32_at(&table.bytes, 36), u32_at(&table.bytes, 40)),
        (0xfee0_0000, 1)
    );
    let madt = entries(table, 44);
    let kinds: Vec<_> = madt.iter().map(|entry| entry.0).collect();
    assert_eq!(kinds, [0, 1, 2, 2, 4]);
    assert_eq!(madt[2].1, [2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    assert_eq!(madt[4].1, [4, 6, 0xff, 0, 0, 1]);
}

#[test]
fn the_srat_covers_all_ram_but_the_hole() {
    let srat = entries(find(&installed(&large()), b"SRAT"), 48);
    let memory: Vec<_> = srat
        .iter()
        .filter(|entry| entry.0 == 1)
        .map(|(_, entry)| (u64_at(entry, 8), u64_at(entry, 16), u32_at(entry, 28)))
        .collect();
    assert_eq!(
        memory,
        [
            (0, 0xa_0000, 1),
            (0x10_0000, 0xbff0_0000, 1),
            (0x1_0000_0000, 0x1_4000_0000, 1)
        ]
    );
    assert_eq!(
        srat.iter()
            .filter(|entry| entry.0 == 0 && entry.1.len() == 16)
            .count(),
        128
    );
    assert_eq!(
        srat.iter()
            .filter(|entry| entry.0 == 2 && entry.1.len() == 24)
            .count(),
        127
    );
}

#[test]
fn the_dsdt_follows_the_machine_type() {
    for (map, s5, io, memory) in [
        (
            &AddressMap::PC_1,
            &[6, 4, 0, 0, 0, 0][..],
            0x6000_u16,
            0x8000_0000_u32,
        ),
        (
            &AddressMap::DIRECT_1,
            &[8, 4, 0xa, 5, 0xa, 5, 0, 0],
            0xc000,
            0xc000_0000,
        ),
    ] {
        let config = AcpiConfig {
            map,
            ecam: map.ecam.clone(),
            pci_mmio32: map.pci_mmio32(128 << 20),
            ..small()
        };
        let dsdt = installed(&config);
        let dsdt = &find(&dsdt, b"DSDT").bytes;
        let has = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|window| window == bytes);
        assert!(has(&[b"\x08_S5_\x12", s5].concat()), "_S5");
        // Granularity, first, last.
        let [low, high] = io.to_le_bytes();
        assert!(has(&[0, 0, low, high, 0xff, 0xff]), "the window of ports");
        let window = [[0; 4], memory.to_le_bytes(), 0xdfff_ffff_u32.to_le_bytes()];
        assert!(has(&window.concat()), "the 32-bit window");
        // Package: address, pin, no link device, line.
        let line = u8::try_from(map.pci_interrupt(31, 0).0).unwrap();
        let address = [0xc, 0xff, 0xff, 0x1f, 0];
        assert!(has(&[&address[..], &[0, 0, 0xa, line]].concat()), "_PRT");
    }
}

/// A reset of a VM that was started by an earlier version finds what it had.
#[test]
fn a_machine_type_keeps_its_tables() {
    const MANY: u64 = 8 << 30;
    let ids = || (0..255).map(|i| i * 2).collect();
    for (map, [small, large]) in [
        (&AddressMap::PC_1, [0xd107_7653_u32, 0xf0d5_8720]),
        (&AddressMap::DIRECT_1, [0x27ce_28d6, 0xee48_85b4]),
    ] {
        for (config, expected) in [
            (of(map, vec![0], true, 128 << 20), small),
            (of(map, ids(), false, MANY), large),
        ] {
            let bytes = placed(&config).into_iter().flat_map(|(_, bytes)| bytes);
            let found = crc32c::crc32c(&bytes.collect::<Vec<_>>());
            assert_eq!(found, expected, "{found:#x}: the tables of {map:?} changed");
        }
    }
}
