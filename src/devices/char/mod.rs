//! Character devices: the two sides of a serial line.
//!
//! The guest's side is a [`CharDevice`] (a UART, the debug console). The user's side is a [`Wire`] made from
//! a [`CharBackend`]. The [`IoThread`](super::io_thread::IoThread) carries bytes between them; neither side
//! ever waits for the other:
//!
//! * **Output.** The device puts bytes into its [`TxQueue`], which has a fixed size. While a slow reader
//!   keeps it full, the device says "busy" as hardware does; a guest that sends regardless loses those bytes.
//!   A reader that went away (closed stdout, full disk) is reported once; from then on output is dropped and
//!   the guest runs on.
//! * **Input.** The source is read only while the device has room, so nothing is lost and nothing piles up. A
//!   terminal is the exception: it is read always, for Ctrl-A x must work with a guest that has stopped
//!   listening.

mod backend;
mod escape;
mod open;
mod socket;
mod terminal;
mod wire;

pub use backend::CharBackend;
pub(in crate::devices) use open::set_nonblocking;
pub use terminal::restore as restore_terminal;
pub(in crate::devices) use wire::SLOTS;
pub use wire::Wire;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::io_thread::Waker;

/// The guest's side of a line, as the I/O thread sees it.
pub trait CharDevice: Send {
    /// How many bytes of input it can take now. After answering 0 it wakes the I/O thread once it has room
    /// again.
    fn input_room(&mut self) -> usize;

    /// Takes input; at most [`CharDevice::input_room`] bytes.
    fn input(&mut self, bytes: &[u8]);

    /// The line was held in the break condition (Ctrl-A b).
    fn input_break(&mut self);

    /// Moves pending output into `buf`; returns how many bytes.
    fn take_output(&mut self, buf: &mut [u8]) -> usize;
}

/// Why a backend could not be opened.
#[derive(Debug, Error)]
pub enum CharError {
    /// Two devices want the terminal.
    #[error(
        "cannot connect {device} to stdio: another device has it; give only one of them `stdio`"
    )]
    StdioTaken {
        /// The second one.
        device: String,
    },
    /// A file or socket could not be opened.
    #[error("cannot connect {device}: {action} {} failed", path.display())]
    Path {
        /// The device.
        device: String,
        /// What was tried, e.g. `creating the file`.
        action: &'static str,
        /// With which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The socket's path is taken by something that must not be removed.
    #[error("cannot connect {device}: {} {obstacle}; give another path or remove it", path.display())]
    SocketInUse {
        /// The device.
        device: String,
        /// The path.
        path: PathBuf,
        /// What is there.
        obstacle: &'static str,
    },
    /// The terminal or a pseudo-terminal would not do as it was told.
    #[error("cannot connect {device}: {action} failed")]
    Terminal {
        /// The device.
        device: String,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// The bytes that a device has sent and nobody has fetched yet.
#[derive(Debug, Default)]
pub struct TxQueue {
    bytes: VecDeque<u8>,
    waker: Option<Waker>,
    lost: u64,
}

impl TxQueue {
    /// At 115200 baud more than a second; enough for a burst of kernel messages while the reader sleeps.
    pub const CAPACITY: usize = 16 * 1024;

    /// A queue whose reader is woken by `waker`; without one, output is dropped on the spot.
    pub fn new(waker: Option<Waker>) -> Self {
        let capacity = if waker.is_some() { Self::CAPACITY } else { 0 };
        Self {
            bytes: VecDeque::with_capacity(capacity),
            waker,
            lost: 0,
        }
    }

    /// Whether one more byte fits.
    pub fn has_room(&self) -> bool {
        self.waker.is_none() || self.bytes.len() < Self::CAPACITY
    }

    /// Appends `byte`, or counts it as lost if the queue is full.
    pub fn push(&mut self, byte: u8) {
        let Some(waker) = &self.waker else { return };
        if self.bytes.len() < Self::CAPACITY {
            self.bytes.push_back(byte);
            waker.wake_for_output();
        } else {
            self.lost += 1;
        }
    }

    /// Moves what is there into `buf`.
    pub fn take(&mut self, buf: &mut [u8]) -> usize {
        let count = buf.len().min(self.bytes.len());
        for (slot, byte) in buf.iter_mut().zip(self.bytes.drain(..count)) {
            *slot = byte;
        }
        count
    }

    /// How many bytes did not fit, since the start.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Wakes the reader.
    pub fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }
}

impl io::Write for TxQueue {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        for byte in buf {
            self.push(*byte);
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
