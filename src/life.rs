//! What can happen to a VM as a whole, and the channel on which devices, vCPUs and users say so.

use std::sync::mpsc::{Receiver, Sender, channel};

/// Something that changes the VM's life cycle. The machine's main thread acts on it; nobody else does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LifeEvent {
    /// The guest asked for a reset (keyboard controller, ACPI reset register, CF9, hv-reset, ...).
    GuestReset {
        /// By what means, for the log.
        by: &'static str,
    },
    /// The guest powered itself off (ACPI S5).
    GuestPowerOff,
    /// The guest wrote `code` to the debug-exit port: hypernest ends with that exit code.
    DebugExit {
        /// The byte written.
        code: u8,
    },
    /// The guest reported a panic through pvpanic.
    GuestPanicked,
    /// The guest loaded a crash kernel (pvpanic bit 1): it reports, but goes on by itself.
    GuestCrashLoaded,
    /// The guest wrote Hyper-V's crash control register; the parameters are read by the vCPU that exited.
    HypervCrash(HypervCrash),
    /// A vCPU cannot go on (a triple fault, `KVM_EXIT_INTERNAL_ERROR`, a failed entry, an unknown exit). The report is for
    /// humans.
    VcpuFailed {
        /// Which vCPU.
        vcpu: u32,
        /// Registers, code bytes and advice.
        report: String,
    },
    /// A user asked for something (console keys, signals, the control socket).
    Request(Request),
    /// A user wants the exit statistics so far (SIGUSR1).
    WriteStats,
}

/// What a user can ask of a running VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Stop the vCPUs, keep everything.
    Pause,
    /// Run again.
    Resume,
    /// Reset the machine as its reset button would.
    Reset,
    /// Press the power button (ACPI): the guest shuts down if it listens.
    PowerButton,
    /// End the VM now.
    Kill,
}

/// The content of HV_X64_MSR_CRASH_P0..P4, and the message if the guest gave one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HypervCrash {
    /// P0..P4.
    pub params: [u64; 5],
    /// The text at P3 with length P4, when the guest said that there is one.
    pub message: Option<String>,
}

/// Sends life events. Cheap to clone; never blocks.
#[derive(Clone, Debug)]
pub struct LifeHandle(Sender<LifeEvent>);

impl LifeHandle {
    /// A channel; the machine keeps the receiver.
    pub fn channel() -> (Self, Receiver<LifeEvent>) {
        let (tx, rx) = channel();
        (Self(tx), rx)
    }

    /// Reports `event`. If the machine is already gone there is nobody left to care.
    pub fn send(&self, event: LifeEvent) {
        let _gone = self.0.send(event);
    }
}
