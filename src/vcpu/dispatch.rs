//! One exit -> the device or the module that owns it. Allocates nothing, logs nothing.

use super::platform::Platform;
use crate::bus;
use crate::hyperv::{CrashReport, WriteOutcome};
use crate::kvm::exit::Exit;
use crate::kvm::internal_error::InternalError;
use crate::life::GuestEvent;
use crate::units::Msr;

/// What becomes of the vCPU after an exit.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Enter the guest again.
    Run,
    /// KVM_RUN was interrupted by a kick.
    Interrupted,
    /// The main thread has to decide.
    Report(GuestEvent),
    /// KVM must be told of an MSR before the vCPU goes on.
    Forward(Msr, u64),
    /// The guest reports a crash.
    Crash(CrashReport),
    /// The guest reports a crash, and the parameters are in KVM's own registers.
    CrashInKvm,
    /// What the vCPU wrote has to be taken out of its dirty ring.
    DirtyRingFull,
    /// The guest needs its old TSC frequency no longer.
    EmulationEnded,
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

/// `KVM_SYSTEM_EVENT_RESET` and `KVM_SYSTEM_EVENT_CRASH` (include/uapi/linux/kvm.h).
const SYSTEM_EVENT_RESET: u32 = 2;
const SYSTEM_EVENT_CRASH: u32 = 3;

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
                // The element that ends or resets the VM is the last one. KVM hands up one element of `rep outs` per exit
                // (em_out in arch/x86/kvm/emulate.c), so no element is lost if the guest runs on.
                if platform.events.are_pending() {
                    break;
                }
            }
        }
        Exit::MmioRead { addr, data } => {
            platform.mmio.read(addr, data);
        }
        Exit::MmioWrite { addr, data } => {
            platform.mmio.write(addr, data);
        }
        Exit::Rdmsr { msr, data, error } => match bus::lock(&platform.partition).rdmsr(Msr(msr)) {
            Some(value) => (*data, *error) = (value, 0),
            None => *error = 1,
        },
        Exit::Wrmsr { msr, data, error } => {
            *error = 0;
            match bus::lock(&platform.partition).wrmsr(Msr(msr), data) {
                WriteOutcome::Done => {}
                WriteOutcome::GeneralProtection => *error = 1,
                WriteOutcome::Forward(msr, value) => return Next::Forward(msr, value),
                WriteOutcome::Crash(report) => return Next::Crash(report),
                WriteOutcome::EmulationEnded => return Next::EmulationEnded,
            }
        }
        Exit::HvHypercall {
            input,
            params,
            result,
        } => *result = platform.hypercalls.call(input, params, &platform.ram),
        // Whoever posts messages would have to know; nobody does. The vCPU goes on.
        Exit::Synic { .. } => {}
        Exit::IoapicEoi { vector } => {
            if let Some(ioapic) = &platform.ioapic {
                ioapic.eoi(vector);
            }
        }
        Exit::DirtyRingFull => return Next::DirtyRingFull,
        Exit::Interrupted => return Next::Interrupted,
        Exit::SystemEvent {
            kind: SYSTEM_EVENT_RESET,
        } => return Next::Report(GuestEvent::Reset { by: "hv-reset" }),
        Exit::SystemEvent {
            kind: SYSTEM_EVENT_CRASH,
        } => return Next::CrashInKvm,
        Exit::Shutdown => return Next::Failed(Failure::TripleFault),
        Exit::InternalError(error) => return Next::Failed(Failure::Internal(error)),
        Exit::FailEntry { reason, cpu } => return Next::Failed(Failure::Entry { reason, cpu }),
        Exit::MemoryFault { gpa, size } => return Next::Failed(Failure::Memory { gpa, size }),
        Exit::RunFailed { errno } => return Next::Failed(Failure::Run { errno }),
        // The LAPIC is always in the kernel, which handles HLT; hv-syndbg is never on; and no other event was asked for.
        Exit::Hlt => return unexpected(kvm_bindings::KVM_EXIT_HLT),
        Exit::Syndbg => return unexpected(kvm_bindings::KVM_EXIT_HYPERV),
        Exit::SystemEvent { .. } => return unexpected(kvm_bindings::KVM_EXIT_SYSTEM_EVENT),
        Exit::Unexpected { reason } => return unexpected(reason),
    }
    Next::Run
}

fn unexpected(reason: u32) -> Next {
    Next::Failed(Failure::Unexpected { reason })
}
