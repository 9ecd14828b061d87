//! Frames over a stream socket, each after its length as 4 bytes in big-endian order: the protocol of QEMU's
//! `-netdev stream`, passt and others. There are no offloads.

mod connect;
mod frames;

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timer::Expiration;
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::{Backend, HEADER, Sent};
use crate::memory::Readable;
use crate::sys::{Bell, Readiness};
pub use connect::{Client, Connect, Given, Server};
use frames::{Incoming, Outgoing};

// The descriptors' numbers.
const STREAM: u32 = 0;
const LISTENER: u32 = 1;
const TIMER: u32 = 2;
const WATCHED: u32 = 3;

/// From the loss of the peer to the first attempt to connect again, and the longest time between attempts.
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LAST_DELAY: Duration = Duration::from_secs(8);
/// A link that has lasted for so long was one: the next loss is reported, and followed by the first delay.
const STABLE: Duration = Duration::from_secs(10);

/// One end of a stream of frames.
pub struct StreamBackend {
    /// For messages.
    name: String,
    connect: Box<dyn Connect>,
    readiness: Arc<Readiness>,
    timer: TimerFd,
    stream: Option<Link>,
    /// Between [`Backend::acquire`] and [`Backend::release`].
    open: bool,
    /// It was connected once: a missing peer is no mistake of the user any more.
    connected: bool,
    /// The timer runs, and nothing is tried before.
    waiting: bool,
    delay: Duration,
    /// The loss of the link was reported.
    told: bool,
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
            stream: None,
            open: false,
            connected: false,
            waiting: false,
            delay: FIRST_DELAY,
            told: false,
        })
    }

    /// Closes the stream; how long it was there.
    fn detach(&mut self) -> Option<Duration> {
        let link = self.stream.take()?;
        self.readiness.remove(link.stream.as_fd());
        if let Some(watched) = self.connect.watched() {
            self.readiness.remove(watched);
        }
        Some(link.since.elapsed())
    }

    /// Connects, unless there is a link.
    fn try_connect(&mut self) -> io::Result<()> {
        if self.stream.is_some() {
            return Ok(());
        }
        let stream = self.connect.connect()?;
        let added = stream.set_nonblocking(true).and_then(|()| {
            if let Some(watched) = self.connect.watched() {
                self.readiness.add(watched, WATCHED, false)?;
            }
            self.readiness.add(stream.as_fd(), STREAM, true)
        });
        if let Err(error) = added {
            self.readiness.remove(stream.as_fd());
            drop(stream);
            self.connect.ended();
            return Err(error);
        }
        self.connected = true;
        self.stream = Some(Link {
            stream,
            since: Instant::now(),
            incoming: Incoming::default(),
            outgoing: Outgoing::default(),
            readable: true,
        });
        Ok(())
    }

    /// The link is lost: tells so, and tries again later.
    fn lost(&mut self, why: &str) {
        if self.detach().is_some_and(|lasted| lasted >= STABLE) {
            self.delay = FIRST_DELAY;
        }
        let said = self.connect.ended();
        let said = said.map_or(String::new(), |said| format!(": {said}"));
        let then = match self.connect.again() {
            true => "its link is down until it is connected again",
            false => "its link is down",
        };
        let message = format!("the network of {} {why}{said}; {then}", self.name);
        // Not each attempt of a series is told.
        self.told |= self.delay == FIRST_DELAY;
        if self.delay == FIRST_DELAY {
            tracing::warn!("{message}");
        } else {
            tracing::debug!("{message}");
        }
        self.retry_later();
    }

    fn retry_later(&mut self) {
        if !self.connect.again() {
            return;
        }
        let at = Expiration::OneShot(TimeSpec::from_duration(self.delay));
        self.delay = (self.delay * 2).min(LAST_DELAY);
        match self.timer.set(at, TimerSetTimeFlags::empty()) {
            Ok(()) => self.waiting = true,
            Err(error) => tracing::warn!("the network of {} stays down: {error}", self.name),
        }
    }

    fn reconnect(&mut self) {
        match self.try_connect() {
            Ok(()) => {
                if std::mem::take(&mut self.told) {
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
        if !self.open {
            return;
        }
        if ready.is(WATCHED) {
            self.connect.woken();
        }
        if ready.has_hung_up(STREAM) && self.stream.is_some() {
            // Frames that it has sent before are lost.
            self.lost("was closed by its peer");
        } else if ready.is(STREAM) {
            if let Some(link) = &mut self.stream {
                link.readable = true;
            }
            self.flush();
        }
        if ready.is(TIMER) {
            // It is over; whether it can be read says nothing more.
            let _expired = self.timer.wait();
            self.waiting = false;
        }
        let tries = ready.is(LISTENER) || ready.is(TIMER);
        if self.stream.is_none() && tries && !self.waiting {
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

    fn inject(&mut self, frame: &[u8]) {
        if let Some(link) = &mut self.stream
            && link.outgoing.has_room()
        {
            link.outgoing.push_own(frame);
        }
        self.flush();
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
                // The bell tells the end.
                Err(_) => {
                    link.outgoing = Outgoing::default();
                    return;
                }
            }
        }
    }

    fn acquire(&mut self) -> io::Result<()> {
        if self.open {
            return Ok(());
        }
        self.connect.open()?;
        if let Some(listener) = self.connect.listener() {
            self.readiness.add(listener.as_fd(), LISTENER, false)?;
        }
        match self.try_connect() {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // It was lost before, which a VM survives.
            Err(error) if self.connected => {
                self.told = true;
                tracing::warn!(
                    "the network of {} is not connected, its link is down: {error}",
                    self.name
                );
                self.retry_later();
            }
            Err(error) => {
                self.connect.close();
                return Err(error);
            }
        }
        self.open = true;
        Ok(())
    }

    fn release(&mut self) {
        self.open = false;
        self.detach();
        self.connect.close();
        // Nothing of it is left for the next time.
        let _disarmed = self.timer.unset();
        self.waiting = false;
        self.delay = FIRST_DELAY;
        self.readiness.take();
    }
}

#[cfg(test)]
mod tests;
