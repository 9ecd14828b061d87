//! Which device sits where and drives which line.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::board;
use super::error::MachineError;
use super::extra_ports::ExtraPorts;
use super::pci_devices::{self, Backplane};
use super::plugged::Plugged;
use crate::bus::{Bus, BusError, Device, LockedDevice, Region, SharedDevice, lock};
use crate::config::{Irqchip, VmConfig};
use crate::devices::acpi_pm::AcpiPm;
use crate::devices::clock::HostClock;
use crate::devices::cmos::{self, Cmos, MemorySizes};
use crate::devices::debug::{DebugExit, Debugcon};
use crate::devices::flash::Flash;
use crate::devices::i8042::{self, I8042};
use crate::devices::io_thread::IoThread;
use crate::devices::port61::Port61;
use crate::devices::port92::Port92;
use crate::devices::post::PostPort;
use crate::devices::pvpanic::Pvpanic;
use crate::devices::serial::Serial;
use crate::irq::IrqLine;
use crate::irq::ioapic::IoApicMmio;
use crate::layout;
use crate::life::GuestEvents;
use crate::units::Gsi;

/// All devices on their buses.
pub(super) struct Wired {
    pub(super) ports: Bus,
    pub(super) mmio: Bus,
    /// Everything that a reset resets.
    pub(super) devices: Vec<SharedDevice>,
    /// Those of them that the configuration asks for by an id.
    pub(super) plugged: Plugged,
    /// What they take for the time.
    pub(super) clock: Arc<HostClock>,
    /// The one with the power button.
    pub(super) acpi: Arc<Mutex<AcpiPm>>,
    /// The flash memory, if it starts in firmware.
    pub(super) flash: Option<Arc<Flash>>,
    /// Pseudo-terminals that were opened: (device, path).
    pub(super) ptys: Vec<(String, PathBuf)>,
}

impl Wired {
    /// Adds `device` with these regions at the port bus: (region, first port, how many).
    pub(super) fn place<D: LockedDevice + 'static>(
        &mut self,
        device: D,
        ports: &[(Region, u16, u64)],
    ) -> Result<Arc<Mutex<D>>, BusError> {
        let device = Arc::new(Mutex::new(device));
        let name = Device::name(&*device);
        for &(region, first, len) in ports {
            self.ports
                .fixed(&name, region, first.into(), len, device.clone())?;
        }
        self.devices.push(device.clone());
        Ok(device)
    }

    /// Adds `device` with its only region at `len` ports from `first`.
    fn place_at<D: LockedDevice + 'static>(
        &mut self,
        first: u16,
        len: u64,
        device: D,
    ) -> Result<Arc<Mutex<D>>, BusError> {
        self.place(device, &[(Region::ONLY, first, len)])
    }
}

/// Builds every device that `config` asks for. Consoles are connected to `io`, which the caller starts
/// afterwards.
pub(super) fn wire(
    config: &VmConfig,
    extra: &[ExtraPorts],
    backplane: &Backplane<'_>,
    events: &GuestEvents,
    io: &mut IoThread,
) -> Result<Wired, MachineError> {
    let line = |gsi: Gsi| IrqLine::new(Arc::clone(&backplane.lines), gsi);
    let map = backplane.map;
    let clock = Arc::new(HostClock::new());
    let acpi = Arc::new(Mutex::new(AcpiPm::new(
        map.sleep_type_s5,
        line(layout::SCI),
        events.clone(),
        clock.clone(),
        io.waker(),
    )));
    let mut wired = Wired {
        ports: Bus::ports(),
        mmio: Bus::mmio(),
        devices: vec![acpi.clone()],
        plugged: Plugged::default(),
        acpi,
        clock: Arc::clone(&clock),
        flash: None,
        ptys: Vec::new(),
    };
    board::power_management(config.machine, &wired)?;
    io.schedule(wired.acpi.clone());

    for (n, (&(base, gsi), backend)) in layout::SERIAL.iter().zip(&config.serial).enumerate() {
        let name = format!("serial{n}");
        let uart = Serial::new(&name, line(gsi), io.waker_for(backend));
        let uart = wired.place_at(base, layout::SERIAL_LEN, uart)?;
        io.connect(&name, backend, uart)?;
    }
    if let Some(backend) = &config.debugcon {
        let console = Debugcon::new(io.waker_for(backend));
        let console = wired.place_at(layout::DEBUGCON_PORT, 1, console)?;
        io.connect("debugcon", backend, console)?;
    }
    if let Some(port) = config.debug_exit {
        wired.place_at(port, 4, DebugExit::new(events.clone()))?;
    }
    let low = map.low_ram(config.memory.size);
    let memory = MemorySizes {
        below_4g: low,
        above_4g: config.memory.size - low,
    };
    let (irq, cpus) = (line(layout::RTC_IRQ), config.cpus.count);
    let rtc = Cmos::new(irq, clock, io.waker(), memory, cpus);
    io.schedule(wired.place_at(layout::CMOS_PORTS.start, cmos::PORTS, rtc)?);
    if config.irqchip == Irqchip::Split {
        wired.place_at(layout::SYSTEM_CONTROL_B, 1, Port61::default())?;
    }
    let [data, command] = layout::I8042_PORTS;
    wired.place(
        I8042::new(line(layout::KEYBOARD_IRQ), events.clone()),
        &[(i8042::DATA, data, 1), (i8042::COMMAND, command, 1)],
    )?;
    let port92 = Port92::new(events.clone());
    wired.place_at(layout::SYSTEM_CONTROL_A, 1, port92)?;
    let pvpanic = Pvpanic::new(events.clone());
    wired.place_at(layout::PVPANIC_PORT, 1, pvpanic)?;
    board::flash(config, backplane, &mut wired)?;
    wired.place_at(layout::POST_PORT, 1, PostPort::default())?;
    let (pci, bridge) = board::chipset(config, &mut wired, events)?;
    if config.fw_cfg {
        board::fw_cfg(config, backplane, bridge, &mut wired)?;
    }
    let slots = pci_devices::plug(
        &config.devices,
        backplane,
        events,
        (&wired.ports, &wired.mmio),
        io,
    )?;
    wired.ptys = io.ptys().to_vec();
    for (device, (place, slot)) in config.devices.iter().zip(slots) {
        lock(&pci).plug(place, slot.clone());
        wired.plugged.add(device, slot.clone());
        wired.devices.push(slot);
    }
    if let Some(ioapic) = &backplane.ioapic {
        let registers = Arc::new(Mutex::new(IoApicMmio::new(Arc::clone(ioapic))));
        let (base, len) = (layout::IOAPIC.0, layout::IOAPIC_LEN);
        wired
            .mmio
            .fixed("ioapic", Region::ONLY, base, len, registers.clone())?;
        wired.devices.push(registers);
    }
    for extra in extra {
        let (name, handler) = (extra.device.name(), extra.handler.clone());
        let (first, count) = (extra.first.into(), extra.count.into());
        wired
            .ports
            .fixed(&name, Region::ONLY, first, count, handler)?;
        wired.devices.push(extra.device.clone());
    }
    board::check(&wired)?;
    Ok(wired)
}
