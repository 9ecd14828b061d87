//! Which device sits where and drives which line.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::error::MachineError;
use crate::bus::{Bus, BusError, Device, SharedDevice};
use crate::config::{Irqchip, VmConfig};
use crate::cpuid::topology::apic_id;
use crate::devices::acpi_pm::{self, AcpiPm};
use crate::devices::clock::HostClock;
use crate::devices::cmos::{self, Cmos, MemorySizes};
use crate::devices::debug::{DebugExit, Debugcon};
use crate::devices::fw_cfg::{self, FwCfg, Items};
use crate::devices::i8042::I8042;
use crate::devices::io_thread::IoThread;
use crate::devices::port61::Port61;
use crate::devices::port92::Port92;
use crate::devices::post::PostPort;
use crate::devices::pvpanic::Pvpanic;
use crate::devices::serial::Serial;
use crate::irq::ioapic::{IoApic, IoApicMmio};
use crate::irq::{IrqLine, IrqSink};
use crate::layout;
use crate::life::GuestEvents;
use crate::pci::PciHost;
use crate::units::Gsi;

/// A device that a user of the library adds to the machine, at consecutive ports.
#[derive(Clone)]
pub struct ExtraPorts {
    /// The first port.
    pub first: u16,
    /// How many.
    pub count: u16,
    /// The device.
    pub device: SharedDevice,
}

impl std::fmt::Debug for ExtraPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExtraPorts")
            .field("first", &self.first)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

/// All devices on their buses.
pub(super) struct Wired {
    pub(super) ports: Bus,
    pub(super) mmio: Bus,
    /// Everything that a reset resets.
    pub(super) devices: Vec<SharedDevice>,
    /// What they take for the time.
    pub(super) clock: Arc<HostClock>,
    /// The one with the power button.
    pub(super) acpi: Arc<Mutex<AcpiPm>>,
    /// Pseudo-terminals that were opened: (device, path).
    pub(super) ptys: Vec<(String, PathBuf)>,
}

impl Wired {
    fn place<D: Device + 'static>(
        &mut self,
        device: D,
        ports: &[(u16, u64)],
    ) -> Result<Arc<Mutex<D>>, BusError> {
        let device = Arc::new(Mutex::new(device));
        let shared: SharedDevice = device.clone();
        for &(first, len) in ports {
            self.ports.register(first.into(), len, shared.clone())?;
        }
        self.devices.push(shared);
        Ok(device)
    }
}

/// Builds every device that `config` asks for. Consoles are connected to `io`, which the caller starts afterwards.
pub(super) fn wire(
    config: &VmConfig,
    extra: &[ExtraPorts],
    lines: &Arc<dyn IrqSink>,
    ioapic: Option<&Arc<IoApic>>,
    events: &GuestEvents,
    io: &mut IoThread,
) -> Result<Wired, MachineError> {
    let line = |gsi: Gsi| IrqLine::new(Arc::clone(lines), gsi);
    let clock = Arc::new(HostClock::new());
    let acpi = Arc::new(Mutex::new(AcpiPm::new(
        layout::PM1A_EVENT.start,
        layout::SLEEP_TYPE_S5,
        line(layout::SCI),
        events.clone(),
        clock.clone(),
        io.waker(),
    )));
    let mut wired = Wired {
        ports: Bus::ports(),
        mmio: Bus::mmio(),
        devices: vec![acpi.clone()],
        acpi,
        clock: Arc::clone(&clock),
        ptys: Vec::new(),
    };
    let shared: SharedDevice = wired.acpi.clone();
    for (offset, len) in [
        (acpi_pm::PM1_EVENT, 4),
        (acpi_pm::PM1_CONTROL, 2),
        (acpi_pm::TIMER, 4),
        (acpi_pm::GPE0, 4),
    ] {
        let first = u64::from(layout::PM1A_EVENT.start) + offset;
        wired.ports.register(first, len, shared.clone())?;
    }
    io.schedule(wired.acpi.clone());

    for (n, (&(base, gsi), backend)) in layout::SERIAL.iter().zip(&config.serial).enumerate() {
        let name = format!("serial{n}");
        let uart = Serial::new(&name, base, line(gsi), io.waker_for(backend));
        let uart = wired.place(uart, &[(base, layout::SERIAL_LEN)])?;
        if let Some(path) = io.connect(&name, backend, uart)? {
            wired.ptys.push((name, path));
        }
    }
    if let Some(backend) = &config.debugcon {
        let port = layout::DEBUGCON_PORT;
        let console = Debugcon::new(port, io.waker_for(backend));
        let console = wired.place(console, &[(port, 1)])?;
        if let Some(path) = io.connect("debugcon", backend, console)? {
            wired.ptys.push(("debugcon".to_owned(), path));
        }
    }
    if let Some(port) = config.debug_exit {
        wired.place(DebugExit::new(port, events.clone()), &[(port, 4)])?;
    }
    let low = config.memory.size.min(layout::LOW_RAM_MAX);
    let rtc = Cmos::new(
        layout::CMOS_PORTS.start,
        line(layout::RTC_IRQ),
        clock,
        io.waker(),
        MemorySizes {
            below_4g: low,
            above_4g: config.memory.size - low,
        },
        config.cpus.count,
    );
    let rtc = wired.place(rtc, &[(layout::CMOS_PORTS.start, cmos::PORTS)])?;
    io.schedule(rtc);
    if config.irqchip == Irqchip::Split {
        let port = layout::SYSTEM_CONTROL_B;
        wired.place(Port61::new(port), &[(port, 1)])?;
    }
    let [data, command] = layout::I8042_PORTS;
    wired.place(
        I8042::new(data, line(layout::KEYBOARD_IRQ), events.clone()),
        &[(data, 1), (command, 1)],
    )?;
    let port = layout::SYSTEM_CONTROL_A;
    wired.place(Port92::new(port, events.clone()), &[(port, 1)])?;
    let port = layout::PVPANIC_PORT;
    wired.place(Pvpanic::new(port, events.clone()), &[(port, 1)])?;
    if config.fw_cfg {
        let port = layout::FW_CFG_PORT;
        let device = FwCfg::new(port, fw_cfg_items(config));
        wired.place(device, &[(port, fw_cfg::PORTS)])?;
    }
    let port = layout::POST_PORT;
    wired.place(PostPort::new(port), &[(port, 1)])?;
    let ecam = layout::PCI_ECAM;
    let ports = layout::PCI_CONFIG_PORTS;
    let pci = wired.place(
        PciHost::new(ports.start, ecam.clone(), events.clone()),
        &[(ports.start, (ports.end - ports.start).into())],
    )?;
    wired
        .mmio
        .register(ecam.start, ecam.end - ecam.start, pci)?;
    if let Some(ioapic) = ioapic {
        let base = layout::IOAPIC.0;
        let registers: SharedDevice =
            Arc::new(Mutex::new(IoApicMmio::new(base, Arc::clone(ioapic))));
        wired
            .mmio
            .register(base, layout::IOAPIC_LEN, registers.clone())?;
        wired.devices.push(registers);
    }
    for extra in extra {
        wired
            .ports
            .register(extra.first.into(), extra.count.into(), extra.device.clone())?;
        wired.devices.push(extra.device.clone());
    }
    Ok(wired)
}

fn fw_cfg_items(config: &VmConfig) -> Items {
    let cpus = &config.cpus;
    // APIC ids rise with the vCPU's index.
    let limit = apic_id(cpus.topology, cpus.count - 1) + 1;
    let [cpus, limit] = [cpus.count, limit].map(|n| u16::try_from(n).unwrap_or(u16::MAX));
    Items::of_machine(config.memory.size, cpus, limit)
}
