//! How the I/O thread is brought to a point where it touches no device, and kept there.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::bus::lock;

/// Shared by the I/O thread and whoever parks it.
#[derive(Debug, Default)]
pub(super) struct Parking {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    wanted: bool,
    parked: bool,
    /// The thread has ended: it touches nothing.
    ended: bool,
}

impl Parking {
    /// Of a thread that begins parked.
    pub(super) fn parked() -> Arc<Self> {
        let parking = Self::default();
        parking.want(true);
        Arc::new(parking)
    }

    pub(super) fn want(&self, parked: bool) {
        lock(&self.state).wanted = parked;
    }

    /// Waits until the thread is parked; `false` if it is not by then.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = lock(&self.state);
        while !(state.parked || state.ended) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        true
    }

    /// For the thread, between two turns: whether it is to be parked in the next one. Before it parks, it
    /// calls `last`.
    pub(super) fn enter(&self, last: impl FnOnce()) -> bool {
        let mut state = lock(&self.state);
        if state.wanted && !state.parked {
            drop(state);
            last();
            state = lock(&self.state);
        }
        state.parked = state.wanted;
        self.changed.notify_all();
        state.parked
    }

    /// Tells of the thread's end when it is dropped there.
    pub(super) fn watch(self: &Arc<Self>) -> EndWatch {
        EndWatch(Arc::clone(self))
    }
}

pub(super) struct EndWatch(Arc<Parking>);

impl Drop for EndWatch {
    fn drop(&mut self) {
        lock(&self.0.state).ended = true;
        self.0.changed.notify_all();
    }
}
