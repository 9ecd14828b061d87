//! The machine's part in a migration.

use tracing::{error, warn};

use super::cycle::PowerCycle;
use super::throttle::Throttle;
use super::transfer::TransferError;
use super::{Machine, Outcome, Running};
use crate::error::chain;
use crate::kvm::KvmError;
use crate::life::Request;
use crate::memory::dirty::PageSet;
use crate::memory::dirty_log::Subscription;
use crate::state::Sections;

/// The machine's migration state.
#[derive(Debug, Default)]
pub(super) struct Moving {
    /// Written pages are logged for a migration.
    log: Option<Subscription>,
    percent: u8,
    throttle: Option<Throttle>,
}

impl Machine {
    /// A new power cycle continues the last one's log: all RAM has changed.
    pub(super) fn log_new_cycle(&mut self, cycle: &PowerCycle) {
        self.throttle(cycle, self.transfer.moving.percent);
        self.hardware.platform.dirty.mark_all();
    }

    /// The old cycle's vCPUs are about to end.
    pub(super) fn unthrottle(&mut self) {
        self.transfer.moving.throttle = None;
    }

    fn throttle(&mut self, cycle: &PowerCycle, percent: u8) {
        self.transfer.moving.throttle = None;
        self.transfer.moving.percent = percent;
        if percent == 0 {
            return;
        }
        match Throttle::start(cycle.vcpus().controls(), percent) {
            Ok(throttle) => self.transfer.moving.throttle = Some(throttle),
            Err(e) => warn!("the vCPUs cannot be throttled: {}", chain(&e)),
        }
    }
}

impl Running<'_> {
    /// The VM's configuration, its guest's promise, and its clocks, while it runs: the data by which another
    /// host decides whether it can run the VM.
    ///
    /// # Errors
    /// If KVM refuses to return them.
    pub fn identity(&mut self) -> Result<Sections, TransferError> {
        let (machine, cycle) = self.parts();
        machine.identity(cycle)
    }

    /// From now on written pages are logged.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn start_log(&mut self) -> Result<(), KvmError> {
        let machine = self.machine();
        let log = machine.hardware.platform.dirty.subscribe();
        machine.hardware.platform.slots.log(true)?;
        machine.transfer.moving.log = Some(log);
        Ok(())
    }

    /// Adds the pages that were written since the last call to `set`.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn take_log(&mut self, set: &mut PageSet) -> Result<(), KvmError> {
        let (machine, cycle) = self.parts();
        let harvest = |found: &mut PageSet| cycle.take_log(&machine.hardware.platform, found);
        match &machine.transfer.moving.log {
            Some(log) => log.collect(set, harvest),
            None => harvest(set),
        }
    }

    /// Stops logging of written pages, and removes the throttle.
    pub fn stop_log(&mut self) {
        self.throttle(0);
        let (machine, cycle) = self.parts();
        let platform = &machine.hardware.platform;
        let Some(log) = machine.transfer.moving.log.take() else {
            return;
        };
        if log.is_only() {
            let off = platform.slots.log(false);
            // Entries left in a ring would count as written when logging starts again.
            if let Err(e) = off.and_then(|()| cycle.empty_rings(&platform.ram)) {
                error!(
                    "KVM continues to log the pages that the guest writes: {}",
                    chain(&e)
                );
            }
        }
    }

    /// Reduces the vCPUs' running time by this percentage.
    pub fn throttle(&mut self, percent: u8) {
        let (machine, cycle) = self.parts();
        machine.throttle(cycle, percent);
    }

    /// The VM runs at the destination: it ends here.
    pub fn has_moved(&mut self) {
        self.end(Outcome::Moved);
    }
}

impl Machine {
    /// Lets a restored machine run, unless it stays paused. [`Machine::run`] does everything else.
    pub fn start(&mut self) {
        if let Some(cycle) = self.transfer.restored.take() {
            if self.session.life.may_run() {
                self.start_world(&cycle);
            }
            self.transfer.restored = Some(cycle);
        }
    }

    /// Keeps a restored machine paused until a user resumes it.
    pub fn stay_paused(&mut self) {
        self.session.life.user(Request::Pause);
        self.show_state();
    }
}
