//! The user's side of a line: one turn transfers bytes between descriptors and a device, for any backend.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{info, warn};

use super::escape::{EscapeKeys, HELP, Key};
use super::terminal::RawTerminal;
use super::{CharDevice, TxQueue};
use crate::life::{MachineHandle, Request};
use crate::sys::listener::Listener;
use crate::sys::terminal_size;

/// The maximum that is read or written at once. A pipe that polls writable accepts PIPE_BUF (4096) bytes
/// without blocking.
const CHUNK: usize = 4096;

/// The polling interval of a pseudo-terminal that no process has open (Linux reports its opening in no other
/// way), and of a socket whose client could not be accepted.
const LOOK: Duration = Duration::from_millis(500);

/// The descriptors of a wire, in the order in which their readiness is passed back.
pub(in crate::devices) const SLOTS: usize = 3;
const INPUT: usize = 0;
const OUTPUT: usize = 1;
const LISTENER: usize = 2;

/// One connected backend.
#[derive(Debug)]
pub struct Wire {
    pub(super) device: String,
    pub(super) input: Option<Arc<File>>,
    pub(super) output: Option<Arc<File>>,
    pub(super) listener: Option<Listener>,
    /// The master side; also `input` and `output` while a process has the other side open.
    pub(super) pty: Option<Arc<File>>,
    pub(super) keys: Option<(EscapeKeys, MachineHandle)>,
    /// Holds the terminal in raw mode; such an input is read even if the guest does not read.
    pub(super) terminal: Option<RawTerminal>,
    /// How large the terminal is, when that was last looked at: at the start, and when something is typed.
    size: Option<(u16, u16)>,
    /// Accepting the waiting client is retried periodically.
    accept_failed: bool,
    /// Input for which the device has no room yet. At most two chunks.
    arrived: VecDeque<Key>,
    /// Output that the backend has not accepted yet. At most one chunk and the help text, or a device's whole
    /// queue while the world is stopped.
    leaving: Vec<u8>,
}

impl Wire {
    /// A wire that is not connected at the user's end yet.
    pub(super) fn new(device: &str) -> Self {
        Self {
            device: device.to_owned(),
            input: None,
            output: None,
            listener: None,
            pty: None,
            keys: None,
            terminal: None,
            size: None,
            accept_failed: false,
            arrived: VecDeque::new(),
            leaving: Vec::new(),
        }
    }

    /// The poll events per slot; `None` for an unused slot.
    pub(in crate::devices) fn interest(&self) -> [Option<(BorrowedFd<'_>, PollFlags)>; SLOTS] {
        let wants_input = self.arrived.is_empty() || self.terminal.is_some();
        // A peer that can hang up is always watched for that, so that another can replace it.
        let can_leave = self.listener.is_some() || self.pty.is_some();
        let events = if wants_input {
            PollFlags::POLLIN
        } else {
            PollFlags::empty()
        };
        let input = self
            .input
            .as_ref()
            .filter(|_| wants_input || can_leave)
            .map(|f| (f.as_fd(), events));
        let events = if self.leaving.is_empty() {
            PollFlags::empty()
        } else {
            PollFlags::POLLOUT
        };
        let output = self
            .output
            .as_ref()
            .filter(|_| !self.leaving.is_empty() || (can_leave && self.input.is_none()))
            .map(|f| (f.as_fd(), events));
        let listener = self
            .listener
            .as_ref()
            .filter(|_| self.output.is_none() && !self.accept_failed)
            .map(|l| (l.socket().as_fd(), PollFlags::POLLIN));
        [input, output, listener]
    }

    /// The maximum duration of a poll.
    pub(in crate::devices) fn patience(&self) -> Option<Duration> {
        (self.accept_failed || self.pty.is_some() && self.output.is_none()).then_some(LOOK)
    }

    /// Handles the polled readiness, without the device.
    pub(in crate::devices) fn turn_host(&mut self, ready: [PollFlags; SLOTS]) {
        if ready[LISTENER].contains(PollFlags::POLLIN) || self.accept_failed {
            self.accept();
        }
        self.look_for_pty_user();
        if !ready[OUTPUT].is_empty() {
            self.send();
        }
        if !ready[INPUT].is_empty() {
            self.look_at_size();
            self.receive(ready[INPUT]);
        }
    }

    /// Exchanges bytes with the device.
    pub(in crate::devices) fn turn_device(&mut self, device: &mut dyn CharDevice) {
        device.connected(self.output.is_some());
        if let Some((columns, rows)) = self.size {
            device.resized(columns, rows);
        }
        self.deliver(device);
        self.collect(device);
    }

    /// Takes all output of the device, as far as that is bounded.
    pub(in crate::devices) fn collect_all(&mut self, device: &mut dyn CharDevice) {
        self.collect(device);
        let mut chunk = [0; CHUNK];
        while self.output.is_some() && self.leaving.len() < TxQueue::CAPACITY {
            match device.take_output(&mut chunk) {
                0 => return,
                count => self.leaving.extend_from_slice(&chunk[..count]),
            }
        }
    }

    /// Whether output is pending for the backend.
    pub(in crate::devices) fn has_output(&self) -> bool {
        !self.leaving.is_empty()
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        match listener.accept() {
            Ok(stream) => {
                info!(device = self.device, "a client connected");
                let stream = Arc::new(File::from(OwnedFd::from(stream)));
                self.input = Some(stream.clone());
                self.output = Some(stream);
                self.accept_failed = false;
            }
            Err(e) if is_transient(&e) => self.accept_failed = false,
            // Most likely a temporary lack of descriptors.
            Err(error) => {
                if !self.accept_failed {
                    warn!(device = self.device, %error, "cannot accept a client: it waits");
                }
                self.accept_failed = true;
            }
        }
    }

    fn look_for_pty_user(&mut self) {
        if let Some(master) = &self.pty
            && self.output.is_none()
        {
            let mut fds = [PollFd::new(master.as_fd(), PollFlags::empty())];
            let hung_up = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0);
            if !hung_up {
                self.input = Some(master.clone());
                self.output = Some(master.clone());
                self.look_at_size();
            }
        }
    }

    /// Looks at the size of a terminal.
    pub(super) fn look_at_size(&mut self) {
        if self.terminal.is_some() || self.pty.is_some() {
            let input = self.input.as_ref();
            self.size = input.and_then(|input| terminal_size(input.as_fd()));
        }
    }

    fn receive(&mut self, ready: PollFlags) {
        let Some(input) = self.input.clone() else {
            return;
        };
        if !self.arrived.is_empty() && self.terminal.is_none() {
            // Without a request for input only a hang-up is reported.
            if ready.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
                self.disconnect();
            }
            return;
        }
        let mut chunk = [0; CHUNK];
        match (&*input).read(&mut chunk) {
            Ok(0) if self.pty.is_some() => self.disconnect(),
            // End of input. The output stays: a client may have closed only its sending side.
            Ok(0) => {
                self.input = None;
                if self.listener.is_some() && ready.contains(PollFlags::POLLHUP) {
                    self.disconnect();
                }
            }
            Ok(count) => {
                for byte in &chunk[..count] {
                    self.key(*byte);
                }
            }
            Err(e) if is_transient(&e) => {}
            Err(_) if self.listener.is_some() || self.pty.is_some() => self.disconnect(),
            Err(error) => {
                warn!(device = self.device, %error, "input failed: the guest receives no more of it");
                self.input = None;
            }
        }
    }

    fn key(&mut self, byte: u8) {
        let key = match &mut self.keys {
            Some((keys, _)) => keys.key(byte),
            None => Key::Guest(byte),
        };
        match key {
            // The guest has not read thousands of keys: keeping more is useless.
            Key::Guest(_) | Key::Break => {
                if self.arrived.len() < 2 * CHUNK {
                    self.arrived.push_back(key);
                }
            }
            Key::Swallowed => {}
            Key::Quit => {
                if let Some((_, handle)) = &self.keys {
                    handle.request(Request::Kill);
                }
            }
            Key::Help => {
                if self.leaving.len() < 2 * CHUNK {
                    self.leaving.extend_from_slice(HELP.as_bytes());
                }
            }
        }
    }

    fn deliver(&mut self, device: &mut dyn CharDevice) {
        let mut run = [0; 64];
        while !self.arrived.is_empty() {
            let room = device.input_room().min(run.len());
            if room == 0 {
                return;
            }
            let mut count = 0;
            while count < room
                && let Some(Key::Guest(byte)) = self.arrived.front().copied()
            {
                run[count] = byte;
                count += 1;
                self.arrived.pop_front();
            }
            if count > 0 {
                device.input(&run[..count]);
            }
            if self.arrived.front() == Some(&Key::Break) {
                self.arrived.pop_front();
                device.input_break();
            }
        }
    }

    fn collect(&mut self, device: &mut dyn CharDevice) {
        if self.output.is_none() {
            // No peer: as on a line without a cable.
            self.leaving.clear();
            let mut dropped = [0; CHUNK];
            while device.take_output(&mut dropped) == CHUNK {}
        } else if self.leaving.is_empty() {
            let mut chunk = [0; CHUNK];
            let count = device.take_output(&mut chunk);
            self.leaving.extend_from_slice(&chunk[..count]);
        }
    }

    fn send(&mut self) {
        let Some(output) = self.output.clone() else {
            return;
        };
        if self.leaving.is_empty() {
            // Polled only for a hang-up.
            self.disconnect();
            return;
        }
        let count = self.leaving.len().min(CHUNK);
        match (&*output).write(&self.leaving[..count]) {
            Ok(written) => {
                self.leaving.drain(..written);
            }
            Err(e) if is_transient(&e) => {}
            Err(_) if self.listener.is_some() || self.pty.is_some() => self.disconnect(),
            Err(error) => {
                warn!(device = self.device, %error, "output failed: the guest continues, its output is \
                                                     dropped");
                self.output = None;
            }
        }
    }

    fn disconnect(&mut self) {
        if self.listener.is_some() {
            info!(device = self.device, "the client left");
        }
        self.input = None;
        self.output = None;
        self.arrived.clear();
        self.leaving.clear();
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
