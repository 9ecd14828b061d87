//! A thread that serves a device's queues when their doorbells ring.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::EventFd;

use crate::life::GuestEvents;
use crate::sys::{self, Bell, Role, spawn};

/// The thread; dropping it ends it.
#[derive(Debug)]
pub(super) struct Worker {
    stop: Arc<AtomicBool>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Calls `work` each time one of `bells` or `wake` was signalled, whose reads must not block. However
    /// often one was signalled meanwhile, it is called once. It is also called at the instant that its last
    /// call has returned. A panic in it ends the VM.
    ///
    /// # Errors
    /// If there are no more threads.
    pub(super) fn start(
        name: &str,
        events: &GuestEvents,
        wake: Arc<EventFd>,
        mut bells: Vec<Bell>,
        mut work: impl FnMut() -> Option<Instant> + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        bells.push(Bell::Event(Arc::clone(&wake)));
        let thread = spawn(Role::Queues(name), {
            let stop = Arc::clone(&stop);
            let watch = events.watch_thread();
            move || {
                let _watch = watch;
                let mut fds: Vec<_> = bells
                    .iter()
                    .map(|bell| PollFd::new(bell.as_fd(), PollFlags::POLLIN))
                    .collect();
                let mut deadline = None;
                while wait(&bells, &mut fds, deadline) && !stop.load(Ordering::Acquire) {
                    deadline = work();
                }
            }
        })?;
        Ok(Self {
            stop,
            wake,
            thread: Some(thread),
        })
    }
}

/// Waits until one of `bells`, which `fds` are in the same order, is signalled, or `deadline` is over, and
/// takes the signals away. `false`: waiting has failed.
fn wait(bells: &[Bell], fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> bool {
    match sys::wait(fds, deadline) {
        Err(_) => return false,
        Ok(false) => return true,
        Ok(true) => {}
    }
    for (bell, fd) in bells.iter().zip(&*fds) {
        if fd.any().unwrap_or(true) {
            bell.clear();
        }
    }
    true
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // It fails only if the counter is full, and then the thread wakes up as well.
        let _woken = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic was already reported by the hook.
            let _panicked = thread.join();
        }
    }
}
