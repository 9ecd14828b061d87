//! The machine while it is powered on, for jobs that need it as a whole: saving it, migrating it, changing
//! its clock.

use super::cycle::PowerCycle;
use super::plugged::DeviceRequestError;
use super::transfer::TransferError;
use super::{Machine, Outcome};
use crate::block::Syncer;
use crate::boot::BootFiles;
use crate::bus::DeviceRequest;
use crate::kvm::KvmError;
use crate::life::Request;
use crate::machine::State;
use crate::memory::GuestRam;
use crate::state::Sections;

/// A machine that is powered on, on its main thread, between two events.
#[derive(Debug)]
pub struct Running<'a> {
    machine: &'a mut Machine,
    cycle: &'a PowerCycle,
}

impl<'a> Running<'a> {
    pub(super) fn new(machine: &'a mut Machine, cycle: &'a PowerCycle) -> Self {
        Self { machine, cycle }
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

    /// The files that a reset boots, if it can boot.
    pub fn boot_files(&self) -> Option<BootFiles> {
        self.machine.boot.clone()
    }

    /// Whether the vCPUs run, as far as the user determines that.
    pub fn is_running(&self) -> bool {
        self.machine.session.life.run() == State::Running
    }

    /// Stops the VM and waits until its state no longer changes. A guest that was stopped for its crash stays
    /// stopped.
    pub fn pause(&mut self) {
        self.machine.session.life.user(Request::Pause);
        self.machine.stop_world_or_warn(self.cycle);
        self.machine.show_state();
    }

    /// Lets all vCPUs run, unless the VM is held. If the guest has reset or ended the VM, that is carried out
    /// first.
    pub fn resume(&mut self) {
        self.machine.session.life.user(Request::Resume);
        self.machine.resume(self.cycle);
    }

    /// Stops the VM and holds it: neither guest nor user can run or reset the VM until [`Running::release`].
    pub fn hold(&mut self) {
        self.machine.session.life.hold(true);
        self.machine.stop_world_or_warn(self.cycle);
        self.machine.show_state();
    }

    /// Lets another process have what the devices use of the host alone, until the VM runs here again. The VM
    /// is held.
    pub fn release_devices(&mut self) {
        self.machine.release();
    }

    /// Takes it back after a migration that has failed.
    pub fn reacquire_devices(&mut self) {
        self.machine.reacquire();
    }

    /// What puts all that the guest has written onto stable storage, for each disk. It may be called on any
    /// thread, and while the guest runs.
    pub fn syncers(&self) -> Vec<Syncer> {
        self.machine.syncers()
    }

    /// Ends the hold; the vCPUs run if they did before it and no user has paused them since.
    pub fn release(&mut self) {
        self.machine.session.life.hold(false);
        self.machine.resume(self.cycle);
    }

    /// Notifies the guest that its host has another TSC frequency, if it has requested that: by TSC scaling
    /// it keeps its old one until it reports that it has adapted.
    ///
    /// # Errors
    /// If KVM does not deliver interrupts.
    pub fn reenlighten(&mut self) -> Result<(), KvmError> {
        self.machine.reenlighten(self.cycle, true)
    }

    /// The whole state but RAM. The vCPUs must be paused; RAM belongs to this state until they run again.
    ///
    /// # Errors
    /// If KVM refuses to return it, or the guest has just ended or reset the VM.
    pub fn sections(&mut self) -> Result<Sections, TransferError> {
        self.machine.save_state(self.cycle)
    }

    /// Checks that the VM can be saved or migrated at all, as far as that can be determined in advance.
    ///
    /// # Errors
    /// All blockers, in one message.
    pub fn check_can_move(&self) -> Result<(), TransferError> {
        self.machine.check_can_move()
    }

    /// Carries out a user's request to the device with this id.
    ///
    /// # Errors
    /// If there is none, it refuses, or the VM is being saved or migrated.
    pub fn request_device(
        &mut self,
        id: &str,
        request: &DeviceRequest,
    ) -> Result<(), DeviceRequestError> {
        let session = &self.machine.session;
        let moves = session.life.is_held() || session.board.is_migrating();
        if moves && request.changes_saved_state() {
            return Err(DeviceRequestError::Moving { id: id.to_owned() });
        }
        self.machine.hardware.plugged.request(id, request)
    }

    /// Ends the VM with this outcome once the work is done.
    pub fn end(&mut self, outcome: Outcome) {
        self.machine.session.life.end(outcome);
    }
}
