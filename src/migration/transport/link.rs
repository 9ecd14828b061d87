//! Two descriptors as a connection with a timeout for every wait, and with cancellation.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::sys::set_nonblocking;
use crate::sys::{Role, eventfd, spawn, wait};

/// Ends all waits on the links that share it. Clones share the state.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    set: AtomicBool,
    event: EventFd,
}

impl Cancel {
    /// Creates a token that is not cancelled.
    ///
    /// # Errors
    /// If no descriptor can be created.
    pub fn new() -> io::Result<Self> {
        let event = eventfd()?;
        Ok(Self(Arc::new(Inner {
            set: AtomicBool::new(false),
            event,
        })))
    }

    /// Cancels, permanently.
    pub fn set(&self) {
        self.0.set.store(true, Ordering::SeqCst);
        // The counter is far from full.
        let _full = self.0.event.write(1);
    }

    /// Whether it was cancelled.
    pub fn is_set(&self) -> bool {
        self.0.set.load(Ordering::SeqCst)
    }

    /// Sleeps for `time` or until cancelled; returns whether it was cancelled.
    pub fn sleep(&self, time: Duration) -> bool {
        if !time.is_zero() {
            // The caller checks the condition again, so the cause of the wakeup does not matter.
            let _ended = wait(&mut [readable(self)], Some(Instant::now() + time));
        }
        self.is_set()
    }
}

fn readable(cancel: &Cancel) -> PollFd<'_> {
    PollFd::new(cancel.0.event.as_fd(), PollFlags::POLLIN)
}

/// Waits until `what` is readable; `false` if cancelled or the deadline has passed.
pub(super) fn wait_for_input(
    what: &impl AsFd,
    cancel: &Cancel,
    deadline: Option<Instant>,
) -> io::Result<bool> {
    let mut fds = [
        PollFd::new(what.as_fd(), PollFlags::POLLIN),
        readable(cancel),
    ];
    Ok(wait(&mut fds, deadline)? && !cancel.is_set())
}

/// A connection.
#[derive(Debug)]
pub struct Link {
    input: OwnedFd,
    output: OwnedFd,
    stall: Duration,
    /// The end of all waits for input, regardless of how much has arrived.
    deadline: Option<Instant>,
    cancel: Option<Cancel>,
    /// For TCP without TLS: the addresses of this end and the other.
    pub(super) loopback: Option<(SocketAddr, SocketAddr)>,
    child: Option<Child>,
}

impl Link {
    /// Reads from `input` and writes to `output`; `stall` is the timeout for each wait.
    ///
    /// # Errors
    /// If the descriptors cannot be made non-blocking.
    pub fn new(
        input: OwnedFd,
        output: OwnedFd,
        stall: Duration,
        cancel: &Cancel,
    ) -> io::Result<Self> {
        for fd in [&input, &output] {
            set_nonblocking(fd.as_fd())?;
        }
        Ok(Self {
            input,
            output,
            stall,
            deadline: None,
            loopback: None,
            cancel: Some(cancel.clone()),
            child: None,
        })
    }

    /// Uses one descriptor for both directions.
    ///
    /// # Errors
    /// If it cannot be duplicated, or made non-blocking.
    pub fn over(fd: impl Into<OwnedFd>, stall: Duration, cancel: &Cancel) -> io::Result<Self> {
        let input = fd.into();
        let output = input.try_clone()?;
        Self::new(input, output, stall, cancel)
    }

    /// The other end is `child`, which is reaped after the connection is closed.
    pub fn with_child(mut self, child: Child) -> Self {
        self.child = Some(child);
        self
    }

    /// From now on `cancel` ends waits, and so does `deadline`, regardless of how much has arrived.
    pub fn greet_until(&mut self, cancel: &Cancel, deadline: Option<Instant>) {
        self.cancel = Some(cancel.clone());
        self.deadline = deadline;
    }

    /// Sets the timeout to `stall` and ignores cancellation from now on.
    pub fn cannot_be_cancelled(&mut self, stall: Duration) {
        self.cancel = None;
        self.deadline = None;
        self.stall = stall;
    }

    /// Whether input is available, or the other end has closed the connection.
    pub fn has_input(&self) -> bool {
        let mut fds = [PollFd::new(self.input.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
    }

    fn wait(&self, output: bool) -> io::Result<()> {
        let (fd, flags, what) = match output {
            true => (&self.output, PollFlags::POLLOUT, "read nothing"),
            false => (&self.input, PollFlags::POLLIN, "sent nothing"),
        };
        let mut fds = vec![PollFd::new(fd.as_fd(), flags)];
        fds.extend(self.cancel.as_ref().map(readable));
        let stalled = Instant::now() + self.stall;
        let until = self
            .deadline
            .map_or(stalled, |deadline| deadline.min(stalled));
        let ready = wait(&mut fds, Some(until))?;
        if self.cancel.as_ref().is_some_and(Cancel::is_set) {
            return Err(io::Error::new(ErrorKind::ConnectionAborted, "cancelled"));
        }
        if !ready && until < stalled {
            return Err(late());
        }
        if !ready {
            let why = format!("the other end {what} for {} s", self.stall.as_secs_f32());
            return Err(io::Error::new(ErrorKind::TimedOut, why));
        }
        Ok(())
    }
}

fn late() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "its first message took too long")
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // A steady trickle of input must not extend the deadline.
        if self
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
        {
            return Err(late());
        }
        loop {
            match nix::unistd::read(&self.input, buffer) {
                Ok(read) => return Ok(read),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait(false)?,
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Write for Link {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        loop {
            match nix::unistd::write(&self.output, data) {
                Ok(written) => return Ok(written),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait(true)?,
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may still have data to forward, and exits when it reads the end of its input.
            let _no_thread = spawn(Role::Reap, move || child.wait());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn waiting_for_a_silent_peer_times_out() {
        let (a, b) = UnixStream::pair().unwrap();
        let cancel = Cancel::new().unwrap();
        let mut link = Link::over(a, Duration::from_millis(20), &cancel).unwrap();
        assert!(!link.has_input());
        let e = link.read(&mut [0; 1]).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::TimedOut);
        let full = loop {
            if let Err(e) = link.write(&[0; 4096]) {
                break e;
            }
        };
        assert_eq!(full.kind(), ErrorKind::TimedOut);
        drop(b);
        assert!(link.has_input());
        // Its unread data is lost, and both directions report that.
        assert!(link.write(&[0]).is_err());
        link.read(&mut [0; 1]).unwrap_err();
        assert_eq!(link.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn cancelling_ends_waits_until_it_is_disabled() {
        let (a, mut b) = UnixStream::pair().unwrap();
        let cancel = Cancel::new().unwrap();
        let mut link = Link::over(a, LONG, &cancel).unwrap();
        let late = cancel.clone();
        let thread = std::thread::spawn(move || late.set());
        let e = link.read(&mut [0; 1]).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::ConnectionAborted);
        thread.join().unwrap();
        assert!(cancel.sleep(LONG));
        link.cannot_be_cancelled(LONG);
        b.write_all(&[7]).unwrap();
        assert_eq!(link.read(&mut [0; 1]).unwrap(), 1);
    }
}
