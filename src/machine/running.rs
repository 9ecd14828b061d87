//! The machine while it is powered on, for work that needs it as a whole: saving it, moving it, changing its clock.

use super::cycle::PowerCycle;
use super::transfer::TransferError;
use super::{Machine, Outcome, Then};
use crate::boot::BootFiles;
use crate::kvm::KvmError;
use crate::life::Job;
use crate::machine::State;
use crate::memory::GuestRam;
use crate::state::Sections;

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

    pub(super) fn parts(&mut self) -> (&mut Machine, &PowerCycle) {
        (self.machine, self.cycle)
    }

    /// The machine's parts that outlive a power cycle.
    pub fn machine(&mut self) -> &mut Machine {
        self.machine
    }

    /// The guest's RAM.
    pub fn ram(&self) -> GuestRam {
        self.machine.ram()
    }

    /// What a reset boots, if it can boot anything.
    pub fn boot_files(&self) -> Option<BootFiles> {
        self.machine.boot.clone()
    }

    /// Whether the vCPUs run, as far as it is up to the user.
    pub fn is_running(&self) -> bool {
        self.machine.board.status().state == State::Running
    }

    /// Stops all vCPUs and waits until none runs guest code. A guest that was stopped for its crash stays so.
    pub fn pause(&mut self) {
        self.cycle.pause();
        if self.is_running() {
            self.machine.board.set_state(State::Paused);
        }
    }

    /// Lets all vCPUs run. If the guest has done what decides what becomes of the VM, that is acted on first, and runs them.
    pub fn resume(&mut self) {
        if self.machine.is_held() {
            return;
        }
        if self.machine.decided().is_some() {
            self.machine.board.set_state(State::Running);
        } else {
            self.machine.resume(self.cycle);
        }
    }

    /// Tells the guest that its host has another TSC frequency than it has, if it wants to know: by TSC scaling it has its old one
    /// until it says that it needs that no longer.
    ///
    /// # Errors
    /// If KVM does not deliver interrupts.
    pub fn reenlighten(&mut self) -> Result<(), KvmError> {
        self.machine.reenlighten(self.cycle, true)
    }

    /// The whole state but RAM. The vCPUs must be paused; until they run again RAM belongs to it.
    ///
    /// # Errors
    /// If KVM does not give it, or the guest has just done what ends or resets it.
    pub fn sections(&mut self) -> Result<Sections, TransferError> {
        self.machine.save_state(self.cycle)
    }

    /// Ends the VM with this outcome once the work is done.
    pub fn end(&mut self, outcome: Outcome) {
        self.end = Some(outcome);
    }
}
