//! What a machine does while it is moved to another process.

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

/// A machine's part in being moved.
#[derive(Debug, Default)]
pub(super) struct Moving {
    /// Written pages are logged for a migration.
    log: Option<Subscription>,
    percent: u8,
    throttle: Option<Throttle>,
}

impl Machine {
    /// A new power cycle goes on where the last one was: all RAM has changed.
    pub(super) fn log_new_cycle(&mut self, cycle: &PowerCycle) {
        self.throttle(cycle, self.moving.percent);
        self.platform.dirty.mark_all();
    }

    /// The old cycle's vCPUs are about to end.
    pub(super) fn unthrottle(&mut self) {
        self.moving.throttle = None;
    }

    fn throttle(&mut self, cycle: &PowerCycle, percent: u8) {
        self.moving.throttle = None;
        self.moving.percent = percent;
        if percent == 0 {
            return;
        }
        match Throttle::start(cycle.vcpus().controls(), percent) {
            Ok(throttle) => self.moving.throttle = Some(throttle),
            Err(e) => warn!("the vCPUs cannot be slowed down: {}", chain(&e)),
        }
    }
}

impl Running<'_> {
    /// What the VM is, what its guest was shown, and its clocks, while it runs: what another host needs to
    /// know to say whether it could go on there.
    ///
    /// # Errors
    /// If KVM does not give it.
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
        let log = machine.platform.dirty.subscribe();
        machine.platform.slots.log(true)?;
        machine.moving.log = Some(log);
        Ok(())
    }

    /// Adds the pages that were written since the last call to `set`.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn take_log(&mut self, set: &mut PageSet) -> Result<(), KvmError> {
        let (machine, cycle) = self.parts();
        let harvest = |found: &mut PageSet| cycle.take_log(&machine.platform, found);
        match &machine.moving.log {
            Some(log) => log.collect(set, harvest),
            None => harvest(set),
        }
    }

    /// Written pages are no longer logged, and the vCPUs have all of their time.
    pub fn stop_log(&mut self) {
        self.throttle(0);
        let (machine, cycle) = self.parts();
        let platform = &machine.platform;
        let Some(log) = machine.moving.log.take() else {
            return;
        };
        if log.is_only() {
            let off = platform.slots.log(false);
            // What is still in a ring would be taken for written when the log begins again.
            if let Err(e) = off.and_then(|()| cycle.empty_rings(&platform.ram)) {
                error!(
                    "KVM goes on to log which pages the guest writes: {}",
                    chain(&e)
                );
            }
        }
    }

    /// Takes this share of their time from the vCPUs, in percent.
    pub fn throttle(&mut self, percent: u8) {
        let (machine, cycle) = self.parts();
        machine.throttle(cycle, percent);
    }

    /// The VM runs elsewhere: it ends here.
    pub fn has_moved(&mut self) {
        self.end(Outcome::Moved);
    }
}

impl Machine {
    /// Has a restored machine run, unless it is to be paused. [`Machine::run`] does everything else.
    pub fn start(&mut self) {
        if let Some(cycle) = self.restored.take() {
            if self.life.may_run() {
                self.start_world(&cycle);
            }
            self.restored = Some(cycle);
        }
    }

    /// Has a restored machine wait until its user lets it run.
    pub fn stay_paused(&mut self) {
        self.life.user(Request::Pause);
        self.show_state();
    }
}
