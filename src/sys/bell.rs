//! What wakes a thread that waits for several things.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;

/// Is readable when its thread has something to do, until that thread has cleared it.
#[derive(Clone, Debug)]
pub enum Bell {
    /// A counter that others add to.
    Event(Arc<EventFd>),
    /// Descriptors of the host.
    Descriptors(Arc<Readiness>),
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Event(event) => event.as_fd(),
            Self::Descriptors(readiness) => readiness.epoll.0.as_fd(),
        }
    }
}

impl Bell {
    /// Clears it.
    pub(crate) fn clear(&self) {
        match self {
            Self::Event(event) => {
                // EAGAIN: another thread has read it.
                let _signals = event.read();
            }
            Self::Descriptors(readiness) => readiness.collect(),
        }
    }
}

/// Descriptors by numbers, and which of them have become ready. A descriptor counts once each time that it
/// becomes ready (`EPOLLET`): whoever takes that has to read or write until it would block.
#[derive(Debug)]
pub struct Readiness {
    epoll: Epoll,
    /// A bit for each number.
    ready: AtomicU64,
    /// The same of those that have hung up or failed.
    hung_up: AtomicU64,
}

/// Which of a [`Readiness`] have become ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    ready: u64,
    hung_up: u64,
}

impl Ready {
    /// Whether `number` has.
    pub fn is(self, number: u32) -> bool {
        self.ready & 1 << number != 0
    }

    /// Whether the other end of `number` was closed, or it has failed.
    pub fn has_hung_up(self, number: u32) -> bool {
        self.hung_up & 1 << number != 0
    }
}

impl Readiness {
    /// Of no descriptor.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            ready: AtomicU64::new(0),
            hung_up: AtomicU64::new(0),
        })
    }

    /// Adds `fd` as `number`, which is below 64: it is ready when it can be read or, with `writes`, written,
    /// or has failed.
    ///
    /// # Errors
    /// If it cannot be waited for, or there is no memory.
    pub fn add(&self, fd: BorrowedFd<'_>, number: u32, writes: bool) -> io::Result<()> {
        let mut flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        flags.set(EpollFlags::EPOLLOUT, writes);
        Ok(self.epoll.add(fd, EpollEvent::new(flags, number.into()))?)
    }

    /// Removes `fd`. To be called before it is closed: a duplicate would keep it here.
    pub fn remove(&self, fd: BorrowedFd<'_>) {
        // It fails only if it is not here.
        let _removed = self.epoll.delete(fd);
    }

    /// Takes which have become ready since this was last asked.
    pub fn take(&self) -> Ready {
        Ready {
            ready: self.ready.swap(0, Ordering::AcqRel),
            hung_up: self.hung_up.swap(0, Ordering::AcqRel),
        }
    }

    fn collect(&self) {
        let mut events = [EpollEvent::empty(); 16];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            for event in &events[..count] {
                let bit = 1_u64.checked_shl(u32::try_from(event.data()).unwrap_or(u32::MAX));
                let bit = bit.unwrap_or(0);
                let ends = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
                if event.events().intersects(ends) {
                    self.hung_up.fetch_or(bit, Ordering::AcqRel);
                }
                self.ready.fetch_or(bit, Ordering::AcqRel);
            }
            if count < events.len() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn rings(bell: &Bell) -> bool {
        let mut fds = [PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
    }

    #[test]
    fn each_arrival_rings_once() {
        let readiness = Arc::new(Readiness::new().unwrap());
        let bell = Bell::Descriptors(Arc::clone(&readiness));
        let pairs: Vec<_> = (0..20).map(|_| UnixStream::pair().unwrap()).collect();
        for (number, (ours, _)) in (0..).zip(&pairs) {
            readiness.add(ours.as_fd(), number, false).unwrap();
        }
        assert!(!rings(&bell));
        bell.clear();
        assert_eq!(readiness.take().ready, 0);
        for (_, theirs) in &pairs {
            let mut theirs: &UnixStream = theirs;
            theirs.write_all(b"a").unwrap();
        }
        assert!(rings(&bell));
        bell.clear();
        assert!(!rings(&bell));
        assert_eq!(readiness.take().ready, (1 << 20) - 1);
        assert_eq!(readiness.take().ready, 0);
        // Nothing was read; more has come.
        (&pairs[7].1).write_all(b"b").unwrap();
        assert!(rings(&bell));
        bell.clear();
        let seven = readiness.take();
        assert_eq!((seven.ready, seven.hung_up), (1 << 7, 0));
        let mut both = [0; 2];
        (&pairs[7].0).read_exact(&mut both).unwrap();
        assert_eq!(&both, b"ab");
        drop(pairs);
        assert!(!rings(&bell));
    }

    #[test]
    fn one_that_can_be_written_is_ready_if_that_is_asked_for() {
        let readiness = Arc::new(Readiness::new().unwrap());
        let bell = Bell::Descriptors(Arc::clone(&readiness));
        let (a, b) = UnixStream::pair().unwrap();
        let kept = a.try_clone().unwrap();
        readiness.add(a.as_fd(), 63, true).unwrap();
        bell.clear();
        assert_eq!(readiness.take().ready, 1 << 63);
        readiness.remove(a.as_fd());
        drop(a);
        readiness.add(kept.as_fd(), 1, true).unwrap();
        bell.clear();
        assert_eq!(readiness.take().ready, 1 << 1);
        drop(b);
        bell.clear();
        let ready = readiness.take();
        assert!(ready.has_hung_up(1) && ready.is(1) && !ready.is(63));
    }

    #[test]
    fn a_counter_rings_until_it_is_cleared() {
        let bell = Bell::Event(Arc::new(crate::sys::eventfd().unwrap()));
        assert!(!rings(&bell));
        let Bell::Event(event) = &bell else {
            unreachable!()
        };
        event.write(1).unwrap();
        event.write(1).unwrap();
        assert!(rings(&bell));
        bell.clear();
        bell.clear();
        assert!(!rings(&bell));
    }
}
