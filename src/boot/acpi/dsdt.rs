//! The Differentiated System Description Table: devices that nothing enumerates.

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, AmlString, And, Arg, CreateDWordField, Device, EISAName,
    Else, Equal, IO, If, Interrupt, Local, Memory32Fixed, Method, Name, NotEqual, Or, Package,
    PackageBuilder, Path, ResourceTemplate, Return, Scope, Store, Uuid, ZERO,
};

use super::{AcpiConfig, bytes, table};
use crate::layout::{self, AddressMap};
use crate::units::Gsi;

/// Integers have 64 bits from revision 2 on.
const REVISION: u8 = 2;
/// Present, enabled, shown, working (6.3.7).
const STATUS_GOOD: u8 = 0xf;
/// The same, but not shown: Windows has no driver for it and would list it as an unknown device.
const STATUS_HIDDEN: u8 = 0xb;

pub(super) fn dsdt(config: &AcpiConfig) -> Vec<u8> {
    let [com1, com2] = layout::SERIAL;
    let processors: Vec<_> = (0..config.apic_ids.len()).map(processor).collect();
    let mut devices = vec![
        motherboard(&config.ecam),
        pci_root(config),
        serial("COM1", 1, com1),
        serial("COM2", 2, com2),
        rtc(),
        keyboard(),
        power_button(),
        pvpanic(),
    ];
    if config.fw_cfg {
        devices.push(fw_cfg());
    }
    let children = devices.iter().chain(&processors).map(|raw| raw as &dyn Aml);
    let mut aml = bytes(&Scope::new("_SB_".into(), children.collect()));
    // SLP_TYPa, SLP_TYPb, and two reserved (7.4.2).
    let s5 = config.map.sleep_type_s5;
    aml.extend(bytes(&Name::new(
        "_S5_".into(),
        &Package::new(vec![&s5, &s5, &ZERO, &ZERO]),
    )));
    table(*b"DSDT", REVISION, &aml)
}

/// AML that is ready, as a child of something else.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn device(name: &str, children: Vec<&dyn Aml>) -> Raw {
    Raw(bytes(&Device::new(name.into(), children)))
}

fn id(value: &str) -> Name {
    Name::new("_HID".into(), &EISAName::new(value))
}

fn uid(value: u32) -> Name {
    Name::new("_UID".into(), &value)
}

fn resources(children: Vec<&dyn Aml>) -> Name {
    Name::new("_CRS".into(), &ResourceTemplate::new(children))
}

fn ports(start: u16, len: u8) -> IO {
    IO::new(start, start, 1, len)
}

fn isa_interrupt(line: Gsi) -> Interrupt {
    let (consumer, edge, active_low, shared) = (true, true, false, false);
    Interrupt::new(consumer, edge, active_low, shared, line.0)
}

fn processor(index: usize) -> Raw {
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    device(
        &format!("C{index:03X}"),
        vec![
            &Name::new("_HID".into(), &AmlString::from("ACPI0007")),
            &uid(index),
        ],
    )
}

/// What no other device claims. The ECAM window must be here (PCI Firmware Specification 3.3, 4.1.2).
fn motherboard(ecam: &Range<u64>) -> Raw {
    let len = |range: &std::ops::Range<u16>| u8::try_from(range.len()).unwrap_or(u8::MAX);
    device(
        "MBRD",
        vec![
            &id("PNP0C02"),
            &uid(0),
            &resources(vec![
                &Memory32Fixed::new(true, dword(ecam.start), dword(ecam.end - ecam.start)),
                &ports(layout::SYSTEM_CONTROL_B, 1),
                &ports(layout::POST_PORT, 1),
                &ports(layout::SYSTEM_CONTROL_A, 1),
                &ports(layout::PM1A_EVENT.start, len(&layout::PM1A_EVENT)),
                &ports(layout::PM1A_CONTROL.start, len(&layout::PM1A_CONTROL)),
                &ports(layout::PM_TIMER.start, len(&layout::PM_TIMER)),
                &ports(layout::GPE0.start, len(&layout::GPE0)),
            ]),
        ],
    )
}

fn pci_root(config: &AcpiConfig) -> Raw {
    let config_ports = &layout::PCI_CONFIG_PORTS;
    let buses = AddressSpace::new_bus_number(0, layout::PCI_BUSES - 1);
    let config_len = u8::try_from(config_ports.len()).unwrap_or(u8::MAX);
    let config_io = ports(config_ports.start, config_len);
    let legacy_io = AddressSpace::new_io(0_u16, config_ports.start - 1, None);
    let io = AddressSpace::new_io(
        word(config.map.pci_io.start),
        word(config.map.pci_io.end - 1),
        None,
    );
    let memory = |range: &std::ops::Range<u64>| {
        AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            range.start,
            range.end - 1,
            None,
        )
    };
    let low = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        dword(config.pci_mmio32.start),
        dword(config.pci_mmio32.end - 1),
        None,
    );
    let high = config.pci_mmio64.as_ref().map(memory);
    let mut windows: Vec<&dyn Aml> = vec![&buses, &config_io, &legacy_io, &io, &low];
    if let Some(high) = &high {
        windows.push(high);
    }
    device(
        "PCI0",
        vec![
            &id("PNP0A08"),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &uid(0),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &resources(windows),
            &Name::new("_PRT".into(), &interrupt_routes(config.map)),
            &operating_system_capabilities(),
        ],
    )
}

/// Which line each pin of each device drives (6.2.13).
fn interrupt_routes(map: &AddressMap) -> PackageBuilder {
    const DEVICES: u8 = 32;
    const PINS: u8 = 4;
    let mut routes = PackageBuilder::new();
    for device in 0..DEVICES {
        for pin in 0..PINS {
            let address = u32::from(device) << 16 | 0xffff;
            let line = map.pci_interrupt(device, pin).0;
            // No link device: the last number is a global system interrupt.
            routes.add_element(&Package::new(vec![&address, &pin, &ZERO, &line]));
        }
    }
    routes
}

/// `_OSC` (6.2.11 and PCI Firmware Specification 3.3, 4.5): the system may run AER, PME and the PCI Express
/// capability itself.
fn operating_system_capabilities() -> Raw {
    const PCI_UUID: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
    const REVISION: u8 = 1;
    const PME: u8 = 1 << 2;
    const AER: u8 = 1 << 3;
    const CAPABILITY: u8 = 1 << 4;
    const UNKNOWN_UUID: u8 = 1 << 2;
    const UNKNOWN_REVISION: u8 = 1 << 3;
    const MASKED: u8 = 1 << 4;
    let status = Path::new("CDW1");
    let control = Path::new("CDW3");
    Raw(bytes(&Method::new(
        "_OSC".into(),
        4,
        true,
        vec![
            &CreateDWordField::new(&status, &Arg(3), &ZERO),
            &If::new(
                &Equal::new(&Arg(0), &Uuid::new(PCI_UUID)),
                vec![
                    &CreateDWordField::new(&control, &Arg(3), &8_u8),
                    &And::new(&Local(0), &control, &(PME | AER | CAPABILITY)),
                    &If::new(
                        &NotEqual::new(&Arg(1), &REVISION),
                        vec![&Or::new(&status, &status, &UNKNOWN_REVISION)],
                    ),
                    &If::new(
                        &NotEqual::new(&control, &Local(0)),
                        vec![&Or::new(&status, &status, &MASKED)],
                    ),
                    &Store::new(&control, &Local(0)),
                ],
            ),
            &Else::new(vec![&Or::new(&status, &status, &UNKNOWN_UUID)]),
            &Return::new(&Arg(3)),
        ],
    )))
}

fn serial(name: &str, number: u32, (start, line): (u16, Gsi)) -> Raw {
    let len = u8::try_from(layout::SERIAL_LEN).unwrap_or(u8::MAX);
    device(
        name,
        vec![
            &id("PNP0501"),
            &uid(number),
            &resources(vec![&ports(start, len), &isa_interrupt(line)]),
        ],
    )
}

fn rtc() -> Raw {
    let len = u8::try_from(layout::CMOS_PORTS.len()).unwrap_or(u8::MAX);
    device(
        "RTC_",
        vec![
            &id("PNP0B00"),
            &resources(vec![
                &ports(layout::CMOS_PORTS.start, len),
                &isa_interrupt(layout::RTC_IRQ),
            ]),
        ],
    )
}

/// The keyboard. Without a mouse beside it (PNP0F13) Linux does not spend time on looking for one.
fn keyboard() -> Raw {
    let [data, command] = layout::I8042_PORTS;
    device(
        "KBD_",
        vec![
            &id("PNP0303"),
            &resources(vec![
                &ports(data, 1),
                &ports(command, 1),
                &isa_interrupt(layout::KEYBOARD_IRQ),
            ]),
        ],
    )
}

/// The button itself is a fixed one (PM1a); this makes it known to systems that list devices.
fn power_button() -> Raw {
    device("PWRB", vec![&id("PNP0C0C"), &uid(0)])
}

fn pvpanic() -> Raw {
    device(
        "PEVT",
        vec![
            &Name::new("_HID".into(), &AmlString::from("QEMU0001")),
            &Name::new("_STA".into(), &STATUS_GOOD),
            &resources(vec![&ports(layout::PVPANIC_PORT, 1)]),
        ],
    )
}

/// The firmware configuration device, by the id that Linux's driver for it has.
fn fw_cfg() -> Raw {
    let len = u8::try_from(crate::devices::fw_cfg::PORTS).unwrap_or(u8::MAX);
    device(
        "FWCF",
        vec![
            &Name::new("_HID".into(), &AmlString::from("QEMU0002")),
            &Name::new("_STA".into(), &STATUS_HIDDEN),
            &resources(vec![&ports(layout::FW_CFG_PORT, len)]),
        ],
    )
}

/// Windows below 4 GiB have 32-bit addresses.
fn dword(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn word(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}
