//! One exit -> the device or the module that owns it. Allocates nothing, logs nothing.

use super::platform::Platform;
use crate::kvm::exit::Exit;
use crate::kvm::internal_error::InternalError;
use crate::life::LifeEvent;

/// What becomes of the vCPU after an exit.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Enter the guest again.
    Run,
    /// KVM_RUN was interrupted: look whether somebody wants something.
    Interrupted,
    /// The main thread has to decide.
    Report(LifeEvent),
    /// Nothing can be done.
    Failed(Failure),
}

/// Why a vCPU cannot go on.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// `KVM_EXIT_SHUTDOWN`.
    TripleFault,
    /// `KVM_EXIT_INTERNAL_ERROR`.
    Internal(InternalError),
    /// `KVM_EXIT_FAIL_ENTRY`.
    Entry {
        /// The hardware's reason.
        reason: u64,
        /// Host CPU.
        cpu: u32,
    },
    /// `KVM_EXIT_MEMORY_FAULT`.
    Memory {
        /// Guest-physical address.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// KVM_RUN failed with this errno.
    Run {
        /// errno.
        errno: i32,
    },
    /// An exit that this VM did not ask for.
    Unexpected {
        /// `KVM_EXIT_*`.
        reason: u32,
    },
}

/// `KVM_SYSTEM_EVENT_RESET` (include/uapi/linux/kvm.h).
const SYSTEM_EVENT_RESET: u32 = 2;

/// Carries out one exit.
pub fn dispatch(exit: Exit<'_>, platform: &Platform) -> Next {
    match exit {
        Exit::PortIn { port, size, data } => {
            for element in data.chunks_exact_mut(size) {
                platform.ports.read(port.into(), element);
            }
        }
        Exit::PortOut { port, size, data } => {
            for element in data.chunks_exact(size) {
                platform.ports.write(port.into(), element);
            }
        }
        Exit::MmioRead { addr, data } => {
            platform.mmio.read(addr, data);
        }
        Exit::MmioWrite { addr, data } => {
            platform.mmio.write(addr, data);
        }
        Exit::IoapicEoi { vector } => {
            if let Some(ioapic) = &platform.ioapic {
                ioapic.end_of_interrupt(vector);
            }
        }
        Exit::Interrupted => return Next::Interrupted,
        Exit::Shutdown => return Next::Failed(Failure::TripleFault),
        Exit::SystemEvent {
            kind: SYSTEM_EVENT_RESET,
        } => return Next::Report(LifeEvent::GuestReset { by: "hv-reset" }),
        Exit::InternalError(error) => return Next::Failed(Failure::Internal(error)),
        Exit::FailEntry { reason, cpu } => return Next::Failed(Failure::Entry { reason, cpu }),
        Exit::MemoryFault { gpa, size } => return Next::Failed(Failure::Memory { gpa, size }),
        Exit::RunFailed { errno } => return Next::Failed(Failure::Run { errno }),
        Exit::Unexpected { reason } => return Next::Failed(Failure::Unexpected { reason }),
        _ => {}
    }
    Next::Run
}
