//! Dispatches one exit to the device or the module that owns it. Allocates nothing, logs nothing.

use super::platform::{Buses, VcpuPlatform};
use crate::bus;
use crate::hyperv::{CrashReport, WriteOutcome};
use crate::kvm::exit::Exit;
use crate::kvm::internal_error::InternalError;
use crate::life::GuestEvent;
use crate::units::Msr;

/// The vCPU thread's action after an exit.
#[derive(Debug, PartialEq, Eq)]
pub enum AfterExit {
    /// Enter the guest again.
    Run,
    /// KVM_RUN was interrupted by a kick.
    Interrupted,
    /// The main thread has to decide.
    Report(GuestEvent),
    /// Set an MSR in KVM before the vCPU continues.
    Forward(Msr, u64),
    /// The guest reports a crash.
    Crash(CrashReport),
    /// The guest reports a crash, and the parameters are in KVM's own registers.
    CrashInKvm,
    /// Harvest the vCPU's dirty ring.
    DirtyRingFull,
    /// The guest needs its old TSC frequency no longer.
    EmulationEnded,
    /// The vCPU cannot continue.
    Failed(Failure),
}

/// Why a vCPU cannot continue.
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
    /// An exit that this VM did not enable.
    Unexpected {
        /// `KVM_EXIT_*`.
        reason: u32,
    },
}

/// `KVM_SYSTEM_EVENT_RESET` and `KVM_SYSTEM_EVENT_CRASH` (include/uapi/linux/kvm.h).
const SYSTEM_EVENT_RESET: u32 = 2;
const SYSTEM_EVENT_CRASH: u32 = 3;

/// Handles one exit.
pub fn dispatch(exit: Exit<'_>, platform: &VcpuPlatform, buses: &mut Buses) -> AfterExit {
    match exit {
        Exit::PortIn { port, size, data } => {
            for element in data.chunks_exact_mut(size) {
                buses.ports.read(port.into(), element);
            }
        }
        Exit::PortOut { port, size, data } => {
            for element in data.chunks_exact(size) {
                buses.ports.write(port.into(), element);
                // The element that ends or resets the VM is the last one. KVM exits once per element of
                // `rep outs` (em_out in arch/x86/kvm/emulate.c), so no element is lost if the guest
                // continues.
                if platform.events.are_pending() {
                    break;
                }
            }
        }
        Exit::MmioRead { addr, data } => {
            buses.mmio.read(addr, data);
        }
        Exit::MmioWrite { addr, data } => {
            buses.mmio.write(addr, data);
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
                WriteOutcome::Forward(msr, value) => return AfterExit::Forward(msr, value),
                WriteOutcome::Crash(report) => return AfterExit::Crash(report),
                WriteOutcome::EmulationEnded => return AfterExit::EmulationEnded,
            }
        }
        Exit::HvHypercall {
            input,
            params,
            result,
        } => *result = platform.hypercalls.call(input, params, &platform.ram),
        // Only a module that posts messages would need this exit, and there is none. The vCPU continues.
        Exit::Synic { .. } => {}
        Exit::IoapicEoi { vector } => {
            if let Some(ioapic) = &platform.ioapic {
                ioapic.eoi(vector);
            }
        }
        Exit::DirtyRingFull => return AfterExit::DirtyRingFull,
        Exit::Interrupted => return AfterExit::Interrupted,
        Exit::SystemEvent {
            kind: SYSTEM_EVENT_RESET,
        } => return AfterExit::Report(GuestEvent::Reset { by: "hv-reset" }),
        Exit::SystemEvent {
            kind: SYSTEM_EVENT_CRASH,
        } => return AfterExit::CrashInKvm,
        Exit::Shutdown => return AfterExit::Failed(Failure::TripleFault),
        Exit::InternalError(error) => return AfterExit::Failed(Failure::Internal(error)),
        Exit::FailEntry { reason, cpu } => {
            return AfterExit::Failed(Failure::Entry { reason, cpu });
        }
        Exit::MemoryFault { gpa, size } => return AfterExit::Failed(Failure::Memory { gpa, size }),
        Exit::RunFailed { errno } => return AfterExit::Failed(Failure::Run { errno }),
        // The LAPIC is always in the kernel, which handles HLT; hv-syndbg is never on; and no other exit is
        // enabled.
        Exit::Hlt => return unexpected(kvm_bindings::KVM_EXIT_HLT),
        Exit::Syndbg => return unexpected(kvm_bindings::KVM_EXIT_HYPERV),
        Exit::SystemEvent { .. } => return unexpected(kvm_bindings::KVM_EXIT_SYSTEM_EVENT),
        Exit::Unexpected { reason } => return unexpected(reason),
    }
    AfterExit::Run
}

fn unexpected(reason: u32) -> AfterExit {
    AfterExit::Failed(Failure::Unexpected { reason })
}
