//! Control of a vCPU thread by the machine's main thread: run, pause, leave; and work that the thread runs
//! in between.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use crate::kvm::kick::Kicker;

/// The vCPU's thread has ended, so the vCPU is not accessible any more.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the vCPU's thread has ended")]
pub struct Ended;

/// Work on the value that the thread holds.
pub(super) type VcpuWork<T> = Box<dyn FnOnce(&mut T) + Send>;

/// The thread's next step.
pub(super) enum ControlStep<T> {
    /// Runs guest code.
    Run,
    /// Runs this, then asks again.
    Work(VcpuWork<T>),
    /// Ends.
    Leave,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    Leave,
}

struct ControlState<T> {
    wanted: Wanted,
    /// The thread waits here, has not entered its loop yet, or has left it: it runs no guest code.
    parked: bool,
    /// Present while the thread is in its loop.
    kicker: Option<Kicker>,
    /// To be run by the thread before it runs guest code again.
    work: VecDeque<VcpuWork<T>>,
    /// The thread has left its loop permanently.
    ended: bool,
    /// It waits although it should run: its share of time is used up.
    throttled: bool,
}

/// Shared by one vCPU thread, which holds a `T`, and the main thread.
pub struct Control<T> {
    state: Mutex<ControlState<T>>,
    changed: Condvar,
    /// Mirrors `wanted != Run` or work, so that the exit path needs no lock.
    attention: AtomicBool,
}

impl<T> std::fmt::Debug for Control<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        f.debug_struct("Control")
            .field("wanted", &state.wanted)
            .field("parked", &state.parked)
            .field("ended", &state.ended)
            .field("throttled", &state.throttled)
            .finish_non_exhaustive()
    }
}

impl<T> Default for Control<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Control<T> {
    /// Creates the control of a vCPU that starts paused.
    pub fn new() -> Self {
        Self {
            state: Mutex::new(ControlState {
                wanted: Wanted::Pause,
                parked: true,
                kicker: None,
                work: VecDeque::new(),
                ended: false,
                throttled: false,
            }),
            changed: Condvar::new(),
            attention: AtomicBool::new(true),
        }
    }

    /// Main thread: lets the vCPU run.
    pub fn resume(&self) {
        self.want(Wanted::Run);
    }

    /// Main thread: requests a pause. [`Control::wait_parked`] waits for it.
    pub fn pause(&self) {
        self.want(Wanted::Pause);
    }

    /// Main thread: requests that the thread leaves its loop permanently.
    pub fn leave(&self) {
        self.want(Wanted::Leave);
    }

    /// Makes the vCPU wait although it should run, or lets it run again. Independent of a pause.
    pub fn throttle(&self, on: bool) {
        let mut state = self.lock();
        state.throttled = on;
        if on {
            self.attention.store(true, Ordering::Release);
            if let Some(kicker) = &state.kicker {
                kicker.kick();
            }
        }
        self.changed.notify_all();
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

    /// Makes a running vCPU check its requests, without changing the wanted state.
    pub fn kick(&self) {
        if let Some(kicker) = &self.lock().kicker {
            kicker.kick();
        }
    }

    /// Main thread: runs `work` on the vCPU's thread, and waits for the result. A parked thread runs it at
    /// once and stays parked; a running one runs it between two guest entries.
    ///
    /// # Errors
    /// If the thread has ended, or ends before or during the work.
    pub fn run_on_vcpu<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut T) -> R + Send + 'static,
    ) -> Result<R, Ended> {
        let (done, result) = sync_channel(1);
        {
            let mut state = self.lock();
            if state.ended {
                return Err(Ended);
            }
            state.work.push_back(answering(work, done));
            self.attention.store(true, Ordering::Release);
            if let Some(kicker) = &state.kicker {
                kicker.kick();
            }
            self.changed.notify_all();
        }
        // A thread that ends drops its pending work, and the sender with it.
        result.recv().map_err(|_| Ended)
    }

    /// vCPU thread: enters the loop; it can be kicked from now on.
    pub(super) fn enter(&self, kicker: Kicker) {
        self.lock().kicker = Some(kicker);
    }

    /// vCPU thread: has left the loop; it is not signaled any more.
    pub(super) fn left(&self) {
        let mut state = self.lock();
        state.kicker = None;
        state.parked = true;
        state.ended = true;
        state.work.clear();
        self.changed.notify_all();
    }

    /// vCPU thread: parks itself, because a guest event waits for the main thread's decision.
    pub(super) fn park_self(&self) {
        let mut state = self.lock();
        if state.wanted == Wanted::Run {
            state.wanted = Wanted::Pause;
            self.attention.store(true, Ordering::Release);
        }
    }

    /// vCPU thread: the next KVM_RUN is not to enter the guest.
    pub(super) fn request_immediate_exit(&self) {
        if let Some(kicker) = &self.lock().kicker {
            kicker.hold();
        }
    }

    /// vCPU thread: KVM_RUN was interrupted. The reason for the kick was set before, so
    /// [`Control::attention`] is true by now.
    pub(super) fn interrupted(&self) {
        if let Some(kicker) = &self.lock().kicker {
            kicker.clear();
        }
    }

    /// vCPU thread, before each KVM_RUN: whether to ask for the [next step](Control::next_step).
    pub(super) fn attention(&self) -> bool {
        self.attention.load(Ordering::Acquire)
    }

    /// vCPU thread: returns the next step. Waits while the vCPU is paused and there is no work.
    pub(super) fn next_step(&self) -> ControlStep<T> {
        let mut state = self.lock();
        loop {
            if state.wanted == Wanted::Leave {
                return ControlStep::Leave;
            }
            if state.wanted == Wanted::Pause && !state.parked {
                state.parked = true;
                self.changed.notify_all();
            }
            if let Some(work) = state.work.pop_front() {
                return ControlStep::Work(work);
            } else if state.wanted == Wanted::Run && !state.throttled {
                state.parked = false;
                self.attention.store(false, Ordering::Release);
                // A kick that arrived while parked has had its effect.
                if let Some(kicker) = &state.kicker {
                    kicker.clear();
                }
                return ControlStep::Run;
            } else {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn want(&self, wanted: Wanted) {
        let mut state = self.lock();
        if state.wanted == Wanted::Leave {
            return;
        }
        state.wanted = wanted;
        // Only the thread itself clears the flag, when no request is left.
        self.attention.store(true, Ordering::Release);
        if wanted != Wanted::Run
            && let Some(kicker) = &state.kicker
        {
            kicker.kick();
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, ControlState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answering<T, R: Send + 'static>(
    work: impl FnOnce(&mut T) -> R + Send + 'static,
    done: SyncSender<R>,
) -> VcpuWork<T> {
    Box::new(move |held| {
        // The caller waits for the result, and the channel has room for one.
        let _asker_is_there = done.send(work(held));
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;

    /// Does all work with `held` and waits while paused; `false` means leave.
    fn attend<T>(control: &Control<T>, held: &mut T) -> bool {
        loop {
            match control.next_step() {
                ControlStep::Run => return true,
                ControlStep::Work(work) => work(held),
                ControlStep::Leave => return false,
            }
        }
    }

    #[test]
    fn thread_runs_only_while_running_is_wanted() {
        let control = Arc::new(Control::new());
        let laps = Arc::new(AtomicU64::new(0));
        let thread = std::thread::spawn({
            let (control, laps) = (Arc::clone(&control), Arc::clone(&laps));
            move || {
                while !control.attention() || attend(&control, &mut ()) {
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
    fn thread_that_parks_itself_waits_for_a_decision() {
        let control = Control::new();
        control.resume();
        assert!(attend(&control, &mut ()));
        assert!(!control.attention());
        control.park_self();
        assert!(control.attention());
        control.resume();
        assert!(attend(&control, &mut ()));
    }

    #[test]
    fn a_throttled_thread_waits_and_can_still_be_paused() {
        let (control, thread) = adder();
        control.throttle(true);
        control.resume();
        assert_eq!(control.run_on_vcpu(|held| *held), Ok(7));
        control.pause();
        control.wait_parked();
        control.throttle(false);
        control.resume();
        assert_eq!(control.run_on_vcpu(|held| *held), Ok(7));
        control.throttle(true);
        control.leave();
        thread.join().unwrap();
    }

    /// A thread that holds 7 and adds the given numbers.
    fn adder() -> (Arc<Control<u32>>, std::thread::JoinHandle<()>) {
        let control = Arc::new(Control::new());
        let thread = std::thread::spawn({
            let control = Arc::clone(&control);
            move || {
                let mut held = 7;
                while !control.attention() || attend(&control, &mut held) {
                    std::thread::yield_now();
                }
                control.left();
            }
        });
        (control, thread)
    }

    #[test]
    fn thread_runs_work_parked_or_running() {
        let (control, thread) = adder();
        let add = |n: u32| {
            control.run_on_vcpu(move |held| {
                *held += n;
                *held
            })
        };
        assert_eq!(add(1), Ok(8));
        control.wait_parked();
        assert_eq!(add(1), Ok(9));
        control.resume();
        assert_eq!(add(1), Ok(10));
        control.pause();
        assert_eq!(add(1), Ok(11));
        let whose = control.run_on_vcpu(|_| std::thread::current().id());
        assert_eq!(whose, Ok(thread.thread().id()));
        control.leave();
        thread.join().unwrap();
    }

    #[test]
    fn work_for_an_ended_thread_fails_without_waiting() {
        let (control, thread) = adder();
        control.leave();
        assert!(control.run_on_vcpu(|_| ()).is_err() || control.run_on_vcpu(|_| ()).is_err());
        thread.join().unwrap();
        assert_eq!(control.run_on_vcpu(|_| ()), Err(Ended));
    }
}
