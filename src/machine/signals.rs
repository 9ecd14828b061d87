//! Signals -> requests. SIGTERM presses the power button; a second one, or the end of the stop timeout, ends
//! the VM. SIGINT and SIGHUP end it at once; SIGUSR1 requests the statistics.

use std::io;
use std::os::fd::AsFd;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tracing::warn;

use crate::life::{MachineHandle, Request, UserRequest};
use crate::sys::{Role, fatal, spawn, wait};

/// The thread that waits for signals. Dropping it ends the thread and restores the signals' previous meaning.
#[derive(Debug)]
pub(super) struct SignalThread {
    stop: std::sync::Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    old: SigSet,
}

impl SignalThread {
    /// Blocks the signals in the calling thread, and so in all threads that it starts later, and starts
    /// waiting for them. A VM that was asked to power off ends after `stop_timeout`, if there is one.
    ///
    /// # Errors
    /// If a descriptor or the thread cannot be created.
    pub(super) fn start(handle: MachineHandle, stop_timeout: Option<Duration>) -> io::Result<Self> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1] {
            signals.add(signal);
        }
        // With `nohup` the VM must outlive the terminal.
        if !fatal::is_ignored(Signal::SIGHUP) {
            signals.add(Signal::SIGHUP);
        }
        let old = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let fd = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let stop = std::sync::Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let termination = Termination::new(stop_timeout);
        let thread = spawn(Role::Signals, {
            let stop = std::sync::Arc::clone(&stop);
            move || {
                let _watch = handle.watch_thread();
                wait_for_signals(&fd, &stop, termination, &handle);
            }
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
            old,
        })
    }
}

impl Drop for SignalThread {
    fn drop(&mut self) {
        // Writing to an eventfd with a single writer cannot fail.
        let _written = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
        let _restored = self.old.thread_set_mask();
    }
}

fn wait_for_signals(
    fd: &SignalFd,
    stop: &EventFd,
    mut termination: Termination,
    handle: &MachineHandle,
) {
    loop {
        let mut fds = [
            PollFd::new(fd.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        ];
        if wait(&mut fds, termination.deadline).is_err() {
            return;
        }
        if fds[1].any().unwrap_or(true) {
            return;
        }
        while let Ok(Some(info)) = fd.read_signal() {
            let signal = i32::try_from(info.ssi_signo)
                .ok()
                .and_then(|n| Signal::try_from(n).ok());
            handle.send(termination.signal(signal, Instant::now()));
        }
        if let Some(event) = termination.expired(Instant::now()) {
            handle.send(event);
        }
    }
}

/// The progress of the VM's termination by SIGTERM.
#[derive(Debug)]
struct Termination {
    timeout: Option<Duration>,
    /// A SIGTERM has arrived.
    requested: bool,
    /// The time at which the VM is ended.
    deadline: Option<Instant>,
}

impl Termination {
    fn new(timeout: Option<Duration>) -> Self {
        Self {
            timeout,
            requested: false,
            deadline: None,
        }
    }

    /// The request for `signal`.
    fn signal(&mut self, signal: Option<Signal>, now: Instant) -> UserRequest {
        match signal {
            Some(Signal::SIGUSR1) => UserRequest::WriteStats,
            Some(Signal::SIGTERM) if !self.requested => {
                self.requested = true;
                self.deadline = self.timeout.map(|timeout| now + timeout);
                match self.timeout {
                    Some(timeout) => warn!(
                        "SIGTERM: pressed the power button; the VM is ended if it has not powered off in {} \
                         s, or \
                         by a second SIGTERM",
                        timeout.as_secs()
                    ),
                    None => warn!(
                        "SIGTERM: pressed the power button; a second SIGTERM ends the VM, and so does \
                         --stop-timeout SECONDS"
                    ),
                }
                UserRequest::Life(Request::PowerButton)
            }
            _ => UserRequest::Life(Request::Kill),
        }
    }

    /// The request at the deadline, once.
    fn expired(&mut self, now: Instant) -> Option<UserRequest> {
        self.deadline.take_if(|deadline| *deadline <= now)?;
        let seconds = self.timeout.unwrap_or_default().as_secs();
        warn!("the guest has not powered off in {seconds} s (--stop-timeout): the VM is ended");
        Some(UserRequest::Life(Request::Kill))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life::channel;

    const KILL: UserRequest = UserRequest::Life(Request::Kill);
    const BUTTON: UserRequest = UserRequest::Life(Request::PowerButton);

    #[test]
    fn the_first_sigterm_presses_the_button_and_the_second_kills() {
        let now = Instant::now();
        let mut termination = Termination::new(None);
        let mut next = |signal| termination.signal(Some(signal), now);
        assert_eq!(next(Signal::SIGUSR1), UserRequest::WriteStats);
        assert_eq!(next(Signal::SIGTERM), BUTTON);
        assert_eq!(next(Signal::SIGUSR1), UserRequest::WriteStats);
        assert_eq!(next(Signal::SIGTERM), KILL);
        assert_eq!(termination.deadline, None);
        let interrupted = Termination::new(None).signal(Some(Signal::SIGINT), now);
        assert_eq!(interrupted, KILL);
    }

    #[test]
    fn the_stop_timeout_counts_from_the_first_sigterm_and_expires_once() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut termination = Termination::new(Some(Duration::from_secs(10)));
        assert_eq!(termination.expired(at(1000)), None);
        assert_eq!(termination.signal(Some(Signal::SIGTERM), at(5)), BUTTON);
        assert_eq!(termination.deadline, Some(at(15)));
        assert_eq!(termination.expired(at(14)), None);
        assert_eq!(termination.expired(at(15)), Some(KILL));
        assert_eq!(termination.expired(at(16)), None);
        assert_eq!(termination.deadline, None);
    }

    #[test]
    fn the_thread_ends_when_dropped() {
        // Dropping it joins the thread.
        drop(SignalThread::start(channel().1, None).unwrap());
    }
}
