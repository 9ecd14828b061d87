//! ACPI 6.5 tables for the machine that [`layout`] describes. Section numbers refer to that specification.
//!
//! [`build`] is pure: the same machine gives the same [`Tables`], wherever they are put. They are blobs with
//! fix-ups, for two installers: a kernel that is booted directly finds them in RAM, and firmware installs
//! them by a script from fw_cfg.

mod blobs;
mod dsdt;
mod fadt;
pub mod loader;
mod madt;
mod srat;

#[cfg(test)]
mod loader_tests;
#[cfg(test)]
mod tests;

use std::ops::Range;

use acpi_tables::facs::FACS;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

pub use blobs::{Blob, Tables, Zone};

use crate::layout::{self, AddressMap};
use crate::units::Gpa;

/// What the tables depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// The vCPUs' local APIC ids, in creation order; a vCPU's ACPI processor UID is its place here.
    pub apic_ids: Vec<u32>,
    /// Whether there are 8259 interrupt controllers (and an 8254 timer on line 0).
    pub pic: bool,
    /// The pieces of RAM.
    pub ram: Vec<(Gpa, u64)>,
    /// Where everything lies.
    pub map: &'static AddressMap,
    /// The window of PCI Express configuration space, of 256 buses, below 4 GiB.
    pub ecam: Range<u64>,
    /// The window for PCI BARs below 4 GiB.
    pub pci_mmio32: Range<u64>,
    /// The window for PCI BARs above 4 GiB.
    pub pci_mmio64: Option<Range<u64>>,
    /// Whether there is a firmware configuration device.
    pub fw_cfg: bool,
}

const OEM_ID: [u8; 6] = *b"HYPRNS";
const OEM_TABLE_ID: [u8; 8] = *b"HYPRNEST";
const OEM_REVISION: u32 = 1;

/// Bytes at the start of the tables' blob that stay in use while the system runs: a page with the FACS, which
/// is aligned to 64 bytes (5.2.10). The rest is free once the tables are read.
pub const NVS_LEN: u64 = 0x1000;

/// The files of fw_cfg by which firmware knows the blobs, and the script that installs them, in QEMU.
pub const FILES: [&str; 3] = [RSDP_FILE, TABLES_FILE, loader::SCRIPT];
const TABLES_FILE: &str = "etc/acpi/tables";
const RSDP_FILE: &str = "etc/acpi/rsdp";

// Offsets of the checksum and of the entries in tables with the standard header (5.2.6, 5.2.8).
const CHECKSUM: u32 = 9;
const XSDT_ENTRIES: u32 = 36;
// Offsets and lengths in the RSDP (5.2.5.3): the first checksum is that of ACPI 1.0.
const RSDP_CHECKSUM: u32 = 8;
const RSDP_LEN_1: u32 = 20;
const RSDP_XSDT: u32 = 24;
const RSDP_EXTENDED_CHECKSUM: u32 = 32;
const RSDP_LEN: u32 = 36;

// The blobs by index.
const TABLES: usize = 0;
const RSDP: usize = 1;

/// The tables of the machine.
pub fn build(config: &AcpiConfig) -> Tables {
    let blob = |file, align, zone| Blob {
        file,
        align,
        zone,
        bytes: Vec::new(),
    };
    let page = u32::try_from(NVS_LEN).expect("a page");
    let mut tables = Tables {
        blobs: vec![
            blob(TABLES_FILE, page, Zone::High),
            blob(RSDP_FILE, 16, Zone::Bios),
        ],
        fixups: Vec::new(),
    };
    let facs = tables.add(TABLES, &bytes(&FACS::new()));
    tables.blobs[TABLES]
        .bytes
        .resize(usize::try_from(NVS_LEN).expect("a page"), 0);

    let dsdt = add(&mut tables, &dsdt::dsdt(config), &[]);
    let fadt = bytes(&fadt::fadt(facs, dsdt));
    let listed = [
        add(&mut tables, &fadt, &fadt::POINTERS),
        add(&mut tables, &madt::madt(config), &[]),
        add(&mut tables, &mcfg(&config.ecam), &[]),
        add(&mut tables, &srat::srat(config), &[]),
        add(&mut tables, &waet(), &[]),
    ];
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in listed {
        xsdt.add_entry(table.into());
    }
    let entries = (XSDT_ENTRIES..).step_by(8).map(|at| (at, 8));
    let entries: Vec<_> = entries.take(listed.len()).collect();
    let xsdt = add(&mut tables, &bytes(&xsdt), &entries);

    tables.add(RSDP, &bytes(&Rsdp::new(OEM_ID, xsdt.into())));
    tables.pointer(RSDP, RSDP_XSDT, 8, TABLES);
    tables.checksum(RSDP, RSDP_CHECKSUM, 0, RSDP_LEN_1);
    tables.checksum(RSDP, RSDP_EXTENDED_CHECKSUM, 0, RSDP_LEN);
    tables
}

/// Adds a table with the standard header to the tables' blob. `pointers`: offset and size of each of its
/// fields with the offset of another table. Returns the table's offset.
fn add(tables: &mut Tables, bytes: &[u8], pointers: &[(u32, u8)]) -> u32 {
    let start = tables.add(TABLES, bytes);
    for &(at, size) in pointers {
        tables.pointer(TABLES, start + at, size, TABLES);
    }
    tables.checksum(TABLES, start + CHECKSUM, start, blobs::offset(bytes.len()));
    start
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A table with the standard header and `body`.
fn table(name: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    /// Bytes in the standard header (5.2.6).
    const HEADER_LEN: u32 = 36;
    let mut table = Sdt::new(
        name,
        HEADER_LEN,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(body);
    table.as_slice().to_vec()
}

/// The PCI Express configuration space (PCI Firmware Specification 3.3, 4.1.2).
fn mcfg(ecam: &Range<u64>) -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let last_bus = u8::try_from(layout::PCI_BUSES - 1).unwrap_or(u8::MAX);
    mcfg.add_ecam(ecam.start, 0, 0, last_bus);
    bytes(&mcfg)
}

/// Windows ACPI Emulated Devices Table: Windows need not work around hardware bugs in the RTC and the PM
/// timer, which spares an exit or two per access.
fn waet() -> Vec<u8> {
    const RTC_GOOD: u32 = 1 << 0;
    const PM_TIMER_GOOD: u32 = 1 << 1;
    table(*b"WAET", 1, &(RTC_GOOD | PM_TIMER_GOOD).to_le_bytes())
}

/// Collects the entries that MADT and SRAT consist of.
#[derive(Default)]
struct Entries(Vec<u8>);

impl Entries {
    fn push(&mut self, entry: &dyn Aml) {
        entry.to_aml_bytes(&mut self.0);
    }

    /// An entry of `kind` with `fields` after its type and length.
    fn raw(&mut self, kind: u8, fields: &[&[u8]]) {
        let len: usize = 2 + fields.iter().map(|field| field.len()).sum::<usize>();
        // Entries defined by ACPI have at most 96 bytes.
        let len = u8::try_from(len).unwrap_or(u8::MAX);
        self.0.vec(&[kind, len]);
        for field in fields {
            self.0.vec(field);
        }
    }
}

/// The largest APIC id that entries with 8-bit ids may name; 255 means all (5.2.12.2).
const XAPIC_ID_MAX: u32 = 254;
