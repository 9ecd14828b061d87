//! What a PC's firmware leaves in RAM: the BIOS data area, the memory map, and tables.

use std::ops::Range;

use super::error::BootError;
use super::memory_map::{MemoryRange, memory_map};
use crate::config::Topology;
use crate::machine::layout;
use crate::memory::GuestRam;
use crate::units::Gpa;

/// What the tables say about the machine, beyond what is fixed in [`layout`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// The VM's name.
    pub name: String,
    /// The vCPUs' local APIC ids, in creation order.
    pub apic_ids: Vec<u32>,
    /// How the vCPUs are grouped.
    pub topology: Topology,
    /// Whether there are 8259 interrupt controllers (and an 8254 timer on line 0).
    pub pic: bool,
    /// How many physical address bits the vCPUs have.
    pub phys_bits: u8,
}

/// What was installed.
#[derive(Clone, Debug)]
pub(super) struct Firmware {
    /// The memory map.
    pub(super) map: Vec<MemoryRange>,
    /// Where the RSDP lies.
    pub(super) rsdp: Gpa,
}

/// The first page: interrupt vectors and BIOS data.
pub(super) const LOW_DATA: Range<u64> = 0..0x1000;

/// Writes the BIOS data area and the tables.
pub(super) fn install(ram: &GuestRam, platform: &Platform) -> Result<Firmware, BootError> {
    let _not_yet = platform;
    let pieces: Vec<_> = ram.pieces().map(|piece| (piece.gpa, piece.len)).collect();
    write_bios_data(ram)?;
    Ok(Firmware {
        map: memory_map(&pieces, &[]),
        rsdp: Gpa(0),
    })
}

/// The fields of the BIOS data area that kernels still read: Linux and Xen take the end of low memory from it.
fn write_bios_data(ram: &GuestRam) -> Result<(), BootError> {
    const COM_PORTS: Gpa = Gpa(0x400);
    const EBDA_SEGMENT: Gpa = Gpa(0x40e);
    const LOW_MEMORY_KIB: Gpa = Gpa(0x413);
    let [(com1, _), (com2, _)] = layout::SERIAL;
    ram.write(
        COM_PORTS,
        &[com1.to_le_bytes(), com2.to_le_bytes()].concat(),
    )?;
    ram.write(EBDA_SEGMENT, &halfword(layout::EBDA.start >> 4))?;
    ram.write(LOW_MEMORY_KIB, &halfword(layout::EBDA.start >> 10))?;
    // The EBDA begins with its size in KiB.
    ram.write(
        Gpa(layout::EBDA.start),
        &halfword((layout::EBDA.end - layout::EBDA.start) >> 10),
    )?;
    Ok(())
}

fn halfword(value: u64) -> [u8; 2] {
    u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes()
}

/// Lets a kernel call the BIOS in real mode: every call returns at once and says that it failed (carry set), upon which
/// Xen, for one, takes the memory map that it was given.
pub(super) fn install_bios_calls(ram: &GuestRam) -> Result<(), BootError> {
    // push bp; mov bp, sp; or byte [bp+6], 1 (carry in the flags to be returned); pop bp; iret
    const FAIL: [u8; 9] = [0x55, 0x89, 0xe5, 0x80, 0x4e, 0x06, 0x01, 0x5d, 0xcf];
    // Where a PC's BIOS has its lone iret.
    const SEGMENT: u16 = 0xf000;
    const OFFSET: u16 = 0xff53;
    const VECTORS: usize = 256;
    ram.write(Gpa(u64::from(SEGMENT) * 16 + u64::from(OFFSET)), &FAIL)?;
    let vector = [OFFSET.to_le_bytes(), SEGMENT.to_le_bytes()].concat();
    ram.write(Gpa(0), &vector.repeat(VECTORS))?;
    Ok(())
}
