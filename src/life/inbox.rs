//! The main thread's inbox and the handles that fill it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{GuestEvent, Request, UserRequest};

/// The maximum number of queued user requests. A sender waits while the queue is full; a kill is always
/// accepted.
const MAX_REQUESTS: usize = 64;

/// Creates the handles and the inbox of one machine.
pub fn channel() -> (GuestEvents, MachineHandle, Inbox) {
    let shared = Arc::new(InboxShared::default());
    (
        GuestEvents(Arc::clone(&shared)),
        MachineHandle(Arc::clone(&shared)),
        Inbox(shared),
    )
}

#[derive(Debug, Default)]
struct InboxShared {
    state: Mutex<InboxState>,
    changed: Condvar,
    /// Mirrors `!state.guest.is_empty()`, so that the exit path needs no lock.
    pending: AtomicBool,
}

#[derive(Debug, Default)]
struct InboxState {
    /// In the order of the reports, at most one per slot ([`GuestEvent::same_slot`]).
    guest: Vec<GuestEvent>,
    requests: VecDeque<UserRequest>,
    kill: bool,
    /// The first thread of hypernest that panicked.
    panicked: Option<String>,
    /// The inbox is gone.
    closed: bool,
}

impl InboxShared {
    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_guest_events(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, InboxState>) -> MutexGuard<'a, InboxState> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reports guest events that concern the VM as a whole. Cheap to clone. Reporting never waits for the main
/// thread.
#[derive(Clone, Debug)]
pub struct GuestEvents(Arc<InboxShared>);

impl GuestEvents {
    /// Reports `event`. A second report in a slot that the main thread has not emptied is dropped, so that
    /// repeating it costs the host no memory.
    pub fn report(&self, event: GuestEvent) {
        let mut state = self.0.lock();
        if !state.guest.iter().any(|other| other.same_slot(&event)) {
            state.guest.push(event);
        }
        self.0.pending.store(true, Ordering::Release);
        drop(state);
        self.0.changed.notify_all();
    }

    /// Whether an event waits for the main thread's decision. The reporting thread sees it at once.
    pub fn are_pending(&self) -> bool {
        self.0.has_guest_events()
    }

    /// Ends the VM if the thread that holds the result panics.
    pub fn watch_thread(&self) -> ThreadWatch {
        ThreadWatch(Arc::clone(&self.0))
    }
}

/// Makes requests of a machine's main thread, for a user. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MachineHandle(Arc<InboxShared>);

impl MachineHandle {
    /// Requests a change of the VM's life cycle. Ignored if the VM has ended.
    pub fn request(&self, request: Request) {
        self.send(UserRequest::Life(request));
    }

    /// Requests the exit statistics so far.
    pub fn write_stats(&self) {
        self.send(UserRequest::WriteStats);
    }

    /// Ends the VM if the thread that holds the result panics.
    pub fn watch_thread(&self) -> ThreadWatch {
        ThreadWatch(Arc::clone(&self.0))
    }

    /// Queues `request`; waits while the queue is full. A request equal to the last one in the queue is
    /// dropped.
    pub(crate) fn send(&self, request: UserRequest) {
        let mut state = self.0.lock();
        if request == UserRequest::Life(Request::Kill) {
            state.kill = true;
        } else {
            while !state.closed && state.requests.len() >= MAX_REQUESTS {
                state = self.0.wait(state);
            }
            if state.closed || state.requests.back() == Some(&request) {
                return;
            }
            state.requests.push_back(request);
        }
        drop(state);
        self.0.changed.notify_all();
    }
}

/// Ends the VM if the thread that holds it panics, and reports the thread by its name.
#[derive(Debug)]
pub struct ThreadWatch(Arc<InboxShared>);

impl Drop for ThreadWatch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("unnamed").to_owned();
            self.0.lock().panicked.get_or_insert(name);
            self.0.changed.notify_all();
        }
    }
}

/// The main thread's end. Dropping it wakes waiting senders with [`VmEnded`](super::VmEnded).
#[derive(Debug)]
pub struct Inbox(Arc<InboxShared>);

impl Inbox {
    /// Waits until an event or a request is queued.
    pub fn wait(&self) {
        let mut state = self.0.lock();
        while state.guest.is_empty()
            && state.requests.is_empty()
            && !state.kill
            && state.panicked.is_none()
        {
            state = self.0.wait(state);
        }
    }

    /// Whether the guest has reported something.
    pub fn has_guest_events(&self) -> bool {
        self.0.has_guest_events()
    }

    /// Takes the reported guest events, in order. All vCPUs must be parked: a running vCPU could enter the
    /// guest before the event is handled.
    pub fn take_guest_events(&self) -> Vec<GuestEvent> {
        let mut state = self.0.lock();
        self.0.pending.store(false, Ordering::Release);
        std::mem::take(&mut state.guest)
    }

    /// Takes the next request: a kill first, the others in order.
    pub fn next_request(&self) -> Option<UserRequest> {
        let mut state = self.0.lock();
        if std::mem::take(&mut state.kill) {
            return Some(UserRequest::Life(Request::Kill));
        }
        let request = state.requests.pop_front();
        drop(state);
        self.0.changed.notify_all();
        request
    }

    /// The name of the first thread that panicked.
    pub fn panicked_thread(&self) -> Option<String> {
        self.0.lock().panicked.clone()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        let requests = std::mem::take(&mut state.requests);
        drop(state);
        // Jobs hold values of their callers, whose drop may take any lock.
        drop(requests);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hyperv::HypervCrash;
    use crate::life::VmEnded;

    fn crash(vcpu: u32, p0: u64) -> GuestEvent {
        GuestEvent::Crash {
            vcpu,
            crash: HypervCrash {
                params: [p0, 0, 0, 0, 0],
                message: None,
            },
        }
    }

    #[test]
    fn repeated_reports_keep_one_slot_and_the_first_content() {
        let (guest, _, inbox) = channel();
        assert!(!guest.are_pending());
        for code in 0..100 {
            guest.report(GuestEvent::Panicked);
            guest.report(GuestEvent::DebugExit { code });
            guest.report(crash(1, u64::from(code)));
            guest.report(crash(0, u64::from(code)));
        }
        assert!(guest.are_pending() && inbox.has_guest_events());
        assert_eq!(
            inbox.take_guest_events(),
            [
                GuestEvent::Panicked,
                GuestEvent::DebugExit { code: 0 },
                crash(1, 0),
                crash(0, 0),
            ]
        );
        assert!(!guest.are_pending() && inbox.take_guest_events().is_empty());
    }

    #[test]
    fn guest_events_neither_delay_nor_displace_requests() {
        let (guest, handle, inbox) = channel();
        for _ in 0..10 * MAX_REQUESTS {
            guest.report(GuestEvent::Panicked);
        }
        handle.request(Request::Pause);
        handle.request(Request::Pause);
        handle.write_stats();
        handle.request(Request::Pause);
        handle.request(Request::Kill);
        let life = UserRequest::Life;
        for request in [
            life(Request::Kill),
            life(Request::Pause),
            UserRequest::WriteStats,
            life(Request::Pause),
        ] {
            inbox.wait();
            assert_eq!(inbox.next_request(), Some(request));
        }
        assert_eq!(inbox.next_request(), None);
        assert_eq!(inbox.take_guest_events(), [GuestEvent::Panicked]);
    }

    #[test]
    fn full_queue_accepts_a_kill_and_its_senders_end_with_the_machine() {
        let (_, handle, inbox) = channel();
        for n in 0..MAX_REQUESTS {
            handle.request([Request::Pause, Request::Resume][n % 2]);
        }
        let waiting = std::thread::spawn({
            let handle = handle.clone();
            move || {
                handle.request(Request::Pause);
                handle.run_on_main(|_| ())
            }
        });
        handle.request(Request::Kill);
        assert_eq!(inbox.next_request(), Some(UserRequest::Life(Request::Kill)));
        drop(inbox);
        assert_eq!(waiting.join().unwrap(), Err(VmEnded));
        assert_eq!(handle.run_on_main(|_| ()), Err(VmEnded));
    }

    #[test]
    fn a_panicking_thread_is_reported_by_name() {
        let (guest, handle, inbox) = channel();
        for (name, watch) in [
            ("vcpu3", guest.watch_thread()),
            ("io", handle.watch_thread()),
        ] {
            let thread = std::thread::Builder::new().name(name.to_owned());
            let panics = thread.spawn(move || {
                let _watch = watch;
                panic!("on purpose");
            });
            assert!(panics.unwrap().join().is_err());
            inbox.wait();
            assert_eq!(inbox.panicked_thread().as_deref(), Some("vcpu3"));
        }
        drop(handle.watch_thread());
    }
}
