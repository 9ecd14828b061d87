//! Character devices: the two sides of a serial line.
//!
//! The guest's side is a [`CharDevice`] (a UART, the debug console). The user's side is a [`Wire`] from a
//! [`CharBackend`]. The [`IoThread`](super::io_thread::IoThread) transfers bytes between them; neither side
//! ever waits for the other:
//!
//! * **Output.** The device appends bytes to its [`TxQueue`], which has a fixed size. While a slow reader
//!   keeps it full, the device reports "busy" as hardware does; bytes that a guest sends regardless are lost.
//!   A reader that has closed (closed stdout, full disk) is reported once; from then on output is dropped and
//!   the guest continues.
//! * **Input.** The source is read only while the device has room, so nothing is lost and nothing
//!   accumulates. A terminal is the exception: it is always read, since Ctrl-A x must work with a guest that
//!   reads no input.

mod backend;
mod escape;
mod open;
mod terminal;
mod wire;

pub use backend::CharBackend;
pub use terminal::restore as restore_terminal;
pub(in crate::devices) use wire::SLOTS;
pub use wire::Wire;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::io_thread::Waker;

/// The guest's side of a line, as seen by the I/O thread.
pub trait CharDevice: Send {
    /// The number of bytes of input that it can accept now. After returning 0 it wakes the I/O thread once it
    /// has room again.
    fn input_room(&mut self) -> usize;

    /// Accepts input; at most [`CharDevice::input_room`] bytes.
    fn input(&mut self, bytes: &[u8]);

    /// The line was held in the break condition (Ctrl-A b).
    fn input_break(&mut self);

    /// Moves pending output to `buf`; returns the number of bytes.
    fn take_output(&mut self, buf: &mut [u8]) -> usize;

    /// Whether somebody is at the other end.
    fn connected(&mut self, connected: bool) {
        let _unused = connected;
    }

    /// The other end is a terminal of so many characters.
    fn resized(&mut self, columns: u16, rows: u16) {
        let _unused = (columns, rows);
    }
}

/// Why a backend could not be opened.
#[derive(Debug, Error)]
pub enum CharError {
    /// Two devices use the terminal.
    #[error(
        "cannot connect {device} to stdio: another device has it; give only one of them `stdio`"
    )]
    StdioTaken {
        /// The second device.
        device: String,
    },
    /// A file or socket could not be opened.
    #[error("cannot connect {device}: {action} {} failed", path.display())]
    Path {
        /// The device.
        device: String,
        /// The attempted operation, e.g. `creating the file`.
        action: &'static str,
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The socket's path is occupied by something that must not be removed.
    #[error("cannot connect {device}: {} {obstacle}; give another path or remove it", path.display())]
    SocketInUse {
        /// The device.
        device: String,
        /// The path.
        path: PathBuf,
        /// The obstacle.
        obstacle: &'static str,
    },
    /// The terminal or a pseudo-terminal could not be set up.
    #[error("cannot connect {device}: {action} failed")]
    Terminal {
        /// The device.
        device: String,
        /// The attempted operation.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// The bytes that a device has sent and that have not been read yet.
#[derive(Debug, Default)]
pub struct TxQueue {
    bytes: VecDeque<u8>,
    waker: Option<Waker>,
    lost: u64,
}

impl TxQueue {
    /// More than a second at 115200 baud; enough for a burst of kernel messages while the reader sleeps.
    pub const CAPACITY: usize = 16 * 1024;

    /// A queue whose reader is woken by `waker`; without one, output is dropped at once.
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

    /// Moves the content to `buf`.
    pub fn take(&mut self, buf: &mut [u8]) -> usize {
        let count = buf.len().min(self.bytes.len());
        for (slot, byte) in buf.iter_mut().zip(self.bytes.drain(..count)) {
            *slot = byte;
        }
        count
    }

    /// The number of bytes that did not fit, since the start.
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
