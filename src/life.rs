//! What can happen to a VM as a whole, and the channel on which devices, vCPUs and users say so.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use crate::machine::Running;

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
    /// The guest no longer needs its old TSC frequency; the vCPU that said so waits for the new one.
    TscEmulationEnded,
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
    /// Work that needs the running machine as a whole.
    Job(Job),
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
        matches!(self, Self::Request(_) | Self::WriteStats | Self::Job(_))
    }
}

type Work = Box<dyn FnOnce(&mut Running<'_>) + Send>;

/// Work for the machine's main thread. It is done once, between two events. Clones are of the same work.
#[derive(Clone)]
pub struct Job(Arc<Mutex<Option<Work>>>);

impl Job {
    fn new(work: Work) -> Self {
        Self(Arc::new(Mutex::new(Some(work))))
    }

    /// Does it, unless it has been done.
    pub(crate) fn run(&self, machine: &mut Running<'_>) {
        let work = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(work) = work {
            work(machine);
        }
    }
}

impl PartialEq for Job {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Job {}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

/// The VM ended before the work was done.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the VM has ended")]
pub struct VmEnded;

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

    /// Has the machine's main thread do `job` with the running machine, and waits for the result. Not for that thread itself,
    /// nor for one that it waits for.
    ///
    /// # Errors
    /// If the VM ends before it is done.
    pub fn have_done<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Running<'_>) -> R + Send + 'static,
    ) -> Result<R, VmEnded> {
        let (done, result) = sync_channel(1);
        self.send(LifeEvent::Job(Job::new(Box::new(move |machine| {
            // Whoever asked waits for it, and the channel has room for one.
            let _asker_is_there = done.send(job(machine));
        }))));
        // A machine that has ended drops what it has not done, and the sender with it.
        result.recv().map_err(|_| VmEnded)
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
        assert_eq!(life.have_done(|_| ()), Err(VmEnded));
    }
}
