//! The PCI devices that the configuration asks for, in their slots.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::MachineError;
use crate::bus::Bus;
use crate::config::{Irqchip, VmConfig};
use crate::devices::char::CharBackend;
use crate::devices::io_thread::{IoThread, SharedChar};
use crate::devices::table::{BuildError, DeviceConfig, Site};
use crate::irq::ioapic::IoApic;
use crate::irq::{Doorbells, IrqLine, IrqSink, Routes, SharedLine};
use crate::kvm::memory::MemorySlots;
use crate::layout::{AddressMap, AddressWidth};
use crate::life::GuestEvents;
use crate::memory::{Dma, GuestRam};
use crate::pci::{DevFn, Requester, Slot};
use crate::units::Gsi;

/// INTA#.
const PIN_A: u8 = 0;

/// What devices and tables say of the vCPUs.
#[derive(Clone, Copy, Debug)]
pub(super) struct CpuFacts {
    /// How wide their physical addresses are.
    pub(super) address_width: AddressWidth,
    /// They have VMX.
    pub(super) vmx: bool,
}

/// What devices reach beyond themselves.
pub(super) struct Backplane<'a> {
    pub(super) map: &'a AddressMap,
    pub(super) cpu: CpuFacts,
    pub(super) ram: &'a GuestRam,
    pub(super) slots: &'a MemorySlots,
    /// Bytes of RAM that the guest is told it has.
    pub(super) memory: u64,
    pub(super) lines: Arc<dyn IrqSink>,
    /// The one in user space, of the split irqchip.
    pub(super) ioapic: Option<Arc<IoApic>>,
    pub(super) routes: &'a Routes,
    pub(super) doorbells: &'a Doorbells,
}

impl<'a> Backplane<'a> {
    /// That of a VM of `config`.
    pub(super) fn new(
        config: &VmConfig,
        cpu: CpuFacts,
        ram: &'a GuestRam,
        slots: &'a MemorySlots,
        routes: &'a Routes,
        doorbells: &'a Doorbells,
    ) -> Self {
        let ioapic = (config.irqchip == Irqchip::Split)
            .then(|| Arc::new(IoApic::new(Arc::new(routes.clone()))));
        let lines: Arc<dyn IrqSink> = match &ioapic {
            Some(ioapic) => Arc::clone(ioapic) as _,
            None => Arc::new(routes.clone()),
        };
        Self {
            map: config.machine.map(),
            cpu,
            ram,
            slots,
            memory: config.memory.size,
            lines,
            ioapic,
            routes,
            doorbells,
        }
    }
}

/// Makes all `devices` and connects them to the buses, for ports and for memory, and to `io`. Each goes into
/// the slot that is returned with it.
pub(super) fn plug(
    devices: &[DeviceConfig],
    backplane: &Backplane<'_>,
    events: &GuestEvents,
    (ports, mmio): (&Bus, &Bus),
    io: &mut IoThread,
) -> Result<Vec<(DevFn, Arc<Slot>)>, MachineError> {
    let mut lines = BTreeMap::new();
    let mut slots = Vec::new();
    let io = RefCell::new(io);
    for device in devices {
        let place = DevFn::new(device.slot, 0).expect("the configuration has slots that there are");
        let gsi = backplane.map.pci_interrupt(device.slot, PIN_A);
        let line = lines
            .entry(gsi)
            .or_insert_with(|| shared_line(backplane, gsi));
        let slot = Arc::new(slot(device, place, backplane, events, line, &io)?);
        slot.connect(ports, mmio);
        slots.push((place, slot));
    }
    Ok(slots)
}

fn shared_line(backplane: &Backplane<'_>, gsi: Gsi) -> SharedLine {
    SharedLine::new(IrqLine::new(Arc::clone(&backplane.lines), gsi))
}

fn slot(
    device: &DeviceConfig,
    place: DevFn,
    backplane: &Backplane<'_>,
    events: &GuestEvents,
    line: &SharedLine,
    io: &RefCell<&mut IoThread>,
) -> Result<Slot, MachineError> {
    let requester = |vectors: u16| {
        let vectors = (0..vectors).map(|_| backplane.routes.vector());
        let vectors = vectors.collect::<Result<Vec<_>, _>>()?;
        let dma = Dma::new(backplane.ram.clone());
        Ok(Requester::new(dma, vectors, line.holder()))
    };
    let connect = |backend: &CharBackend, line: SharedChar| {
        io.borrow_mut().connect_line(&device.id, backend, line)
    };
    let site = Site {
        place,
        ram: backplane.memory,
        doorbells: backplane.doorbells,
        requester: &requester,
        events,
        waker: &|backend| io.borrow().waker_for_line(backend),
        connect: &connect,
    };
    let id = device.id.clone();
    (device.of.row().build)(device, &site).map_err(|error| match error {
        BuildError::NoVector(source) => MachineError::NoVector { device: id, source },
        BuildError::Transport(source) => MachineError::Device { device: id, source },
        BuildError::Image(source) => MachineError::Image { device: id, source },
        BuildError::Network(source) => MachineError::Network { device: id, source },
        BuildError::Line(source) => MachineError::Line { device: id, source },
        BuildError::Console(source) => source.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Device as _;
    use crate::devices::table::DeviceType;
    use crate::irq::Controllers;
    use crate::layout::MachineType;
    use crate::life;
    use crate::memory::MemoryConfig;

    fn plug_into(routes: &Routes, count: u8) -> Result<Vec<(DevFn, Arc<Slot>)>, MachineError> {
        let config = MemoryConfig::of(1 << 20);
        let ram = GuestRam::new(&config, &[(crate::units::Gpa(0), 1 << 20)]).unwrap();
        let backplane = Backplane {
            map: MachineType::Direct1.map(),
            cpu: CpuFacts {
                address_width: AddressWidth {
                    bits: 40,
                    firmware: None,
                },
                vmx: false,
            },
            ram: &ram,
            slots: &MemorySlots::new(8),
            memory: 1 << 20,
            lines: Arc::new(routes.clone()),
            ioapic: None,
            routes,
            doorbells: &Doorbells::default(),
        };
        let devices = (1..=count).map(|slot| DeviceConfig {
            of: DeviceType::find("virtio-rng").unwrap(),
            id: format!("rng{slot}"),
            slot,
            values: BTreeMap::new(),
        });
        let devices: Vec<_> = devices.collect();
        let (events, handle, _inbox) = life::channel();
        let mut io = IoThread::new(handle).unwrap();
        let buses = (&Bus::ports(), &Bus::mmio());
        plug(&devices, &backplane, &events, buses, &mut io)
    }

    #[test]
    fn devices_are_named_for_their_places() {
        let slots = plug_into(&Routes::new(Controllers::Split, 4096), 30).unwrap();
        let names: Vec<_> = slots.iter().map(|(_, slot)| slot.name()).collect();
        assert_eq!(names[0], "pci-00:01.0");
        assert_eq!(names[29], "pci-00:1e.0");
    }

    #[test]
    fn more_vectors_than_kvm_routes_are_refused_by_the_devices_name() {
        // All pins, and three vectors: the second device has none left for its second.
        let error = plug_into(&Routes::new(Controllers::Split, 24 + 3), 2).unwrap_err();
        let text = crate::error::chain(&error);
        assert!(error.is_host(), "{text}");
        assert!(
            text.contains("rng2")
                && text.contains("fewer devices")
                && text.contains("KVM_CAP_IRQ_ROUTING"),
            "{text}"
        );
    }
}
