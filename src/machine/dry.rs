//! A machine's devices without a VM: to check whether a saved state is one of theirs, and what accesses do to
//! them.

use std::time::Duration;

use super::error::MachineError;
use super::pci_devices::{Backplane, CpuFacts};
use super::plugged::DeviceRequestError;
use super::wiring::{self, Wired};
use super::world;
use crate::bus::{self, DeviceReport, DeviceRequest};
use crate::config::VmConfig;
use crate::devices;
use crate::devices::char::CharBackend;
use crate::devices::console::without_backend;
use crate::devices::flash::Flash;
use crate::devices::io_thread::{IoThread, SharedChar};
use crate::devices::net::without_network;
use crate::irq::{Doorbells, Routes};
use crate::kvm::memory::MemorySlots;
use crate::layout::AddressWidth;
use crate::life::{self, Inbox};
use crate::machine::TransferError;
use crate::memory::{GuestRam, MemoryConfig};
use crate::state::{Sections, StateError};
use crate::units::Gpa;

/// What KVM takes on x86 (`KVM_MAX_IRQ_ROUTES`).
const MAX_ROUTES: u32 = 4096;

/// What the devices take for the guest's RAM.
const RAM: u64 = 1 << 20;

/// What the tables in fw_cfg say of the vCPUs.
const CPU: CpuFacts = CpuFacts {
    address_width: AddressWidth {
        bits: 40,
        firmware: None,
    },
    vmx: false,
};

/// As many as KVM has on x86 (`KVM_USER_MEM_SLOTS`).
const MEMORY_SLOTS: u32 = 32764;

/// The devices of a machine, connected to nothing.
pub struct DevicesWithoutVm {
    wired: Wired,
    ram: GuestRam,
    inbox: Inbox,
    /// What wakes it must be there; it does not run.
    io: IoThread,
}

impl std::fmt::Debug for DevicesWithoutVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DevicesWithoutVm").finish_non_exhaustive()
    }
}

impl DevicesWithoutVm {
    /// Those of a VM of `config`.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn new(config: &VmConfig) -> Result<Self, MachineError> {
        let nothing = || CharBackend::None;
        let mut devices = config.devices.clone();
        for device in &mut devices {
            device.remove_local();
            without_network(device);
            without_backend(device);
        }
        let config = VmConfig {
            devices,
            serial: [nothing(), nothing()],
            debugcon: config.debugcon.as_ref().map(|_| nothing()),
            ..config.clone()
        };
        let (events, handle, inbox) = life::channel();
        let routes = Routes::new(config.irqchip.into(), MAX_ROUTES);
        let mut io = IoThread::new(handle).map_err(|source| MachineError::Thread {
            what: "I/O",
            source,
        })?;
        io.keep_lines();
        let memory = MemoryConfig::of(RAM);
        let ram = GuestRam::new(&memory, &[(Gpa(0), RAM)])?;
        let doorbells = Doorbells::default();
        let slots = MemorySlots::new(MEMORY_SLOTS);
        let backplane = Backplane::new(&config, CPU, &ram, &slots, &routes, &doorbells);
        let wired = wiring::wire(&config, &[], &backplane, &events, &mut io)?;
        for device in &wired.devices {
            device.acquire().map_err(MachineError::InUse)?;
        }
        Ok(Self {
            wired,
            ram,
            inbox,
            io,
        })
    }

    /// The ports or, with `mmio`, the addresses that devices answer: first and last of each range.
    pub fn ranges(&self, mmio: bool) -> Vec<(u64, u64)> {
        let ranges = self.bus(mmio).ranges().into_iter();
        ranges.map(|(first, last, _)| (first, last)).collect()
    }

    /// A guest reads at a port or an address; false if there is no device.
    pub fn read(&self, mmio: bool, addr: u64, data: &mut [u8]) -> bool {
        self.bus(mmio).read(addr, data)
    }

    /// A guest writes to a port or an address; false if there is no device.
    pub fn write(&self, mmio: bool, addr: u64, data: &[u8]) -> bool {
        self.bus(mmio).write(addr, data)
    }

    /// The flash memory, which is empty, of a VM that starts in firmware.
    pub fn flash(&self) -> Option<&Flash> {
        self.wired.flash.as_deref()
    }

    /// The guest's RAM, which is small.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    fn bus(&self, mmio: bool) -> &bus::Bus {
        if mmio {
            &self.wired.mmio
        } else {
            &self.wired.ports
        }
    }

    /// Devices start nothing any more, as after they were made. Returns when nothing is under way.
    ///
    /// # Panics
    /// If a device has not drained in time.
    pub fn quiesce(&self) {
        let at_work = world::quiesce(&self.wired.devices, world::DRAIN_TIMEOUT);
        assert!(at_work.is_empty(), "still at work: {at_work:?}");
    }

    /// The end of [`DevicesWithoutVm::quiesce`].
    pub fn resume(&self) {
        for device in &self.wired.devices {
            device.resume();
        }
    }

    /// A user's request to the device with this id.
    ///
    /// # Errors
    /// If there is none, or it refuses.
    pub fn request(&self, id: &str, request: &DeviceRequest) -> Result<(), DeviceRequestError> {
        self.wired.plugged.request(id, request)
    }

    /// What the device with this id shows, if there is one.
    pub fn report(&self, id: &str) -> Option<DeviceReport> {
        let devices = self.wired.plugged.gauges().read();
        let device = devices.into_iter().find(|device| device.id == id);
        device.map(|device| device.report)
    }

    /// The host's end of the line of the console with this id.
    pub fn line(&self, id: &str) -> Option<SharedChar> {
        self.io.line(id)
    }

    /// The name of the first device's thread that panicked.
    pub fn panicked_thread(&self) -> Option<String> {
        self.inbox.panicked_thread()
    }

    /// Back to power-on.
    pub fn reset(&self) {
        for device in &self.wired.devices {
            device.reset();
        }
    }

    /// The state of all of them.
    ///
    /// # Errors
    /// If two devices have one name.
    pub fn save(&self) -> Result<Sections, StateError> {
        let mut sections = Sections::new();
        devices::state::save(&self.wired.devices, &self.wired.clock, &mut sections)?;
        Ok(sections)
    }

    /// Loads all of them from their sections, which are taken out.
    ///
    /// # Errors
    /// If a section is missing or invalid.
    pub fn load(&self, sections: &mut Sections) -> Result<(), StateError> {
        devices::state::load(
            &self.wired.devices,
            &self.wired.clock,
            Duration::ZERO,
            sections,
        )
    }
}

/// Loads the devices of a VM of `config`, which are connected to nothing, from their sections and takes these
/// out.
///
/// # Errors
/// If a section is missing or invalid.
pub fn check_devices(config: &VmConfig, sections: &mut Sections) -> Result<(), TransferError> {
    let devices = DevicesWithoutVm::new(config).map_err(|e| TransferError::Devices(Box::new(e)))?;
    Ok(devices.load(sections)?)
}
