//! ACPI 6.5 tables for the machine that [`layout`] describes. Section numbers refer to that specification.
//!
//! [`build`] is pure: the same machine gives the same bytes, wherever they are put.

mod dsdt;
mod fadt;
mod madt;
mod srat;

#[cfg(test)]
mod tests;

use std::ops::Range;

use acpi_tables::facs::FACS;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

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
    /// The window for PCI BARs below 4 GiB.
    pub pci_mmio32: Range<u64>,
    /// The window for PCI BARs above 4 GiB.
    pub pci_mmio64: Option<Range<u64>>,
    /// Whether there is a firmware configuration device.
    pub fw_cfg: bool,
}

/// One table and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its signature.
    pub name: [u8; 4],
    /// Where it lies.
    pub gpa: Gpa,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// All tables but the RSDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// Every table; the FACS first, the XSDT last.
    pub tables: Vec<Table>,
    /// The RSDP, to be written where kernels search for it.
    pub rsdp: Vec<u8>,
    /// The first address after all tables that lie from `data` on.
    pub end: Gpa,
}

const OEM_ID: [u8; 6] = *b"HYPRNS";
const OEM_TABLE_ID: [u8; 8] = *b"HYPRNEST";
const OEM_REVISION: u32 = 1;

/// Bytes that the FACS takes (5.2.10).
pub const FACS_LEN: u64 = 64;

/// The tables, with the FACS at `nvs` (aligned to 64 bytes) and everything else from `data` on; both below 4
/// GiB.
pub fn build(config: &AcpiConfig, nvs: Gpa, data: Gpa) -> Tables {
    let mut layout = Layout {
        tables: vec![Table {
            name: *b"FACS",
            gpa: nvs,
            bytes: bytes(&FACS::new()),
        }],
        next: data.0,
    };
    let dsdt = layout.add(*b"DSDT", dsdt::dsdt(config));
    let listed = [
        layout.add(*b"FACP", bytes(&fadt::fadt(nvs, dsdt))),
        layout.add(*b"APIC", madt::madt(config)),
        layout.add(*b"MCFG", mcfg(config.map)),
        layout.add(*b"SRAT", srat::srat(config)),
        layout.add(*b"WAET", waet()),
    ];
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in listed {
        xsdt.add_entry(table.0);
    }
    let xsdt = layout.add(*b"XSDT", bytes(&xsdt));
    Tables {
        tables: layout.tables,
        rsdp: bytes(&Rsdp::new(OEM_ID, xsdt.0)),
        end: Gpa(layout.next),
    }
}

struct Layout {
    tables: Vec<Table>,
    next: u64,
}

impl Layout {
    fn add(&mut self, name: [u8; 4], bytes: Vec<u8>) -> Gpa {
        let gpa = Gpa(self.next.next_multiple_of(16));
        self.next = gpa.0 + bytes.len() as u64;
        self.tables.push(Table { name, gpa, bytes });
        gpa
    }
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
fn mcfg(map: &AddressMap) -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let last_bus = u8::try_from(layout::PCI_BUSES - 1).unwrap_or(u8::MAX);
    mcfg.add_ecam(map.ecam.start, 0, 0, last_bus);
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
