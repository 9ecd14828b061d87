//! Where a VM's status is written up, for whoever asks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::protocol::{Crash, State, Status};

/// A VM's status, kept current by its machine and read by others. Clones are of the same board.
#[derive(Clone, Debug)]
pub struct StatusBoard {
    status: Arc<Mutex<Status>>,
    started: Instant,
}

impl StatusBoard {
    /// Begins with `status`; the time is filled in when it is read, counted from `started`.
    pub fn new(status: Status, started: Instant) -> Self {
        Self {
            status: Arc::new(Mutex::new(status)),
            started,
        }
    }

    /// Now.
    pub fn status(&self) -> Status {
        Status {
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            ..self.lock().clone()
        }
    }

    /// The vCPUs were stopped, or run again.
    pub fn set_state(&self, state: State) {
        self.lock().state = state;
    }

    /// Whether the vCPUs run.
    pub fn state(&self) -> State {
        self.lock().state
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
