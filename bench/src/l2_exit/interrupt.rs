//! Signals that end a run early: they are held back, so that what there is can be kept.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Signals that are held back. While a VM runs it takes them itself, and ends.
#[derive(Debug)]
pub(super) struct Interrupts {
    fd: SignalFd,
    old: SigSet,
}

impl Interrupts {
    /// Holds them back from now on, in this thread and those it starts.
    pub(super) fn hold() -> io::Result<Self> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        let old = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let fd = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { fd, old })
    }

    /// Whether one has come since the last question.
    pub(super) fn arrived(&self) -> bool {
        matches!(self.fd.read_signal(), Ok(Some(_)))
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        // One that came in the meantime has no more to end; afterwards they mean what they always do.
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
