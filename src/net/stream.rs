//! Frames over a stream socket, each after its length as 4 bytes in big-endian order: the protocol of QEMU's
//! `-netdev stream`, passt and others. There are no offloads.

mod frames;

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timer::Expiration;
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::{Backend, HEADER, Sent};
use crate::memory::Readable;
use crate::sys::{Bell, Readiness};
use frames::{Incoming, Outgoing};

// The descriptors' numbers.
const STREAM: u32 = 0;
const LISTENER: u32 = 1;
const TIMER: u32 = 2;

/// From the loss of the peer to the first attempt to connect again, and the longest time between attempts.
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LAST_DELAY: Duration = Duration::from_secs(8);
/// A link that has lasted for so long was one: the next loss is reported, and followed by the first delay.
const STABLE: Duration = Duration::from_secs(10);

/// Where streams come from.
pub trait Connect: Send {
    /// What to wait for until a stream can be had; none, if that is a matter of time.
    fn listener(&self) -> Option<&UnixListener> {
        None
    }

    /// Prepares for streams, when the VM takes its network.
    ///
    /// # Errors
    /// If the host refuses.
    fn open(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// A new stream, after the last has ended.
    ///
    /// # Errors
    /// If there is none now; `WouldBlock` says that this is nothing to report.
    fn connect(&mut self) -> io::Result<UnixStream>;

    /// Whether [`Connect::connect`] may succeed after the stream has ended.
    fn again(&self) -> bool {
        true
    }

    /// The opposite of [`Connect::open`].
    fn close(&mut self) {}

    /// The stream has ended. Returns why, if that is known.
    fn ended(&mut self) -> Option<String> {
        None
    }
}

/// One end of a stream of frames.
pub struct StreamBackend {
    /// For messages.
    name: String,
    connect: Box<dyn Connect>,
    readiness: Arc<Readiness>,
    timer: TimerFd,
    delay: Duration,
    stream: Option<Link>,
}

struct Link {
    stream: UnixStream,
    since: Instant,
    incoming: Incoming,
    outgoing: Outgoing,
    readable: bool,
}

impl fmt::Debug for StreamBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamBackend")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl StreamBackend {
    /// Of the card called `name`.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn new(name: &str, connect: Box<dyn Connect>) -> io::Result<Self> {
        let readiness = Arc::new(Readiness::new()?);
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        readiness.add(timer.as_fd(), TIMER, false)?;
        Ok(Self {
            name: name.to_owned(),
            connect,
            readiness,
            timer,
            delay: FIRST_DELAY,
            stream: None,
        })
    }

    /// Closes the stream; how long it was there.
    fn detach(&mut self) -> Option<Duration> {
        let link = self.stream.take()?;
        self.readiness.remove(link.stream.as_fd());
        Some(link.since.elapsed())
    }

    fn attach(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        self.readiness.add(stream.as_fd(), STREAM, true)?;
        self.stream = Some(Link {
            stream,
            since: Instant::now(),
            incoming: Incoming::default(),
            outgoing: Outgoing::default(),
            readable: true,
        });
        Ok(())
    }

    /// Connects, unless there is a link.
    fn try_connect(&mut self) -> io::Result<()> {
        if self.stream.is_some() {
            return Ok(());
        }
        let stream = self.connect.connect()?;
        self.attach(stream)
    }

    /// The link is lost: tells so, and tries again later.
    fn lost(&mut self, why: &str) {
        if self.detach().is_some_and(|lasted| lasted >= STABLE) {
            self.delay = FIRST_DELAY;
        }
        let said = self.connect.ended();
        let said = said.map_or(String::new(), |said| format!(": {said}"));
        let then = match (self.connect.again(), self.connect.listener().is_some()) {
            (false, _) => "its link is down",
            (true, true) => "its link is down until another peer connects",
            (true, false) => "its link is down until it is connected again",
        };
        let message = format!("the network of {} {why}{said}; {then}", self.name);
        // Not each attempt of a series is told.
        if self.delay == FIRST_DELAY {
            tracing::warn!("{message}");
        } else {
            tracing::debug!("{message}");
        }
        if self.connect.listener().is_some() {
            // Another peer may wait.
            self.reconnect();
        } else if self.connect.again() {
            self.retry_later();
        }
    }

    fn retry_later(&mut self) {
        let at = Expiration::OneShot(TimeSpec::from_duration(self.delay));
        self.delay = (self.delay * 2).min(LAST_DELAY);
        if let Err(error) = self.timer.set(at, TimerSetTimeFlags::empty()) {
            tracing::warn!("the network of {} stays down: {error}", self.name);
        }
    }

    fn reconnect(&mut self) {
        match self.try_connect() {
            Ok(()) => {
                if self.stream.is_some() {
                    tracing::info!("the network of {} is connected", self.name);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::debug!("the network of {}: {error}", self.name);
                self.retry_later();
            }
        }
    }
}

impl Drop for StreamBackend {
    fn drop(&mut self) {
        self.release();
    }
}

impl Backend for StreamBackend {
    fn bell(&self) -> Option<Bell> {
        Some(Bell::Descriptors(Arc::clone(&self.readiness)))
    }

    fn woken(&mut self) {
        let ready = self.readiness.take();
        let is = |number: u32| ready & 1 << number != 0;
        if is(STREAM) {
            if let Some(link) = &mut self.stream {
                link.readable = true;
            }
            self.flush();
        }
        if is(TIMER) {
            // It is over; whether it can be read says nothing more.
            let _expired = self.timer.wait();
        }
        if self.stream.is_none() && (is(LISTENER) || is(TIMER)) {
            self.reconnect();
        }
    }

    fn link(&self) -> bool {
        self.stream.is_some()
    }

    fn receive(&mut self, _pair: usize, frame: &mut [u8]) -> Option<usize> {
        let (header, body) = frame.split_at_mut(HEADER);
        loop {
            let link = self.stream.as_mut()?;
            match link.incoming.next(body) {
                Ok(Some(len)) => {
                    header.fill(0);
                    return Some(HEADER + len);
                }
                Ok(None) => {}
                Err(broken) => {
                    self.lost(&format!("was given up, as its peer sent {broken}"));
                    return None;
                }
            }
            if !link.readable {
                return None;
            }
            let mut stream = &link.stream;
            match stream.read(link.incoming.room()) {
                Ok(0) => {
                    self.lost("was closed by its peer");
                    return None;
                }
                Ok(count) => link.incoming.filled(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => link.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.lost(&format!("has failed: {error}"));
                    return None;
                }
            }
        }
    }

    fn send(&mut self, _pair: usize, frame: &Readable) -> Sent {
        let Some(link) = &mut self.stream else {
            return Sent::Dropped;
        };
        if !link.outgoing.has_room() {
            self.flush();
        }
        match &mut self.stream {
            None => Sent::Dropped,
            Some(link) if !link.outgoing.has_room() => Sent::Later,
            Some(link) => link.outgoing.push(frame),
        }
    }

    fn flush(&mut self) {
        let Some(link) = &mut self.stream else {
            return;
        };
        while !link.outgoing.bytes().is_empty() {
            let mut stream = &link.stream;
            match stream.write(link.outgoing.bytes()) {
                Ok(count) => link.outgoing.written(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What the peer has sent before it ended can still be read; that tells the end.
                Err(_) => {
                    link.outgoing = Outgoing::default();
                    link.readable = true;
                    return;
                }
            }
        }
    }

    fn acquire(&mut self) -> io::Result<()> {
        self.connect.open()?;
        if let Some(listener) = self.connect.listener() {
            self.readiness.add(listener.as_fd(), LISTENER, false)?;
        }
        match self.try_connect() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }

    fn release(&mut self) {
        self.detach();
        self.connect.close();
    }
}

/// A peer that listens at a path.
#[derive(Debug)]
pub struct Client(PathBuf);

impl Client {
    /// At `path`.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl Connect for Client {
    fn connect(&mut self) -> io::Result<UnixStream> {
        UnixStream::connect(&self.0).map_err(|error| {
            let why = format!("cannot connect to {}: {error}", self.0.display());
            io::Error::new(error.kind(), why)
        })
    }
}

/// A path at which peers connect, one after the other.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl Server {
    /// At `path`, which must not exist.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            listener: None,
        }
    }
}

impl Connect for Server {
    fn listener(&self) -> Option<&UnixListener> {
        self.listener.as_ref()
    }

    fn open(&mut self) -> io::Result<()> {
        let bound = UnixListener::bind(&self.path).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        self.listener = Some(bound.map_err(|error| {
            let help = match error.kind() {
                io::ErrorKind::AddrInUse => "; remove it if no program uses it",
                _ => "",
            };
            let why = format!("cannot listen at {}: {error}{help}", self.path.display());
            io::Error::new(error.kind(), why)
        })?);
        Ok(())
    }

    fn connect(&mut self) -> io::Result<UnixStream> {
        match &self.listener {
            Some(listener) => Ok(listener.accept()?.0),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn close(&mut self) {
        if self.listener.take().is_some() {
            // It may be gone already.
            let _removed = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}

/// A stream that this process was started with.
#[derive(Debug)]
pub struct Given(Option<UnixStream>);

impl Given {
    /// This one.
    pub fn new(stream: UnixStream) -> Self {
        Self(Some(stream))
    }
}

impl Connect for Given {
    fn connect(&mut self) -> io::Result<UnixStream> {
        let stream = self.0.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        stream.try_clone()
    }

    fn again(&self) -> bool {
        false
    }

    fn ended(&mut self) -> Option<String> {
        self.0 = None;
        None
    }
}

#[cfg(test)]
mod tests;
