//! The machine while it is powered on, for work that needs it as a whole: saving it, moving it, changing its clock.

use super::cycle::PowerCycle;
use super::{Machine, Outcome, Then};
use crate::api::State;
use crate::kvm::KvmError;
use crate::life::Job;

/// A machine that is powered on, on its main thread, between two events.
#[derive(Debug)]
pub struct Running<'a> {
    machine: &'a mut Machine,
    cycle: &'a PowerCycle,
    end: Option<Outcome>,
}

impl<'a> Running<'a> {
    /// Does `job` with `machine`, and says what follows.
    pub(super) fn work(machine: &'a mut Machine, cycle: &'a PowerCycle, job: &Job) -> Then {
        let mut running = Self {
            machine,
            cycle,
            end: None,
        };
        job.run(&mut running);
        running.end.map_or(Then::GoOn, Then::End)
    }

    /// The VM and its vCPUs.
    pub fn cycle(&self) -> &PowerCycle {
        self.cycle
    }

    /// The machine's parts that outlive a power cycle.
    pub fn machine(&mut self) -> &mut Machine {
        self.machine
    }

    /// Stops all vCPUs and waits until none runs guest code.
    pub fn pause(&mut self) {
        self.cycle.pause();
        self.machine.board.set_state(State::Paused);
    }

    /// Lets all vCPUs run.
    pub fn resume(&mut self) {
        self.machine.resume(self.cycle);
    }

    /// Tells the guest that its host has another TSC frequency than it has, if it wants to know: by TSC scaling it has its old one
    /// until it says that it needs that no longer.
    ///
    /// # Errors
    /// If KVM does not deliver interrupts.
    pub fn reenlighten(&mut self) -> Result<(), KvmError> {
        self.machine.reenlighten(self.cycle, true)
    }

    /// Ends the VM with this outcome once the work is done.
    pub fn end(&mut self, outcome: Outcome) {
        self.end = Some(outcome);
    }
}
