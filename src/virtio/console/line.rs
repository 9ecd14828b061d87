//! What a port and the host's end of it have sent, and the other has not taken yet. Both directions are
//! bounded.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use nix::sys::eventfd::EventFd;

/// The most bytes on their way to the host: as much as a serial port has.
pub const TO_HOST: usize = 16 * 1024;

/// The most bytes on their way to the guest. They are saved with the VM.
pub const TO_GUEST: usize = 4096;

/// What calls the attention of the host's end.
pub trait Attention: Send {
    /// There is output.
    fn output(&self);

    /// There is room for input.
    fn room(&self);
}

/// A line.
pub struct Line {
    /// None: nothing is connected, and never will be.
    host: Option<Box<dyn Attention>>,
    bell: Arc<EventFd>,
    to_host: VecDeque<u8>,
    to_guest: VecDeque<u8>,
    /// The guest takes input.
    open: bool,
    /// The host's end has input that it was given no room for.
    input_waits: bool,
    /// The port has output that it was given no room for.
    output_waits: bool,
    connected: bool,
    size: Size,
}

/// The size of a terminal in characters; 0 by 0 if it is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// How many in a row.
    pub columns: u16,
    /// How many rows.
    pub rows: u16,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("open", &self.open)
            .field("connected", &self.connected)
            .finish_non_exhaustive()
    }
}

impl Line {
    /// To `host`. `bell` is signalled when the port has something to do.
    pub fn new(host: Option<Box<dyn Attention>>, bell: Arc<EventFd>) -> Self {
        let to_host = if host.is_some() { TO_HOST } else { 0 };
        Self {
            host,
            bell,
            to_host: VecDeque::with_capacity(to_host),
            to_guest: VecDeque::with_capacity(TO_GUEST),
            open: false,
            input_waits: false,
            output_waits: false,
            connected: false,
            size: Size::default(),
        }
    }

    pub(super) fn bell(&self) -> &Arc<EventFd> {
        &self.bell
    }

    fn ring(&self) {
        // It fails only if the counter is full, and then it is readable as well.
        let _rung = self.bell.write(1);
    }

    /// How many bytes of input the guest's side takes now. Once there is room again, it says so.
    pub fn input_room(&mut self) -> usize {
        let room = match self.open {
            true => TO_GUEST - self.to_guest.len(),
            false => 0,
        };
        self.input_waits = room == 0;
        room
    }

    /// Takes input, of which there is at most [`Line::input_room`].
    pub fn input(&mut self, bytes: &[u8]) {
        let room = TO_GUEST - self.to_guest.len();
        self.to_guest.extend(&bytes[..bytes.len().min(room)]);
        self.ring();
    }

    /// Moves output to `data`; how many bytes.
    pub fn take_output(&mut self, data: &mut [u8]) -> usize {
        let count = data.len().min(self.to_host.len());
        for (slot, byte) in data.iter_mut().zip(self.to_host.drain(..count)) {
            *slot = byte;
        }
        if count > 0 && std::mem::take(&mut self.output_waits) {
            self.ring();
        }
        count
    }

    /// Whether somebody is at the host's end.
    pub fn connect(&mut self, connected: bool) {
        if self.connected != connected {
            self.connected = connected;
            self.ring();
        }
    }

    /// The host's end is a terminal of this size.
    pub fn resize(&mut self, size: Size) {
        if self.size != size {
            self.size = size;
            self.ring();
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected
    }

    pub(super) fn size(&self) -> Size {
        self.size
    }

    /// How many bytes of output fit. Without room the bell rings when there is some.
    pub(super) fn output_room(&mut self) -> usize {
        let room = TO_HOST - self.to_host.len();
        self.output_waits = room == 0;
        room
    }

    /// How many bytes of output wait.
    pub(super) fn output_len(&self) -> usize {
        self.to_host.len()
    }

    /// Appends output; what does not fit is lost, as is all of it if nothing is connected.
    pub(super) fn output(&mut self, bytes: &[u8]) {
        if let Some(host) = &self.host {
            let room = TO_HOST - self.to_host.len();
            self.to_host.extend(&bytes[..bytes.len().min(room)]);
            host.output();
        }
    }

    /// Copies input to `data`, and leaves it there; how many bytes.
    pub(super) fn peek_input(&self, data: &mut [u8]) -> usize {
        let mut count = 0;
        for (slot, byte) in data.iter_mut().zip(&self.to_guest) {
            *slot = *byte;
            count += 1;
        }
        count
    }

    /// Removes the first `count` bytes of input.
    pub(super) fn remove_input(&mut self, count: usize) {
        self.to_guest.drain(..count.min(self.to_guest.len()));
        self.offer_room();
    }

    /// The guest takes input, or does not: then what was on its way is lost.
    pub(super) fn set_open(&mut self, open: bool) {
        self.open = open;
        if !open {
            self.to_guest.clear();
        }
        self.offer_room();
    }

    fn offer_room(&mut self) {
        if self.open && self.to_guest.len() < TO_GUEST && std::mem::take(&mut self.input_waits) {
            self.host.iter().for_each(|host| host.room());
        }
    }

    /// The input on its way.
    pub(super) fn pending_input(&self) -> Vec<u8> {
        self.to_guest.iter().copied().collect()
    }

    /// Has `input` on its way; false if that is too much.
    pub(super) fn set_pending_input(&mut self, input: &[u8]) -> bool {
        let fits = input.len() <= TO_GUEST;
        if fits {
            self.to_guest.clear();
            self.to_guest.extend(input);
        }
        fits
    }
}
