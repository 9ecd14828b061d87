//! What a PC's firmware leaves in RAM: the BIOS data area, the memory map, and tables.

use std::ops::Range;

use super::acpi::{self, AcpiConfig, Zone};
use super::error::BootError;
use super::memory_map::{MemoryKind, MemoryRange, low_ram_end, memory_map};
use super::smbios::{self, SmbiosConfig};
use crate::cpuid::Topology;
use crate::layout::{self, AddressMap, AddressWidth};
use crate::memory::GuestRam;
use crate::units::Gpa;

/// What the tables say about the machine, beyond what is constant in [`layout`].
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
    /// Where everything lies.
    pub map: &'static AddressMap,
    /// How wide the vCPUs' physical addresses are.
    pub address_width: AddressWidth,
    /// Whether there is a firmware configuration device.
    pub fw_cfg: bool,
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

/// Where the RSDP lies: kernels search from here on (ACPI 6.5, 5.2.5.1).
const RSDP: Gpa = Gpa(layout::BIOS_AREA.start);
/// Where SMBIOS is searched for (DSP0134, 5.2.2), and where its structures follow.
const SMBIOS_ENTRY: Gpa = Gpa(0xf_0000);
const SMBIOS_STRUCTURES: Gpa = Gpa(SMBIOS_ENTRY.0 + 0x20);
/// Where a PC's BIOS has its lone iret.
const BIOS_CALL_SEGMENT: u16 = 0xf000;
const BIOS_CALL_OFFSET: u16 = 0xff53;
const BIOS_CALL: Gpa = Gpa((BIOS_CALL_SEGMENT as u64) * 16 + BIOS_CALL_OFFSET as u64);

/// Page size.
const PAGE: u64 = 0x1000;

/// Writes the BIOS data area and the tables: the ACPI tables to the top of low RAM, the rest to the
/// firmware's area.
///
/// # Errors
/// If there is too little RAM.
pub(super) fn install(ram: &GuestRam, platform: &Platform) -> Result<Firmware, BootError> {
    let pieces: Vec<_> = ram.pieces().map(|piece| (piece.gpa, piece.len)).collect();
    write_bios_data(ram).map_err(|_| BootError::TooLittleRam)?;
    let acpi = acpi_tables(platform, &pieces);
    let (nvs, taken) = place_acpi(&acpi, &pieces)?;
    let placed = acpi.placed(|blob| match blob.zone {
        Zone::High => nvs,
        Zone::Bios => RSDP,
    });
    for (gpa, bytes) in placed {
        ram.write(gpa, &bytes)?;
    }

    let structures = smbios_structures(platform, &pieces);
    ram.write(SMBIOS_STRUCTURES, &structures)?;
    ram.write(
        SMBIOS_ENTRY,
        &smbios::entry_point(SMBIOS_STRUCTURES, structures.len()),
    )?;
    Ok(Firmware {
        map: memory_map(&pieces, &platform.map.ecam, &taken),
        rsdp: RSDP,
    })
}

/// The memory map as firmware for virtual machines reads it (QEMU's file etc/e820): 20 bytes for each range.
pub fn e820(pieces: &[(Gpa, u64)]) -> Vec<u8> {
    /// The pages that KVM uses on Intel.
    const KVM: (Gpa, u64) = (
        layout::KVM_IDENTITY_MAP,
        layout::KVM_TSS.0 + 3 * PAGE - layout::KVM_IDENTITY_MAP.0,
    );
    let ram = pieces.iter().map(|piece| (piece, MemoryKind::Ram));
    let ranges = ram.chain([(&KVM, MemoryKind::Reserved)]);
    let entries = ranges.map(|(&(start, len), kind)| {
        let kind = (kind as u32).to_le_bytes();
        [&start.0.to_le_bytes()[..], &len.to_le_bytes(), &kind].concat()
    });
    entries.collect::<Vec<_>>().concat()
}

/// The SMBIOS tables for firmware to install: the entry point, whose address it sets, and the structures.
pub fn smbios_blobs(platform: &Platform, pieces: &[(Gpa, u64)]) -> (Vec<u8>, Vec<u8>) {
    let structures = smbios_structures(platform, pieces);
    (smbios::entry_point(Gpa(0), structures.len()), structures)
}

fn smbios_structures(platform: &Platform, pieces: &[(Gpa, u64)]) -> Vec<u8> {
    smbios::structures(&SmbiosConfig {
        name: platform.name.clone(),
        topology: platform.topology,
        ram: pieces.to_vec(),
    })
}

/// RAM that tables take.
type Taken = [(Range<u64>, MemoryKind); 2];

/// The ACPI tables of a machine with these pieces of RAM, wherever they are installed.
pub fn acpi_tables(platform: &Platform, pieces: &[(Gpa, u64)]) -> acpi::Tables {
    acpi_tables_with(platform, pieces, platform.map.ecam.clone())
}

/// The same where firmware has placed the ECAM window, of 256 buses below 4 GiB, at `ecam`.
pub fn acpi_tables_with(
    platform: &Platform,
    pieces: &[(Gpa, u64)],
    ecam: Range<u64>,
) -> acpi::Tables {
    let ram_size = pieces.iter().map(|&(_, len)| len).sum();
    let map = platform.map;
    acpi::build(&AcpiConfig {
        apic_ids: platform.apic_ids.clone(),
        pic: platform.pic,
        ram: pieces.to_vec(),
        map,
        pci_mmio32: map.pci_mmio32_beside(ram_size, &ecam),
        ecam,
        pci_mmio64: map.pci_mmio64(ram_size, platform.address_width),
        fw_cfg: platform.fw_cfg,
    })
}

/// The ACPI tables' place at the top of low RAM, where a BIOS puts them too, and the memory that they take.
fn place_acpi(tables: &acpi::Tables, pieces: &[(Gpa, u64)]) -> Result<(Gpa, Taken), BootError> {
    let len = tables.len(Zone::High).next_multiple_of(PAGE);
    let end = low_ram_end(pieces);
    let nvs = end
        .checked_sub(len)
        .filter(|&nvs| nvs > layout::HIGH_MEMORY.0)
        .ok_or(BootError::TooLittleRam)?;
    let data = nvs + acpi::NVS_LEN;
    Ok((
        Gpa(nvs),
        [
            (nvs..data, MemoryKind::AcpiNvs),
            (data..end, MemoryKind::AcpiData),
        ],
    ))
}

/// The fields of the BIOS data area that kernels still read: Linux and Xen take the end of low memory from
/// it.
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

/// Lets a kernel call the BIOS in real mode: every call returns at once and says that it failed (carry set),
/// upon which Xen, for one, takes the memory map that it was given.
pub(super) fn install_bios_calls(ram: &GuestRam) -> Result<(), BootError> {
    // push bp; mov bp, sp; or byte [bp+6], 1 (carry in the flags to be returned); pop bp; iret
    const FAIL: [u8; 9] = [0x55, 0x89, 0xe5, 0x80, 0x4e, 0x06, 0x01, 0x5d, 0xcf];
    const VECTORS: usize = 256;
    ram.write(BIOS_CALL, &FAIL)?;
    let vector = [
        BIOS_CALL_OFFSET.to_le_bytes(),
        BIOS_CALL_SEGMENT.to_le_bytes(),
    ]
    .concat();
    ram.write(Gpa(0), &vector.repeat(VECTORS))?;
    Ok(())
}
