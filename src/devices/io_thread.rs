//! The one thread that waits for the outside world: characters in and out, and the devices' deadlines.
//!
//! It is a loop around `ppoll`: what to wait for is asked of every wire and timed device anew in each turn,
//! so nothing is registered and nothing can be forgotten. (An epoll-based event loop would save that for
//! thousands of descriptors; here there are a handful, and epoll refuses regular files and /dev/null, which
//! stdout often is.)

mod parking;

use std::fmt;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use tracing::error;

use super::char::{CharDevice, CharError, SLOTS, Wire};
use super::clock::Timed;
use crate::bus::lock;
use crate::devices::char::CharBackend;
use crate::life::MachineHandle;
use crate::sys::{Role, set_nonblocking, spawn, wait};
use parking::Parking;

/// How long the thread, told to stop, waits for a reader that takes nothing.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// How long output may gather before it is fetched, unless it is the first for that long: a guest sends bytes
/// one by one, and waking for each would cost more than the byte.
const GATHER: Duration = Duration::from_micros(500);

/// Calls the I/O thread's attention. Cheap while it is already on its way.
#[derive(Clone, Debug)]
pub struct Waker(Arc<WakerState>);

#[derive(Debug)]
struct WakerState {
    receiver: PipeReader,
    sender: PipeWriter,
    urgent: AtomicBool,
    output: AtomicBool,
}

impl Waker {
    fn new() -> io::Result<Self> {
        let (receiver, sender) = io::pipe()?;
        set_nonblocking(receiver.as_fd())?;
        set_nonblocking(sender.as_fd())?;
        Ok(Self(Arc::new(WakerState {
            receiver,
            sender,
            urgent: AtomicBool::new(false),
            output: AtomicBool::new(false),
        })))
    }

    /// Makes the thread look at every device once more, now.
    pub fn wake(&self) {
        self.signal(&self.0.urgent);
    }

    /// The same, but a little later: more output may follow.
    pub fn wake_for_output(&self) {
        self.signal(&self.0.output);
    }

    fn signal(&self, reason: &AtomicBool) {
        if !reason.swap(true, Ordering::AcqRel) {
            // Fails only if the pipe is full; then it is readable anyway.
            let _readable = (&self.0.sender).write(&[1]);
        }
    }

    fn drain(&self) {
        let _empty = (&self.0.receiver).read(&mut [0; 16]);
    }

    fn clear(&self) {
        // Emptied before the flags fall: a wake in between finds its flag set, and the look that follows sees
        // its cause.
        self.drain();
        self.0.urgent.store(false, Ordering::Release);
        self.0.output.store(false, Ordering::Release);
    }

    fn is_for_output_only(&self) -> bool {
        self.0.output.load(Ordering::Acquire) && !self.0.urgent.load(Ordering::Acquire)
    }
}

/// A device at an end of a line.
pub type SharedChar = Arc<Mutex<dyn CharDevice>>;
type SharedTimed = Arc<Mutex<dyn Timed>>;

/// The thread before it runs: devices are connected to it first.
pub struct IoThread {
    waker: Waker,
    handle: MachineHandle,
    wires: Vec<(Wire, SharedChar)>,
    timed: Vec<SharedTimed>,
    stdio_taken: bool,
    keeps_files: bool,
    ptys: Vec<(String, PathBuf)>,
    lines: Option<Vec<(String, SharedChar)>>,
}

impl IoThread {
    /// With nothing connected. Ctrl-A x on the console ends the VM through `handle`.
    ///
    /// # Errors
    /// If no pipe can be had.
    pub fn new(handle: MachineHandle) -> io::Result<Self> {
        Ok(Self {
            waker: Waker::new()?,
            handle,
            wires: Vec::new(),
            timed: Vec::new(),
            stdio_taken: false,
            keeps_files: false,
            ptys: Vec::new(),
            lines: None,
        })
    }

    /// Files that are connected from now on keep what is in them: a VM that goes on adds to what it wrote
    /// before, and what another process still writes is not lost.
    pub fn keep_files(&mut self) {
        self.keeps_files = true;
    }

    /// For devices that have something to tell the thread.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// The waker for a device's [`TxQueue`](super::char::TxQueue): `None` if `backend` leads nowhere, so that
    /// output costs nothing.
    pub fn waker_for(&self, backend: &CharBackend) -> Option<Waker> {
        (*backend != CharBackend::None).then(|| self.waker())
    }

    /// Connects `device`, called `name` in messages, to `backend`.
    ///
    /// # Errors
    /// If the backend cannot be opened.
    pub fn connect(
        &mut self,
        name: &str,
        backend: &CharBackend,
        device: SharedChar,
    ) -> Result<(), CharError> {
        let wire = match backend {
            CharBackend::None => return Ok(()),
            CharBackend::Stdio if self.stdio_taken => {
                return Err(CharError::StdioTaken {
                    device: name.to_owned(),
                });
            }
            CharBackend::Stdio => {
                self.stdio_taken = true;
                Wire::stdio(name, self.handle.clone())?
            }
            CharBackend::File(path) => Wire::file(name, path, self.keeps_files)?,
            CharBackend::Pty => {
                let (wire, path) = Wire::pty(name)?;
                self.ptys.push((name.to_owned(), path));
                wire
            }
            CharBackend::Socket(path) => Wire::socket(name, path)?,
        };
        self.wires.push((wire, device));
        Ok(())
    }

    /// As [`IoThread::waker_for`], for [`IoThread::connect_line`].
    pub fn waker_for_line(&self, backend: &CharBackend) -> Option<Waker> {
        match self.lines {
            Some(_) => Some(self.waker()),
            None => self.waker_for(backend),
        }
    }

    /// As [`IoThread::connect`], for a line that is kept after [`IoThread::keep_lines`].
    ///
    /// # Errors
    /// If the backend cannot be opened.
    pub fn connect_line(
        &mut self,
        name: &str,
        backend: &CharBackend,
        line: SharedChar,
    ) -> Result<(), CharError> {
        match &mut self.lines {
            Some(lines) => {
                lines.push((name.to_owned(), line));
                Ok(())
            }
            None => self.connect(name, backend, line),
        }
    }

    /// Lines from now on are connected to nothing and kept, for a test that plays the host's end.
    pub fn keep_lines(&mut self) {
        self.lines = Some(Vec::new());
    }

    /// The line of this name that was kept.
    pub fn line(&self, name: &str) -> Option<SharedChar> {
        let mut lines = self.lines.iter().flatten();
        lines
            .find(|line| line.0 == name)
            .map(|line| Arc::clone(&line.1))
    }

    /// Pseudo-terminals that were opened: (device, path).
    pub fn ptys(&self) -> &[(String, PathBuf)] {
        &self.ptys
    }

    /// Calls `device` when its time has come.
    pub fn schedule(&mut self, device: SharedTimed) {
        self.timed.push(device);
    }

    /// Starts the thread, parked: it touches no device before [`RunningIo::unpark`].
    ///
    /// # Errors
    /// If the thread cannot be created.
    pub fn start(mut self) -> io::Result<RunningIo> {
        let stop = Arc::new(AtomicBool::new(false));
        let waker = self.waker();
        let told = stop.clone();
        let parking = Parking::parked();
        let places = parking.clone();
        let thread = spawn(Role::Io, move || {
            let _watch = self.handle.watch_thread();
            let _end = places.watch();
            if let Err(error) = self.run(&told, &places) {
                error!(%error, "the I/O thread failed: consoles and the clock's interrupts are dead");
            }
        })?;
        Ok(RunningIo {
            stop,
            parking,
            waker,
            thread: Some(thread),
        })
    }

    fn run(&mut self, stop: &AtomicBool, parking: &Parking) -> io::Result<()> {
        let mut ready = vec![[PollFlags::empty(); SLOTS]; self.wires.len()];
        let mut quiet_since: Option<Instant> = None;
        let mut fetched: Option<Instant> = None;
        loop {
            // Before looking at the devices, so that what happens from now on wakes the poll below.
            self.waker.clear();
            let stopping = stop.load(Ordering::Acquire);
            for ((wire, _), ready) in self.wires.iter_mut().zip(&ready) {
                wire.turn_host(*ready);
            }
            // What the guest sent before the world stopped is still delivered while it is.
            let wires = &mut self.wires;
            let parked = parking.enter(|| {
                for (wire, device) in wires {
                    wire.collect_all(&mut *lock(device));
                }
            });
            if !parked {
                for device in &self.timed {
                    lock(device).tick();
                }
                for (wire, device) in &mut self.wires {
                    wire.turn_device(&mut *lock(device));
                }
            }
            if stopping {
                let moved = ready.iter().flatten().any(|r| !r.is_empty());
                let since = quiet_since.get_or_insert_with(Instant::now);
                if moved {
                    *since = Instant::now();
                }
                let undelivered = self.wires.iter().any(|(wire, _)| wire.has_output());
                if !undelivered || since.elapsed() >= DRAIN_PATIENCE {
                    return Ok(());
                }
            }
            let timeout = self
                .timed
                .iter()
                .filter(|_| !parked)
                .filter_map(|device| lock(device).until_due())
                .chain(self.wires.iter().filter_map(|(wire, _)| wire.patience()))
                .chain(stopping.then_some(DRAIN_PATIENCE))
                .min();
            self.wait(timeout, stopping, &mut ready)?;
            let idle = ready.iter().flatten().all(PollFlags::is_empty);
            if idle && !stopping && self.waker.is_for_output_only() {
                if fetched.is_some_and(|last| last.elapsed() < GATHER) {
                    self.gather(timeout)?;
                }
                fetched = Some(Instant::now());
            }
        }
    }

    /// Lets output gather, until something urgent or a deadline comes.
    fn gather(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.waker.drain();
        let mut fds = [PollFd::new(
            self.waker.0.receiver.as_fd(),
            PollFlags::POLLIN,
        )];
        let patience = timeout.map_or(GATHER, |timeout| timeout.min(GATHER));
        let _urgent = wait(&mut fds, Some(Instant::now() + patience))?;
        Ok(())
    }

    /// Polls; leaves in `ready` what each wire's descriptors said. While stopping, only output counts.
    fn wait(
        &self,
        timeout: Option<Duration>,
        stopping: bool,
        ready: &mut [[PollFlags; SLOTS]],
    ) -> io::Result<()> {
        let mut fds = vec![PollFd::new(
            self.waker.0.receiver.as_fd(),
            PollFlags::POLLIN,
        )];
        let mut places = Vec::new();
        for (index, (wire, _)) in self.wires.iter().enumerate() {
            for (slot, interest) in wire.interest().into_iter().enumerate() {
                if let Some((fd, events)) = interest
                    && (!stopping || events.contains(PollFlags::POLLOUT))
                {
                    fds.push(PollFd::new(fd, events));
                    places.push((index, slot));
                }
            }
        }
        for flags in ready.iter_mut() {
            *flags = [PollFlags::empty(); SLOTS];
        }
        // A time beyond what an Instant can hold is as good as none.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        wait(&mut fds, deadline)?;
        for (fd, (index, slot)) in fds.iter().skip(1).zip(places) {
            // Unknown bits count as an error condition: the next read or write tells what it is.
            ready[index][slot] = fd.revents().unwrap_or(PollFlags::POLLERR);
        }
        Ok(())
    }
}

impl fmt::Debug for IoThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoThread")
            .field(
                "wires",
                &self.wires.iter().map(|w| &w.0).collect::<Vec<_>>(),
            )
            .field("timed", &self.timed.len())
            .finish_non_exhaustive()
    }
}

/// The running thread. Dropped, it delivers what output it can, restores the terminal, removes sockets and
/// ends.
#[derive(Debug)]
pub struct RunningIo {
    stop: Arc<AtomicBool>,
    parking: Arc<Parking>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl RunningIo {
    /// Brings the thread to a point where it touches no device: no input arrives and no deadline comes until
    /// [`RunningIo::unpark`]. It goes on to serve the user's side: escape keys, and output that the devices
    /// have. `false` if the thread is not there within `timeout`; it parks as soon as it can.
    pub fn park(&self, timeout: Duration) -> bool {
        self.parking.want(true);
        self.waker.wake();
        self.parking.wait(timeout)
    }

    /// Ends what [`RunningIo::park`] began.
    pub fn unpark(&self) {
        self.parking.want(false);
        self.waker.wake();
    }

    /// Ends the thread and waits for it.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for RunningIo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.unpark();
        if let Some(thread) = self.thread.take() {
            // A panic was already reported by the hook; the wires were dropped by it.
            let _panicked = thread.join();
        }
    }
}

#[cfg(test)]
mod stdio_tests;
#[cfg(test)]
mod tests;
