//! Why a machine could not be built or could not continue.

use thiserror::Error;

use super::transfer::TransferError;
use super::vm::VmError;
use super::world::NotStopped;
use crate::block::raw::RawError;
use crate::boot::BootError;
use crate::bus::BusError;
use crate::cpuid::CpuidProblem;
use crate::devices::char::CharError;
use crate::devices::flash::FlashError;
use crate::error::bullets;
use crate::hyperv;
use crate::irq::NoVector;
use crate::kvm::KvmError;
use crate::kvm::host::HostError;
use crate::memory::MemoryError;
use crate::vcpu::create::CreateError;
use crate::vcpu::stats::ExitStatsError;
use crate::virtio::transport::pci::TransportError;

/// Why a restored VM cannot be reset, and what to do.
pub(super) const WITHOUT_BOOT_FILES: &str = "it was restored without its kernel, and no file of this host \
     is used for it; give `hypernest restore` or `hypernest run --incoming` the flag --kernel FILE (with \
     --initrd and --module if it requires them)";

/// Why a machine could not be built or could not continue.
#[derive(Debug, Error)]
pub enum MachineError {
    /// KVM cannot be used on this host.
    #[error("cannot use KVM")]
    Host(#[from] HostError),
    /// The host lacks something that the configuration requires.
    #[error(
        "this host cannot run the VM as configured:{}{}",
        bullets(.0),
        workaround(.0).map_or(String::new(), |text| format!("\n{text}"))
    )]
    Impossible(Vec<Impossible>),
    /// Guest RAM could not be created.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A vCPU is to run on a CPU that is not available.
    #[error(
        "cannot run a vCPU on CPU {0} (--pin): this host has no such CPU online, or the process's cpuset \
         lacks it"
    )]
    NoCpu(u16),
    /// RAM could not be discarded for a reset.
    #[error("cannot discard the guest's RAM")]
    Discard(#[source] std::io::Error),
    /// A device could still write to the guest's RAM.
    #[error("cannot reset the VM")]
    NotStopped(#[from] NotStopped),
    /// Two devices at one address.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// A console could not be opened.
    #[error(transparent)]
    Char(#[from] CharError),
    /// The kernel, the initrd or a module could not be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The flash memory could not be made.
    #[error(transparent)]
    Flash(Box<FlashError>),
    /// A restored VM whose boot files were not saved with it.
    #[error("cannot reset the VM: {WITHOUT_BOOT_FILES}")]
    NoBootFiles,
    /// A VM that started in firmware came without it.
    #[error("cannot continue the VM: its firmware did not come with it")]
    NoFirmware,
    /// The VM in KVM could not be created.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A vCPU in KVM could not be created.
    #[error(transparent)]
    Vcpu(#[from] CreateError),
    /// One of our own KVM wrappers failed.
    #[error("cannot set up the VM")]
    Kvm(#[from] KvmError),
    /// KVM's statistics are not available.
    #[error("cannot count the vCPUs' exits")]
    Counters(#[from] crate::kvm::stats::StatsError),
    /// The exit statistics could not be written.
    #[error(transparent)]
    Stats(#[from] ExitStatsError),
    /// A saved VM could not be restored.
    #[error("cannot restore the VM")]
    Restore(#[from] Box<TransferError>),
    /// More interrupts than KVM delivers.
    #[error("cannot allocate interrupts for the device {device}: use fewer devices")]
    NoVector {
        /// The device's id.
        device: String,
        /// The cause.
        source: NoVector,
    },
    /// A PCI device could not be created.
    #[error("cannot create the device {device}")]
    Device {
        /// The device's id.
        device: String,
        /// The cause.
        source: TransportError,
    },
    /// A disk's image could not be used.
    #[error("cannot create the device {device}")]
    Image {
        /// The device's id.
        device: String,
        /// The cause.
        source: RawError,
    },
    /// A card's network could not be used.
    #[error("cannot create the device {device}")]
    Network {
        /// The device's id.
        device: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A console's line could not be made.
    #[error("cannot create the device {device}")]
    Line {
        /// The device's id.
        device: String,
        /// The cause.
        source: std::io::Error,
    },
    /// Another process uses what a device needs for itself, or the host refuses it.
    #[error("cannot run the VM here")]
    InUse(#[source] std::io::Error),
    /// A thread or a descriptor could not be created.
    #[error("cannot start the {what} thread")]
    Thread {
        /// The thread.
        what: &'static str,
        /// The kernel's error.
        source: std::io::Error,
    },
}

/// A requirement that the host does not fulfil.
#[derive(Debug, Error)]
pub enum Impossible {
    /// An enlightenment.
    #[error("{0}")]
    Hyperv(hyperv::EnlightenmentProblem),
    /// The CPU model or VMX/SVM.
    #[error("{0}")]
    Cpuid(CpuidProblem),
    /// A property that the guest of a saved VM was promised.
    #[error("{0}")]
    Promise(super::promise::Mismatch),
    /// The frequency of the TSC.
    #[error("{0}")]
    Time(crate::time::TscRefusal),
    /// No clock for a guest without a PIT.
    #[error(
        "with --irqchip split there is no PIT, so the guest needs KVM's clock (omit --kvm-leaves false) \
         or Hyper-V's (hv-vpindex, hv-time and hv-frequencies); a stock Linux would hang without one"
    )]
    NoClock,
}

impl MachineError {
    /// Whether the cause is a mistake in the configuration.
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Boot(e) if e.is_configuration())
    }

    /// Whether the cause is a missing capability of the host.
    pub fn is_host(&self) -> bool {
        matches!(
            self,
            Self::Host(_) | Self::Impossible(_) | Self::NoCpu(_) | Self::NoVector { .. }
        )
    }
}

/// A workaround: how to start a VM that can run on a host with these problems.
pub fn workaround(items: &[Impossible]) -> Option<String> {
    let masks: Vec<_> = items
        .iter()
        .flat_map(|item| match item {
            Impossible::Promise(mismatch) => mismatch.masks(),
            _ => Vec::new(),
        })
        .map(|name| format!(",-{name}"))
        .collect();
    (!masks.is_empty()).then(|| {
        format!(
            "a guest keeps the CPU that it was started with; to run on this host as well, start it \
             with --cpu MODEL{}",
            masks.concat()
        )
    })
}
