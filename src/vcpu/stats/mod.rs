//! Exit statistics: the number of each vCPU's exits to user space, their reasons, and their durations.
//!
//! Each vCPU's thread owns a [`Recorder`] and writes plain counters through it, without a lock and without
//! allocating; other threads read them through a [`Reader`], at any time and without stopping the vCPU. A
//! [`StatsReport`] writes them as JSON and as an HDR histogram log.

mod bucket;
mod clock;
mod cost;
mod counters;
mod report;
mod snapshot;

pub use clock::{ExitClock, Start};
pub use cost::{Cost, cost};
pub use counters::{Reader, Recorder};
pub use report::{ExitStatsError, StatsReport};
pub use snapshot::{CountersSnapshot, ReasonCounts, Summary};

use crate::kvm::exit::Exit;

/// Why a vCPU exited to user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ExitReason {
    /// `in`.
    PortIn,
    /// `out`.
    PortOut,
    /// A load from an address without RAM.
    MmioRead,
    /// A store to an address without RAM.
    MmioWrite,
    /// RDMSR of a register that hypernest owns.
    Rdmsr,
    /// WRMSR of a register that hypernest owns.
    Wrmsr,
    /// The guest reconfigured its SynIC.
    Synic,
    /// A Hyper-V hypercall that KVM leaves to user space.
    Hypercall,
    /// A synthetic-debugger register.
    Syndbg,
    /// HLT.
    Hlt,
    /// Triple fault.
    Shutdown,
    /// Reset or crash through Hyper-V's registers.
    SystemEvent,
    /// End of interrupt for the user-space I/O APIC.
    IoapicEoi,
    /// The vCPU's dirty ring was full.
    DirtyRingFull,
    /// A signal, or a request to the vCPU to stop.
    Interrupted,
    /// KVM could not continue.
    InternalError,
    /// The CPU refused to enter the guest.
    EntryFailed,
    /// Memory that KVM could not map.
    MemoryFault,
    /// KVM_RUN failed.
    RunFailed,
    /// Any other.
    Unexpected,
}

impl ExitReason {
    /// All reasons, in order.
    pub const ALL: [Self; 20] = [
        Self::PortIn,
        Self::PortOut,
        Self::MmioRead,
        Self::MmioWrite,
        Self::Rdmsr,
        Self::Wrmsr,
        Self::Synic,
        Self::Hypercall,
        Self::Syndbg,
        Self::Hlt,
        Self::Shutdown,
        Self::SystemEvent,
        Self::IoapicEoi,
        Self::DirtyRingFull,
        Self::Interrupted,
        Self::InternalError,
        Self::EntryFailed,
        Self::MemoryFault,
        Self::RunFailed,
        Self::Unexpected,
    ];

    /// The reason of `exit`.
    pub fn of(exit: &Exit<'_>) -> Self {
        match exit {
            Exit::PortIn { .. } => Self::PortIn,
            Exit::PortOut { .. } => Self::PortOut,
            Exit::MmioRead { .. } => Self::MmioRead,
            Exit::MmioWrite { .. } => Self::MmioWrite,
            Exit::Rdmsr { .. } => Self::Rdmsr,
            Exit::Wrmsr { .. } => Self::Wrmsr,
            Exit::Synic { .. } => Self::Synic,
            Exit::HvHypercall { .. } => Self::Hypercall,
            Exit::Syndbg => Self::Syndbg,
            Exit::Hlt => Self::Hlt,
            Exit::Shutdown => Self::Shutdown,
            Exit::SystemEvent { .. } => Self::SystemEvent,
            Exit::IoapicEoi { .. } => Self::IoapicEoi,
            Exit::DirtyRingFull => Self::DirtyRingFull,
            Exit::Interrupted => Self::Interrupted,
            Exit::InternalError(_) => Self::InternalError,
            Exit::FailEntry { .. } => Self::EntryFailed,
            Exit::MemoryFault { .. } => Self::MemoryFault,
            Exit::RunFailed { .. } => Self::RunFailed,
            Exit::Unexpected { .. } => Self::Unexpected,
        }
    }

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::PortIn => "port-in",
            Self::PortOut => "port-out",
            Self::MmioRead => "mmio-read",
            Self::MmioWrite => "mmio-write",
            Self::Rdmsr => "rdmsr",
            Self::Wrmsr => "wrmsr",
            Self::Synic => "synic",
            Self::Hypercall => "hypercall",
            Self::Syndbg => "syndbg",
            Self::Hlt => "hlt",
            Self::Shutdown => "shutdown",
            Self::SystemEvent => "system-event",
            Self::IoapicEoi => "ioapic-eoi",
            Self::DirtyRingFull => "dirty-ring-full",
            Self::Interrupted => "interrupted",
            Self::InternalError => "internal-error",
            Self::EntryFailed => "entry-failed",
            Self::MemoryFault => "memory-fault",
            Self::RunFailed => "run-failed",
            Self::Unexpected => "unexpected",
        }
    }
}

#[cfg(test)]
mod tests;
