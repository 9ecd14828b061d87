//! Why a machine could not be built or could not go on.

use thiserror::Error;

use super::transfer::TransferError;
use super::vm::VmError;
use super::world::NotStopped;
use crate::boot::BootError;
use crate::bus::BusError;
use crate::cpuid::CpuidProblem;
use crate::devices::char::CharError;
use crate::error::bullets;
use crate::hyperv;
use crate::irq::NoVector;
use crate::kvm::KvmError;
use crate::kvm::host::HostError;
use crate::memory::MemoryError;
use crate::vcpu::create::CreateError;
use crate::vcpu::stats::ExitStatsError;
use crate::virtio::transport::pci::TransportError;

/// Why a machine could not be built or could not go on.
#[derive(Debug, Error)]
pub enum MachineError {
    /// KVM cannot be used on this host.
    #[error("cannot use KVM")]
    Host(#[from] HostError),
    /// The host cannot give what was asked for.
    #[error(
        "this host cannot run the VM as asked:{}{}",
        bullets(.0),
        workaround(.0).map_or(String::new(), |text| format!("\n{text}"))
    )]
    Impossible(Vec<Impossible>),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A CPU that a vCPU is to run on.
    #[error(
        "cannot run a vCPU on CPU {0} (--pin): this host has no such CPU online, or the process's cpuset \
         lacks it"
    )]
    NoCpu(u16),
    /// RAM could not be emptied for a reset.
    #[error("cannot empty the guest's RAM")]
    Discard(#[source] std::io::Error),
    /// Something could still write into the guest's RAM.
    #[error("cannot reset the VM")]
    NotStopped(#[from] NotStopped),
    /// Two devices at one address.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// A console.
    #[error(transparent)]
    Char(#[from] CharError),
    /// The kernel, the initrd or a module.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A restored VM whose boot files were not saved with it.
    #[error(
        "cannot reset the VM: it came without its kernel, and no file of this host is taken for it; give \
         `hypernest restore` or `hypernest run --incoming` the flag --kernel FILE (with --initrd and \
         --module as it needs them)"
    )]
    NoBootFiles,
    /// The VM in KVM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A vCPU in KVM.
    #[error(transparent)]
    Vcpu(#[from] CreateError),
    /// One of our own KVM wrappers failed.
    #[error("cannot set up the VM")]
    Kvm(#[from] KvmError),
    /// KVM's own statistics.
    #[error("cannot count the vCPUs' exits")]
    Counters(#[from] crate::kvm::stats::StatsError),
    /// The exit statistics.
    #[error(transparent)]
    Stats(#[from] ExitStatsError),
    /// A saved VM could not be restored.
    #[error("cannot restore the VM")]
    Restore(#[from] Box<TransferError>),
    /// More interrupts than KVM delivers.
    #[error("cannot give the device {device} its interrupts")]
    NoVector {
        /// Its id.
        device: String,
        /// Why.
        source: NoVector,
    },
    /// A PCI device.
    #[error("cannot make the device {device}")]
    Device {
        /// Its id.
        device: String,
        /// Why.
        source: TransportError,
    },
    /// A thread or a descriptor.
    #[error("cannot start the {what} thread")]
    Thread {
        /// Which.
        what: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// One thing that the host cannot give.
#[derive(Debug, Error)]
pub enum Impossible {
    /// An enlightenment.
    #[error("{0}")]
    Hyperv(hyperv::EnlightenmentProblem),
    /// The CPU model or VMX/SVM.
    #[error("{0}")]
    Cpuid(CpuidProblem),
    /// What the guest of a saved VM was promised.
    #[error("{0}")]
    Promise(super::promise::Mismatch),
    /// The frequency of the TSC.
    #[error("{0}")]
    Time(crate::time::TscRefusal),
    /// No clock for a guest without a PIT.
    #[error(
        "with --irqchip split there is no PIT, so the guest needs KVM's clock (leave out --kvm-leaves \
         false) or Hyper-V's (hv-vpindex, hv-time and hv-frequencies); a stock Linux would hang without"
    )]
    NoClock,
}

impl MachineError {
    /// Whether the host lacks something, as opposed to something having gone wrong.
    pub fn is_host(&self) -> bool {
        matches!(
            self,
            Self::Host(_) | Self::Impossible(_) | Self::NoCpu(_) | Self::NoVector { .. }
        )
    }
}

/// How to start a VM that can run where one with these problems cannot.
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
            "a guest keeps the CPU that it was started with; to run on this host, too, it has to be started \
             with --cpu MODEL{}",
            masks.concat()
        )
    })
}
