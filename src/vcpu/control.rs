//! How the machine's main thread steers a vCPU thread: run, pause, leave; and has it do work with the vCPU in between.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use crate::kvm::kick::Kicker;

/// The vCPU's thread has ended, so nobody can do anything with the vCPU.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the vCPU's thread has ended")]
pub struct Ended;

/// Work with what the thread holds.
pub(super) type Work<T> = Box<dyn FnOnce(&mut T) + Send>;

/// What the thread does next.
pub(super) enum Step<T> {
    /// Runs guest code.
    Run,
    /// Does this, then asks again.
    Work(Work<T>),
    /// Ends.
    Leave,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    Leave,
}

struct State<T> {
    wanted: Wanted,
    /// The thread waits here, or has not entered its loop yet, or has left it: it does not run guest code.
    parked: bool,
    /// Present while the thread is in its loop.
    kicker: Option<Kicker>,
    /// To be done by the thread before it runs guest code again.
    work: VecDeque<Work<T>>,
    /// The thread has left its loop for good.
    ended: bool,
    /// It waits though it is wanted to run: its share of time is used up.
    throttled: bool,
}

/// Shared by one vCPU thread, which holds a `T`, and the main thread.
pub struct Control<T> {
    state: Mutex<State<T>>,
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
    /// A vCPU that is wanted paused.
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State {
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

    /// Makes it wait though it is wanted to run, or lets it run again. Whether it is paused is another matter.
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

    /// Makes a running vCPU look at its requests without changing what is wanted.
    pub fn kick(&self) {
        if let Some(kicker) = &self.lock().kicker {
            kicker.kick();
        }
    }

    /// Main thread: has the vCPU thread do `work` with what it holds, and waits for the result. A parked thread does it at
    /// once and stays parked; one that runs does it between two entries into the guest.
    ///
    /// # Errors
    /// If the thread has ended, or ends before or while it does the work.
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
        // A thread that ends drops the work that it has not done, and the sender with it.
        result.recv().map_err(|_| Ended)
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

    /// vCPU thread: KVM_RUN was interrupted. What it was kicked for was set before, so [`Control::attention`]
    /// is true by now.
    pub(super) fn interrupted(&self) {
        if let Some(kicker) = &self.lock().kicker {
            kicker.clear();
        }
    }

    /// vCPU thread, before each KVM_RUN: whether to ask for the [next step](Control::next_step).
    pub(super) fn attention(&self) -> bool {
        self.attention.load(Ordering::Acquire)
    }

    /// vCPU thread: what to do next. Waits while the vCPU is paused and there is no work.
    pub(super) fn next_step(&self) -> Step<T> {
        let mut state = self.lock();
        loop {
            if state.wanted == Wanted::Leave {
                return Step::Leave;
            }
            if state.wanted == Wanted::Pause && !state.parked {
                state.parked = true;
                self.changed.notify_all();
            }
            if let Some(work) = state.work.pop_front() {
                return Step::Work(work);
            } else if state.wanted == Wanted::Run && !state.throttled {
                state.parked = false;
                self.attention.store(false, Ordering::Release);
                // A kick that came while parked has done its work.
                if let Some(kicker) = &state.kicker {
                    kicker.clear();
                }
                return Step::Run;
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
        // Only the thread itself lets its attention go, when there is nothing left that wants it.
        self.attention.store(true, Ordering::Release);
        if wanted != Wanted::Run
            && let Some(kicker) = &state.kicker
        {
            kicker.kick();
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answering<T, R: Send + 'static>(
    work: impl FnOnce(&mut T) -> R + Send + 'static,
    done: SyncSender<R>,
) -> Work<T> {
    Box::new(move |held| {
        // Whoever asked waits for it, and the channel has room for one.
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
                Step::Run => return true,
                Step::Work(work) => work(held),
                Step::Leave => return false,
            }
        }
    }

    #[test]
    fn a_thread_runs_only_while_it_is_wanted_to() {
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
    fn a_thread_that_parks_itself_waits_for_a_decision() {
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

    /// A thread that holds 7 and adds what it is told to.
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
    fn work_is_done_by_the_thread_parked_or_running() {
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
    fn work_for_a_thread_that_has_ended_is_an_error_and_no_wait() {
        let (control, thread) = adder();
        control.leave();
        assert!(control.run_on_vcpu(|_| ()).is_err() || control.run_on_vcpu(|_| ()).is_err());
        thread.join().unwrap();
        assert_eq!(control.run_on_vcpu(|_| ()), Err(Ended));
    }
}
