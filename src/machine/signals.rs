//! Signals -> requests. SIGTERM presses the power button, a second one ends the VM; SIGINT and SIGHUP end it; SIGUSR1 asks
//! for the statistics.

use std::io;
use std::os::fd::AsFd;
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::life::{MachineHandle, Request, UserRequest};

/// The thread that waits for signals. Dropping it ends the thread and gives the signals their old meaning back.
#[derive(Debug)]
pub(super) struct SignalThread {
    stop: std::sync::Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    old: SigSet,
}

impl SignalThread {
    /// Blocks the signals in the calling thread, and so in all that it starts from now on, and starts waiting for them.
    ///
    /// # Errors
    /// If a descriptor or the thread cannot be had.
    pub(super) fn start(handle: MachineHandle) -> io::Result<Self> {
        let mut signals = SigSet::empty();
        for signal in [
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
            Signal::SIGUSR1,
        ] {
            signals.add(signal);
        }
        let old = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let fd = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let stop = std::sync::Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let thread = std::thread::Builder::new().name("signals".into()).spawn({
            let stop = std::sync::Arc::clone(&stop);
            move || {
                let _watch = handle.watch_thread("signals");
                wait_for_signals(&fd, &stop, &handle);
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
        // Writing to an eventfd that nobody else writes to cannot fail.
        let _written = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
        let _restored = self.old.thread_set_mask();
    }
}

fn wait_for_signals(fd: &SignalFd, stop: &EventFd, handle: &MachineHandle) {
    let mut terminating = false;
    loop {
        let mut fds = [
            PollFd::new(fd.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        if fds[1].any().unwrap_or(true) {
            return;
        }
        while let Ok(Some(info)) = fd.read_signal() {
            let signal = i32::try_from(info.ssi_signo)
                .ok()
                .and_then(|n| Signal::try_from(n).ok());
            handle.send(meaning(signal, &mut terminating));
        }
    }
}

/// What a signal means, `terminating` being whether a SIGTERM came before.
fn meaning(signal: Option<Signal>, terminating: &mut bool) -> UserRequest {
    match signal {
        Some(Signal::SIGUSR1) => UserRequest::WriteStats,
        Some(Signal::SIGTERM) if !*terminating => {
            *terminating = true;
            UserRequest::Life(Request::PowerButton)
        }
        _ => UserRequest::Life(Request::Kill),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life::channel;

    #[test]
    fn the_first_sigterm_presses_the_button_and_the_second_kills() {
        let mut terminating = false;
        let mut next = |signal| meaning(Some(signal), &mut terminating);
        assert_eq!(next(Signal::SIGUSR1), UserRequest::WriteStats);
        assert_eq!(
            next(Signal::SIGTERM),
            UserRequest::Life(Request::PowerButton)
        );
        assert_eq!(next(Signal::SIGUSR1), UserRequest::WriteStats);
        assert_eq!(next(Signal::SIGTERM), UserRequest::Life(Request::Kill));
        assert_eq!(
            meaning(Some(Signal::SIGINT), &mut false),
            UserRequest::Life(Request::Kill)
        );
    }

    #[test]
    fn the_thread_ends_when_dropped() {
        // Dropping it joins the thread.
        drop(SignalThread::start(channel().1).unwrap());
    }
}
