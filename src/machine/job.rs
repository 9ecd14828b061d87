//! Jobs that other threads run on the machine's main thread.

use std::sync::Mutex;
use std::sync::mpsc::sync_channel;

use super::{Machine, PowerCycle, Running};
use crate::bus::lock;
use crate::life::{MachineHandle, MachineJob, UserRequest, VmEnded};

type Task = Box<dyn FnOnce(&mut Running<'_>) + Send>;

/// A task, until it has run.
struct Work(Mutex<Option<Task>>);

impl MachineHandle {
    /// Runs `job` with the running machine on the machine's main thread, and waits for the result. Must not
    /// be called by that thread itself, or by one that it waits for.
    ///
    /// # Errors
    /// If the VM ends before the job has run.
    pub fn run_on_main<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Running<'_>) -> R + Send + 'static,
    ) -> Result<R, VmEnded> {
        let (done, result) = sync_channel(1);
        let work = Work(Mutex::new(Some(Box::new(move |machine| {
            // The caller waits for it, and the channel has room for one.
            let _caller_waits = done.send(job(machine));
        }))));
        self.send(UserRequest::Job(MachineJob::new(work)));
        // A machine that has ended drops the job, and the sender with it.
        result.recv().map_err(|_| VmEnded)
    }
}

/// Runs `job` with `machine`, unless it has run.
pub(super) fn run(job: &MachineJob, machine: &mut Machine, cycle: &PowerCycle) {
    let Some(Work(work)) = job.work::<Work>() else {
        return;
    };
    let work = lock(work).take();
    if let Some(work) = work {
        work(&mut Running::new(machine, cycle));
    }
}
