//! The memory map that firmware would report (int 15h, AX=E820h), and that every boot protocol hands on in
//! its own form.

use std::ops::Range;

use crate::layout;
use crate::units::Gpa;

/// What a range of guest-physical addresses is. The values are those of ACPI 6.5, table 15.6, and the same in
/// all protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// RAM free for use.
    Ram = 1,
    /// Not for use.
    Reserved = 2,
    /// RAM that holds ACPI tables; free for use once they are read.
    AcpiData = 3,
    /// RAM that ACPI keeps using (the FACS).
    AcpiNvs = 4,
}

/// One entry of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What it is.
    pub kind: MemoryKind,
}

impl MemoryRange {
    /// The first address after it.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// The map of a machine with these pieces of RAM, of which `taken` is not free, and its ECAM window; sorted,
/// without overlaps, neighbours of the same kind merged.
pub fn memory_map(
    ram: &[(Gpa, u64)],
    ecam: &Range<u64>,
    taken: &[(Range<u64>, MemoryKind)],
) -> Vec<MemoryRange> {
    let mut free: Vec<Range<u64>> = ram
        .iter()
        .map(|&(start, len)| start.0..start.0.saturating_add(len))
        .collect();
    let holes = fixed(ecam)
        .into_iter()
        .map(|(range, _)| range)
        .chain([HOLE_640K]);
    for hole in holes.chain(taken.iter().map(|(range, _)| range.clone())) {
        free = free
            .into_iter()
            .flat_map(|range| cut(range, &hole))
            .collect();
    }
    let mut map: Vec<MemoryRange> = free
        .into_iter()
        .map(|range| (range, MemoryKind::Ram))
        .chain(fixed(ecam))
        .chain(taken.iter().cloned())
        .filter(|(range, _)| !range.is_empty())
        .map(|(range, kind)| MemoryRange {
            start: range.start,
            len: range.end - range.start,
            kind,
        })
        .collect();
    map.sort_by_key(|entry| entry.start);
    map.dedup_by(|next, last| {
        let joins = next.kind == last.kind && next.start == last.end();
        if joins {
            last.len += next.len;
        }
        joins
    });
    map
}

/// 640 KiB up to the firmware's area: a PC has video memory and option ROMs there, and maps leave it out.
const HOLE_640K: Range<u64> = layout::EBDA.end..layout::BIOS_AREA.start;

/// What is never free. The ECAM window must stand in the map, or Linux does not use it
/// (`is_mmconf_reserved`).
fn fixed(ecam: &Range<u64>) -> [(Range<u64>, MemoryKind); 4] {
    [
        (layout::EBDA, MemoryKind::Reserved),
        (layout::BIOS_AREA, MemoryKind::Reserved),
        (ecam.clone(), MemoryKind::Reserved),
        (
            layout::KVM_IDENTITY_MAP.0..layout::KVM_TSS.0 + 0x3000,
            MemoryKind::Reserved,
        ),
    ]
}

fn cut(range: Range<u64>, hole: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let before = range.start..range.end.min(hole.start);
    let after = range.start.max(hole.end)..range.end;
    [before, after].into_iter().filter(|part| !part.is_empty())
}

/// The end of free RAM below 4 GiB.
pub fn low_ram_end(ram: &[(Gpa, u64)]) -> u64 {
    ram.iter()
        .map(|&(start, len)| start.0.saturating_add(len))
        .filter(|&end| end <= layout::RAM_ABOVE_4G.0)
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::AddressMap;
    use MemoryKind::{AcpiData, AcpiNvs, Ram, Reserved};
    use proptest::prelude::*;

    const DIRECT: AddressMap = AddressMap::DIRECT_1;
    const GIB: u64 = 1 << 30;

    fn map(size: u64, taken: &[(Range<u64>, MemoryKind)]) -> Vec<(u64, u64, MemoryKind)> {
        memory_map(&DIRECT.ram_ranges(size), &DIRECT.ecam, taken)
            .iter()
            .map(|e| (e.start, e.end(), e.kind))
            .collect()
    }

    #[test]
    fn maps_of_small_and_large_machines() {
        let top = GIB - 0x3000;
        assert_eq!(
            map(
                GIB,
                &[(top..top + 0x1000, AcpiNvs), (top + 0x1000..GIB, AcpiData)]
            ),
            [
                (0, 0x9_f000, Ram),
                (0x9_f000, 0xa_0000, Reserved),
                (0xe_0000, 0x10_0000, Reserved),
                (0x10_0000, top, Ram),
                (top, top + 0x1000, AcpiNvs),
                (top + 0x1000, GIB, AcpiData),
                (0xe000_0000, 0xf000_0000, Reserved),
                (0xfeff_c000, 0xff00_0000, Reserved),
            ]
        );
        assert_eq!(
            map(8 * GIB, &[]),
            [
                (0, 0x9_f000, Ram),
                (0x9_f000, 0xa_0000, Reserved),
                (0xe_0000, 0x10_0000, Reserved),
                (0x10_0000, 3 * GIB, Ram),
                (0xe000_0000, 0xf000_0000, Reserved),
                (0xfeff_c000, 0xff00_0000, Reserved),
                (4 * GIB, 9 * GIB, Ram),
            ]
        );
    }

    #[test]
    fn neighbours_of_one_kind_are_merged() {
        let map = map(
            GIB,
            &[
                (0x20_0000..0x30_0000, Reserved),
                (0x30_0000..0x40_0000, Reserved),
            ],
        );
        assert!(map.contains(&(0x20_0000, 0x40_0000, Reserved)));
    }

    proptest! {
        #[test]
        fn the_map_is_sorted_disjoint_and_loses_no_ram(
            pages in 256_u64..(20 * GIB / 4096),
            // `firmware::install` places what is taken above 1 MiB.
            at in 256_u64..(3 * GIB / 4096),
            len in 0_u64..1000,
        ) {
            let ram = DIRECT.ram_ranges(pages * 4096);
            let taken = at * 4096..(at + len) * 4096;
            let map = memory_map(&ram, &DIRECT.ecam, &[(taken.clone(), AcpiData)]);
            prop_assert!(map.windows(2).all(|w| w[0].end() <= w[1].start));
            for &(start, len) in &ram {
                for page in [start.0, start.0 + len / 8192 * 4096, start.0 + len - 4096] {
                    let covered = map.iter().find(|e| (e.start..e.end()).contains(&page));
                    let kind = covered.map(|e| e.kind);
                    let expected = if taken.contains(&page) { Some(AcpiData) }
                        else if HOLE_640K.contains(&page) { None }
                        else if layout::EBDA.contains(&page)
                            || layout::BIOS_AREA.contains(&page) { Some(Reserved) }
                        else { Some(Ram) };
                    prop_assert_eq!(kind, expected);
                }
            }
        }
    }
}
