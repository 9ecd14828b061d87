//! How the machine's main thread steers a vCPU thread: run, pause, leave.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::kvm::kick::Kicker;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    Leave,
}

#[derive(Debug)]
struct State {
    wanted: Wanted,
    /// The thread waits here, or has not entered its loop yet, or has left it: it does not run guest code.
    parked: bool,
    /// Present while the thread is in its loop.
    kicker: Option<Kicker>,
}

/// Shared by one vCPU thread and the main thread.
#[derive(Debug)]
pub struct Control {
    state: Mutex<State>,
    changed: Condvar,
    /// Mirrors `wanted != Run`, so that the exit path needs no lock.
    attention: AtomicBool,
}

impl Default for Control {
    fn default() -> Self {
        Self::new()
    }
}

impl Control {
    /// A vCPU that is wanted paused.
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State {
                wanted: Wanted::Pause,
                parked: true,
                kicker: None,
            }),
            changed: Condvar::new(),
            attention: AtomicBool::new(true),
        }
    }

    /// Main thread: let it run.
    pub fn resume(&self) {
        self.want(Wanted::Run);
    }

    /// Main thread: ask it to stop running guest code. [`Control::wait_parked`] waits for that.
    pub fn pause(&self) {
        self.want(Wanted::Pause);
    }

    /// Main thread: ask it to leave its loop for good.
    pub fn leave(&self) {
        self.want(Wanted::Leave);
    }

    /// Main thread: waits until the vCPU runs no guest code.
    pub fn wait_parked(&self) {
        let mut state = self.lock();
        while !state.parked {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Makes a running vCPU look at its requests without changing what is wanted.
    pub fn kick(&self) {
        if let Some(kicker) = &self.lock().kicker {
            kicker.kick();
        }
    }

    /// vCPU thread: it enters its loop and can be kicked from now on.
    pub(super) fn enter(&self, kicker: Kicker) {
        self.lock().kicker = Some(kicker);
    }

    /// vCPU thread: it is out of its loop; nobody signals it any more.
    pub(super) fn left(&self) {
        let mut state = self.lock();
        state.kicker = None;
        state.parked = true;
        self.changed.notify_all();
    }

    /// vCPU thread: parks itself, e.g. after it reported what only the main thread can decide.
    pub(super) fn park_self(&self) {
        let mut state = self.lock();
        if state.wanted == Wanted::Run {
            state.wanted = Wanted::Pause;
            self.attention.store(true, Ordering::Release);
        }
    }

    /// vCPU thread: KVM_RUN was interrupted. Whoever kicked has left word before kicking, so the next look finds it.
    pub(super) fn interrupted(&self) {
        if let Some(kicker) = &self.lock().kicker {
            kicker.clear();
        }
    }

    /// vCPU thread, before each KVM_RUN: whether [`Control::wait_until_wanted`] has something to say.
    pub(super) fn attention(&self) -> bool {
        self.attention.load(Ordering::Acquire)
    }

    /// vCPU thread: waits while paused. `false` means leave.
    pub(super) fn wait_until_wanted(&self) -> bool {
        let mut state = self.lock();
        state.parked = true;
        self.changed.notify_all();
        loop {
            match state.wanted {
                Wanted::Leave => return false,
                Wanted::Run => {
                    state.parked = false;
                    // A kick that came while parked has done its work.
                    if let Some(kicker) = &state.kicker {
                        kicker.clear();
                    }
                    return true;
                }
                Wanted::Pause => {
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn want(&self, wanted: Wanted) {
        let mut state = self.lock();
        if state.wanted == Wanted::Leave {
            return;
        }
        state.wanted = wanted;
        self.attention
            .store(wanted != Wanted::Run, Ordering::Release);
        if wanted != Wanted::Run
            && let Some(kicker) = &state.kicker
        {
            kicker.kick();
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn a_thread_runs_only_while_it_is_wanted_to() {
        let control = Arc::new(Control::new());
        let laps = Arc::new(AtomicU64::new(0));
        let thread = std::thread::spawn({
            let (control, laps) = (Arc::clone(&control), Arc::clone(&laps));
            move || {
                while !control.attention() || control.wait_until_wanted() {
                    laps.fetch_add(1, Ordering::SeqCst);
                }
                control.left();
            }
        });
        control.wait_parked();
        assert_eq!(laps.load(Ordering::SeqCst), 0);
        control.resume();
        while laps.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        control.pause();
        control.wait_parked();
        let at_pause = laps.load(Ordering::SeqCst);
        std::thread::yield_now();
        assert_eq!(laps.load(Ordering::SeqCst), at_pause);
        control.leave();
        // Leaving is final.
        control.resume();
        thread.join().unwrap();
        control.wait_parked();
        assert_eq!(laps.load(Ordering::SeqCst), at_pause);
    }

    #[test]
    fn a_thread_that_parks_itself_waits_for_a_decision() {
        let control = Control::new();
        control.resume();
        assert!(control.wait_until_wanted());
        assert!(!control.attention());
        control.park_self();
        assert!(control.attention());
        control.resume();
        assert!(control.wait_until_wanted());
    }
}
