//! What can happen to a VM as a whole, and the channel on which devices, vCPUs and users say so.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

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

impl LifeEvent {
    /// Whether the guest sent it, by a device that lets it run on, and may send it again and again.
    fn is_repeatable_by_guest(&self) -> bool {
        matches!(
            self,
            Self::GuestReset { .. }
                | Self::GuestPowerOff
                | Self::DebugExit { .. }
                | Self::GuestPanicked
                | Self::GuestCrashLoaded
        )
    }

    /// Whether a user sent it.
    pub fn is_from_user(&self) -> bool {
        matches!(self, Self::Request(_) | Self::WriteStats)
    }
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

/// How many events may wait. Users send few; a guest that floods the channel is told nothing by being heard more often.
const WAITING: usize = 64;

/// Sends life events. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LifeHandle(SyncSender<LifeEvent>);

impl LifeHandle {
    /// A channel; the machine keeps the receiver.
    pub fn channel() -> (Self, Receiver<LifeEvent>) {
        let (tx, rx) = sync_channel(WAITING);
        (Self(tx), rx)
    }

    /// Reports `event`. If the machine is already gone there is nobody left to care.
    ///
    /// What a guest can repeat at will is dropped while the channel is full, so that it can neither fill the host's memory
    /// nor hold up its vCPU; everything else waits until the machine has caught up, which it does without asking anybody.
    pub fn send(&self, event: LifeEvent) {
        if event.is_repeatable_by_guest() {
            let _full_or_gone = self.0.try_send(event);
        } else {
            let _gone = self.0.send(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_fill_the_channel_without_end() {
        let (life, events) = LifeHandle::channel();
        for _ in 0..10 * WAITING {
            life.send(LifeEvent::GuestPanicked);
        }
        assert_eq!(events.try_iter().count(), WAITING);
        life.send(LifeEvent::Request(Request::Kill));
        assert_eq!(events.recv(), Ok(LifeEvent::Request(Request::Kill)));
    }

    #[test]
    fn sending_to_a_machine_that_is_gone_is_no_error() {
        let (life, events) = LifeHandle::channel();
        drop(events);
        life.send(LifeEvent::GuestPanicked);
        life.send(LifeEvent::WriteStats);
    }
}
