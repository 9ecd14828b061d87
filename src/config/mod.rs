//! The user's settings: flags and an optional TOML file, validated as a whole, all problems reported at once.

use std::path::PathBuf;

mod adapt;
mod boot;
mod build;
mod cpu;
mod devices;
mod draft;
mod endpoints;
mod file;
mod flags;
mod host;
mod hv;
mod parse;
mod placement;
mod problem;
mod saved_devices;
mod setting;
mod show;
mod topology;

pub use adapt::{Adapted, adapt};
pub use build::{Checked, build};
pub use endpoints::Endpoint;
pub use file::ConfigFile;
pub use flags::{Flags, LocalFlags};
pub use host::HostLimits;
pub use parse::{is_name, parse_size, show_size};
pub use placement::Pins;
pub use problem::{ConfigError, Origin, Problem};
pub use setting::{SETTINGS, Setting, Shape};

use crate::boot::Boot;
use crate::cpuid::{CpuModel, Topology};
use crate::devices::char::CharBackend;
use crate::devices::table::DeviceConfig;
use crate::layout::MachineType;
use crate::life::OnCrash;
use crate::memory::MemoryConfig;
use crate::time::{Downtime, Policy};
use crate::units::{Gpa, TscKhz};

/// The validated configuration of a VM: building it can still fail for a missing host capability, but not for
/// an invalid value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmConfig {
    /// The VM's name: the run directory and the control socket are named for it.
    pub name: String,
    /// The machine type.
    pub machine: MachineType,
    /// Guest RAM.
    pub memory: MemoryConfig,
    /// Virtual processors.
    pub cpus: CpuConfig,
    /// The host's CPUs for the vCPUs.
    pub pins: Pins,
    /// What starts in the guest.
    pub boot: Boot,
    /// COM1 and COM2.
    pub serial: [CharBackend; 2],
    /// The location of the interrupt controllers.
    pub irqchip: Irqchip,
    /// The debug-exit device's port, if it exists: a byte written ends the VM with that exit code.
    pub debug_exit: Option<u16>,
    /// The debug console at port 0x402, if it exists.
    pub debugcon: Option<CharBackend>,
    /// PCI devices.
    pub devices: Vec<DeviceConfig>,
    /// The firmware configuration device (fw_cfg).
    pub fw_cfg: bool,
    /// Entries of each vCPU's dirty ring; 0: none, KVM keeps bitmaps; `None`: a ring if KVM supports it.
    pub dirty_ring_size: Option<u32>,
    /// The reaction to a crash report through Hyper-V's crash MSRs or pvpanic.
    pub on_crash: OnCrash,
    /// The reaction to a triple fault.
    pub on_triple_fault: OnTripleFault,
    /// Seconds from SIGTERM, which presses the power button, to the VM's end; `None`: no limit.
    pub stop_timeout: Option<u32>,
    /// The guest's TSC and clocks.
    pub time: TimeConfig,
    /// The file for the exit statistics, written at the end and on SIGUSR1.
    pub stats: Option<PathBuf>,
    /// Hyper-V enlightenments, not yet resolved against the host's capabilities.
    pub hv: crate::hyperv::EnlightenmentRequest,
    /// Show KVM's own paravirtual leaves; `None`: if a Linux guest would have no Hyper-V clock.
    pub kvm_leaves: Option<bool>,
}

impl VmConfig {
    /// The regions of guest RAM, in ascending order: (first address, length).
    pub fn ram_ranges(&self) -> Vec<(Gpa, u64)> {
        self.machine.map().ram_ranges(self.memory.size)
    }
}

/// Virtual processors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuConfig {
    /// 1..=255.
    pub count: u32,
    /// `sockets * cores * threads == count`.
    pub topology: Topology,
    /// The CPU that the guest sees.
    pub model: CpuModel,
    /// Features of the model that the guest does not see, by name.
    pub without: Vec<&'static str>,
    /// Show VMX or SVM to the guest.
    pub nested: bool,
}

/// The guest's TSC and clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeConfig {
    /// The TSC's frequency; `None` means the host's.
    pub khz: Option<TscKhz>,
    /// The policy for a host with another frequency.
    pub on_change: Policy,
    /// The treatment of the time during which the VM is saved or migrated.
    pub downtime: Downtime,
}

/// The location of the interrupt controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irqchip {
    /// LAPIC, I/O APIC, PIC and PIT in KVM.
    Kernel,
    /// LAPIC in KVM; the I/O APIC in hypernest; no PIC, no PIT (`KVM_CAP_SPLIT_IRQCHIP`).
    Split,
}

/// The reaction to a triple fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTripleFault {
    /// Reset the machine, as a PC's chipset does.
    Reset,
    /// End the VM with a report.
    Stop,
}
