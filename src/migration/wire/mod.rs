//! The wire format: frames with a kind, a length, a checksum and a body.
//!
//! ```text
//! offset 0  u32  bytes of the body
//!        4  u16  kind
//!        6  u16  0
//!        8  u32  CRC32C of the first eight bytes and the body
//!       12       the body
//! ```
//! Little-endian. A reader has one buffer, never larger than [`MAX_BODY`], regardless of the length that
//! the peer claims.

mod message;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, Read, Write};

use thiserror::Error;

pub use message::{
    Accept, BOOT_FILES, BootFile, Failed, Hello, MAX_BOOT, MAX_PROMISE, MAX_STATE, PromiseMessage,
    Refuse, StateMessage, VERSIONS, Versions, Welcome, WireMessage,
};

/// The longest body: 1 MiB of pages and their headers.
pub const MAX_BODY: usize = (1 << 20) + (64 << 10);
/// The longest body of a frame that carries no memory and no state.
const MAX_TALK: usize = 64 << 10;
const HEADER: usize = 12;

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum FrameKind {
    /// Source: the first frame of each connection.
    Hello = 1,
    /// Destination: the reply to Hello.
    Welcome = 2,
    /// Source: a part of the promise or of the state, ended by the next [`FrameKind::Promise`] or
    /// [`FrameKind::State`].
    Part = 3,
    /// Source: the preceding parts are the promise to the guest.
    Promise = 4,
    /// Destination: it can keep the promise, and has the RAM.
    Accept = 5,
    /// Destination: it cannot keep the promise, with the reasons.
    Refuse = 6,
    /// Source: guest memory.
    Pages = 7,
    /// Source: no more guest memory on this connection.
    EndOfPages = 8,
    /// Source: the preceding parts are the state of everything but RAM.
    State = 9,
    /// Destination: the VM is complete and could run.
    Ready = 10,
    /// Source: the destination owns the VM. The single point of commitment.
    Commit = 11,
    /// Destination: it runs the VM.
    Running = 12,
    /// Either end: it aborts, with the reason.
    Failed = 13,
    /// Source: the preceding parts are a file that a reset boots. Sent only to a destination whose
    /// [`Welcome`] accepts it.
    BootFile = 14,
}

impl FrameKind {
    const ALL: [Self; 14] = [
        Self::Hello,
        Self::Welcome,
        Self::Part,
        Self::Promise,
        Self::Accept,
        Self::Refuse,
        Self::Pages,
        Self::EndOfPages,
        Self::State,
        Self::Ready,
        Self::Commit,
        Self::Running,
        Self::Failed,
        Self::BootFile,
    ];

    /// Returns all kinds.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter()
    }

    fn of(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// Its number in the header.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// The longest body that such a frame may have.
    pub fn limit(self) -> usize {
        match self {
            Self::Pages | Self::Part => MAX_BODY,
            Self::Hello
            | Self::Welcome
            | Self::Promise
            | Self::Accept
            | Self::Refuse
            | Self::State
            | Self::BootFile
            | Self::Failed => MAX_TALK,
            Self::EndOfPages | Self::Ready | Self::Commit | Self::Running => 0,
        }
    }
}

/// Why received data is invalid.
#[derive(Debug, Error)]
pub enum WireError {
    /// The connection ended, stalled, or failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The other end closed the connection between two frames.
    #[error("the other end closed the connection")]
    Closed,
    /// An unknown kind of frame.
    #[error(
        "received a frame of unknown kind {0}: the other end is not hypernest, or is a later version"
    )]
    UnknownKind(u16),
    /// The body is longer than its kind allows.
    #[error("received a {kind:?} frame of {len} bytes; the maximum is {max}")]
    TooLong {
        /// Its kind.
        kind: FrameKind,
        /// The length in the header, in bytes.
        len: u64,
        /// The maximum for this kind, in bytes.
        max: usize,
    },
    /// The checksum is wrong.
    #[error("received a damaged {kind:?} frame: its checksum is wrong")]
    Damaged {
        /// Its kind.
        kind: FrameKind,
    },
    /// The body is not valid for this kind.
    #[error("received an invalid {kind:?} frame: {why}")]
    Nonsense {
        /// Its kind.
        kind: FrameKind,
        /// The reason.
        why: String,
    },
    /// The frame is valid but not expected now.
    #[error("received a {got:?} frame, expected {wanted}")]
    OutOfTurn {
        /// The received kind.
        got: FrameKind,
        /// The expected frames.
        wanted: &'static str,
    },
}

/// Writes frames.
#[derive(Debug, Default)]
pub struct FrameWriter {
    /// The header of the frame being written, and its body if that is short.
    frame: Vec<u8>,
}

impl FrameWriter {
    /// Writes a frame to `to`, which needs no buffer, and returns the number of bytes written.
    ///
    /// # Errors
    /// If the connection fails.
    ///
    /// # Panics
    /// If the body is longer than its kind allows.
    pub fn write(&mut self, to: &mut impl Write, kind: FrameKind, body: &[u8]) -> io::Result<u64> {
        assert!(body.len() <= kind.limit(), "{kind:?} is too long");
        let len = u32::try_from(body.len()).expect("below the limit");
        self.frame.clear();
        self.frame.extend_from_slice(&len.to_le_bytes());
        self.frame.extend_from_slice(&kind.number().to_le_bytes());
        self.frame.extend_from_slice(&[0; 2]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&self.frame), body);
        self.frame.extend_from_slice(&crc.to_le_bytes());
        if body.len() <= MAX_TALK {
            self.frame.extend_from_slice(body);
            to.write_all(&self.frame)?;
        } else {
            // A second system call costs less than copying a body of this size.
            to.write_all(&self.frame)?;
            to.write_all(body)?;
        }
        to.flush()?;
        Ok((HEADER + body.len()) as u64)
    }
}

/// Reads frames.
#[derive(Debug, Default)]
pub struct FrameReader {
    body: Vec<u8>,
}

/// A received frame.
#[derive(Debug)]
pub struct Frame<'a> {
    /// Its kind.
    pub kind: FrameKind,
    /// Its body.
    pub body: &'a [u8],
}

impl FrameReader {
    /// Reads the next frame.
    ///
    /// # Errors
    /// If the connection fails, or the data is not a valid frame.
    pub fn read(&mut self, from: &mut impl Read) -> Result<Frame<'_>, WireError> {
        let mut header = [0; HEADER];
        read_header(from, &mut header)?;
        let [l0, l1, l2, l3, k0, k1, z0, z1, c0, c1, c2, c3] = header;
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        let number = u16::from_le_bytes([k0, k1]);
        let kind = FrameKind::of(number).ok_or(WireError::UnknownKind(number))?;
        let too_long = || WireError::TooLong {
            kind,
            len: len.into(),
            max: kind.limit(),
        };
        let len = usize::try_from(len).map_err(|_| too_long())?;
        if len > kind.limit() {
            return Err(too_long());
        }
        self.body.resize(len, 0);
        from.read_exact(&mut self.body)?;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..8]), &self.body);
        if crc != u32::from_le_bytes([c0, c1, c2, c3]) || [z0, z1] != [0; 2] {
            return Err(WireError::Damaged { kind });
        }
        Ok(Frame {
            kind,
            body: &self.body,
        })
    }
}

/// Reads a header; distinguishes the end of input between two frames from one inside a frame.
fn read_header(from: &mut impl Read, header: &mut [u8; HEADER]) -> Result<(), WireError> {
    let first = loop {
        match from.read(header) {
            Ok(n) => break n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    };
    if first == 0 {
        return Err(WireError::Closed);
    }
    Ok(from.read_exact(&mut header[first..])?)
}
