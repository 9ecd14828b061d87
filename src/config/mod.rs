//! What a user asked for: flags and an optional TOML file, checked as a whole, every mistake reported at
//! once.

use std::path::PathBuf;

mod adapt;
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

use crate::boot::BootConfig;
use crate::cpuid::{CpuModel, Topology};
use crate::devices::char::CharBackend;
use crate::devices::table::DeviceConfig;
use crate::layout::MachineType;
use crate::life::OnCrash;
use crate::memory::MemoryConfig;
use crate::time::{Downtime, Policy};
use crate::units::{Gpa, TscKhz};

/// A whole VM, validated: building it can still fail for lack of a host capability, but not for nonsense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmConfig {
    /// The VM's name: the run directory and the control socket are named for it.
    pub name: String,
    /// What the VM is as a board.
    pub machine: MachineType,
    /// Guest RAM.
    pub memory: MemoryConfig,
    /// Virtual processors.
    pub cpus: CpuConfig,
    /// Where they run.
    pub pins: Pins,
    /// What starts in the guest.
    pub boot: BootConfig,
    /// COM1 and COM2.
    pub serial: [CharBackend; 2],
    /// Where the interrupt controllers live.
    pub irqchip: Irqchip,
    /// The debug-exit device's port, if wanted: a byte written ends the VM with that exit code.
    pub debug_exit: Option<u16>,
    /// The debug console at port 0x402, if wanted.
    pub debugcon: Option<CharBackend>,
    /// PCI devices.
    pub devices: Vec<DeviceConfig>,
    /// The firmware configuration device (fw_cfg).
    pub fw_cfg: bool,
    /// Entries of each vCPU's dirty ring; 0: none, KVM keeps bitmaps; none said: a ring where KVM has them.
    pub dirty_ring_size: Option<u32>,
    /// What to do when the guest reports a crash through Hyper-V's crash MSRs or pvpanic.
    pub on_crash: OnCrash,
    /// What to do when a vCPU has a triple fault.
    pub on_triple_fault: OnTripleFault,
    /// Seconds from SIGTERM, which presses the power button, to the VM's end; none: no limit.
    pub stop_timeout: Option<u32>,
    /// The guest's TSC and clocks.
    pub time: TimeConfig,
    /// Where the exit statistics are written at the end and on SIGUSR1.
    pub stats: Option<PathBuf>,
    /// Hyper-V enlightenments, not yet resolved against what the host can do.
    pub hv: crate::hyperv::EnlightenmentRequest,
    /// Show KVM's own paravirtual leaves; `None`: where a Linux guest would have no clock of Hyper-V's.
    pub kvm_leaves: Option<bool>,
}

impl VmConfig {
    /// The pieces of guest RAM, low to high: (first address, length).
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
    /// Which CPU the guest sees.
    pub model: CpuModel,
    /// Features of the model that the guest does not see, by name.
    pub without: Vec<&'static str>,
    /// Show VMX or SVM to the guest.
    pub nested: bool,
}

/// The guest's TSC and clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeConfig {
    /// The TSC's frequency; none means the host's.
    pub khz: Option<TscKhz>,
    /// What becomes of the frequency on a host that has another.
    pub on_change: Policy,
    /// What becomes of the time during which the VM is saved or on its way.
    pub downtime: Downtime,
}

/// Where the interrupt controllers live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irqchip {
    /// LAPIC, I/O APIC, PIC and PIT in KVM.
    Kernel,
    /// LAPIC in KVM; the I/O APIC in hypernest; no PIC, no PIT (`KVM_CAP_SPLIT_IRQCHIP`).
    Split,
}

/// What to do when a vCPU has a triple fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTripleFault {
    /// Reset the machine, as a PC's chipset does.
    Reset,
    /// End the VM with a report.
    Stop,
}
