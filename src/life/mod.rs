//! The VM's life cycle: guest events, user requests, and the decisions that follow from both.
//!
//! - [`GuestEvents`] is held by devices and vCPUs. They report that the guest reset, ended or crashed the VM;
//!   they cannot make requests. From the report until the machine's main thread has decided, no vCPU enters
//!   the guest again: the vCPU that made the access sees the pending event before its next KVM_RUN, see
//!   [`vcpu::thread`](crate::vcpu::thread).
//! - [`MachineHandle`] is held by whatever acts for a user: signals, the console's escape keys, the control
//!   socket.
//! - [`Inbox`] is the main thread's end of both.
//! - [`LifeState`] is the decision: a pure state machine, tested in all interleavings of a small model.

mod decision;
mod inbox;
#[cfg(test)]
mod model_tests;

use std::any::Any;
use std::sync::Arc;

use thiserror::Error;

pub use decision::{Due, LifeState, OnCrash, Outcome, RunState};
pub use inbox::{GuestEvents, Inbox, MachineHandle, ThreadWatch, channel};

use crate::hyperv::HypervCrash;

/// An event in the guest that concerns the VM as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// The guest requested a reset (keyboard controller, reset control register, hv-reset, ...).
    Reset {
        /// The device or register, for the log.
        by: &'static str,
    },
    /// The guest powered itself off (ACPI S5).
    PowerOff,
    /// The guest wrote `code` to the debug-exit port: hypernest exits with it.
    DebugExit {
        /// The byte written.
        code: u8,
    },
    /// The guest reported a panic through pvpanic.
    Panicked,
    /// The guest loaded a crash kernel (pvpanic bit 1) and continues by itself.
    CrashKernelLoaded,
    /// The guest wrote Hyper-V's crash control register.
    Crash {
        /// The vCPU that wrote it.
        vcpu: u32,
        /// The content of the crash registers.
        crash: HypervCrash,
    },
    /// The guest no longer needs its old TSC frequency; the reporting vCPU waits for the new one.
    TscEmulationEnded,
    /// A disk refused a request that the guest is not to know of: the VM is paused.
    DiskFailed {
        /// The device's id.
        device: String,
        /// The host's error.
        why: String,
    },
    /// A vCPU had a triple fault. A PC resets.
    TripleFault {
        /// Which vCPU.
        vcpu: u32,
        /// Registers, code bytes and advice, for the user.
        report: String,
    },
    /// A vCPU cannot go on (`KVM_EXIT_INTERNAL_ERROR`, a failed entry, an unknown exit).
    VcpuFailed {
        /// Which vCPU.
        vcpu: u32,
        /// Registers, code bytes and advice, for the user.
        report: String,
    },
}

impl GuestEvent {
    /// The vCPU or the disk that its kind belongs to.
    fn of(&self) -> (Option<u32>, Option<&str>) {
        match self {
            Self::Crash { vcpu, .. }
            | Self::TripleFault { vcpu, .. }
            | Self::VcpuFailed { vcpu, .. } => (Some(*vcpu), None),
            Self::DiskFailed { device, .. } => (None, Some(device)),
            _ => (None, None),
        }
    }

    /// Whether `other` uses the same slot: the same kind, and the same vCPU or disk for kinds that belong to
    /// one.
    fn same_slot(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other) && self.of() == other.of()
    }
}

/// A user's request to a running VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Stop the vCPUs, keep everything.
    Pause,
    /// Run again.
    Resume,
    /// Reset the machine as its reset button would.
    Reset,
    /// Press the power button (ACPI): the guest shuts down if it has enabled the button.
    PowerButton,
    /// End the VM now.
    Kill,
}

/// A request to the machine's main thread from outside the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserRequest {
    /// A change of the VM's life cycle.
    Life(Request),
    /// Write the exit statistics so far (SIGUSR1).
    WriteStats,
    /// Work that needs the running machine as a whole.
    Job(MachineJob),
}

/// Work for the machine's main thread. Clones share the work. Only the layer that knows the machine can
/// downcast it.
#[derive(Clone)]
pub struct MachineJob(Arc<dyn Any + Send + Sync>);

impl MachineJob {
    /// Of `work`.
    pub(crate) fn new(work: impl Any + Send + Sync) -> Self {
        Self(Arc::new(work))
    }

    /// The work, if it is a `T`.
    pub(crate) fn work<T: Any>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl PartialEq for MachineJob {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for MachineJob {}

impl std::fmt::Debug for MachineJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

/// The VM ended before the work was done.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the VM has ended")]
pub struct VmEnded;
