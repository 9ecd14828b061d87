//! Where a VM's status is written up, for whoever asks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::protocol::{Crash, State, Status, TscStatus};
use crate::migration::{Cancel, Progress};

/// A VM's status, kept current by its machine and read by others. Clones are of the same board.
#[derive(Clone, Debug)]
pub struct StatusBoard {
    status: Arc<Mutex<Status>>,
    migration: Arc<Mutex<Option<(Progress, Cancel)>>>,
    started: Instant,
}

impl StatusBoard {
    /// Begins with `status`; the time is filled in when it is read, counted from `started`.
    pub fn new(status: Status, started: Instant) -> Self {
        Self {
            status: Arc::new(Mutex::new(status)),
            migration: Arc::default(),
            started,
        }
    }

    /// Now.
    pub fn status(&self) -> Status {
        let migration = self.migration().as_ref().map(|(p, _)| p.report());
        Status {
            migration,
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            ..self.lock().clone()
        }
    }

    /// A migration begins, which `cancel` ends. `false` if another one is not over.
    pub fn begin_migration(&self, progress: &Progress, cancel: &Cancel) -> bool {
        let mut migration = self.migration();
        let busy = migration.as_ref().is_some_and(|(p, _)| !p.is_over());
        if !busy {
            *migration = Some((progress.clone(), cancel.clone()));
        }
        !busy
    }

    /// The migration that is not over, if there is one, is to end. `false` if there is none.
    pub fn cancel_migration(&self) -> bool {
        match self.migration().as_ref() {
            Some((progress, cancel)) if !progress.is_over() => {
                cancel.set();
                true
            }
            _ => false,
        }
    }

    fn migration(&self) -> MutexGuard<'_, Option<(Progress, Cancel)>> {
        self.migration
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The vCPUs were stopped, or run again.
    pub fn set_state(&self, state: State) {
        self.lock().state = state;
    }

    /// Whether the vCPUs run.
    pub fn state(&self) -> State {
        self.lock().state
    }

    /// The guest's TSC has changed.
    pub fn set_tsc(&self, tsc: TscStatus) {
        self.lock().tsc = tsc;
    }

    /// The guest reported a crash. The report is kept until the next one, resets or not.
    pub fn report_crash(&self, crash: Crash) {
        self.lock().crash = Some(crash);
    }

    /// The VM was reset, and runs.
    pub fn count_reset(&self) {
        let mut status = self.lock();
        status.resets += 1;
        status.state = State::Running;
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        // Every change is a single assignment: there is no half of one.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
