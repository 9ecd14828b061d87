//! Signals that end a run early are blocked, so that the results so far can be kept.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Blocked signals. A running VM handles them itself, and ends.
#[derive(Debug)]
pub(super) struct Interrupts {
    fd: SignalFd,
    old: SigSet,
}

impl Interrupts {
    /// Blocks them from now on, in this thread and those it starts.
    pub(super) fn hold() -> io::Result<Self> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        let old = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let fd = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { fd, old })
    }

    /// Whether one has arrived since the last call.
    pub(super) fn arrived(&self) -> bool {
        matches!(self.fd.read_signal(), Ok(Some(_)))
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        // A pending signal has nothing left to end; after this the signals have their default effect.
        let _arrived = self.arrived();
        let _restored = self.old.thread_set_mask();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::pthread::{pthread_kill, pthread_self};

    #[test]
    fn a_signal_is_kept_until_it_is_asked_for() {
        let interrupts = Interrupts::hold().unwrap();
        assert!(!interrupts.arrived());
        pthread_kill(pthread_self(), Signal::SIGINT).unwrap();
        assert!(interrupts.arrived());
        assert!(!interrupts.arrived());
    }
}
