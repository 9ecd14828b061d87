//! What goes over a connection: frames of a kind, a length, a checksum and a body.
//!
//! ```text
//! offset 0  u32  bytes of the body
//!        4  u16  kind
//!        6  u16  0
//!        8  u32  CRC32C of the first eight bytes and the body
//!       12       the body
//! ```
//! Little-endian. A reader keeps one buffer, never larger than [`MAX_BODY`], whatever the other end claims.

mod message;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, Read, Write};

use thiserror::Error;

pub use message::{
    Accept, BOOT_FILES, BootFile, Failed, Hello, MAX_BOOT, MAX_PROMISE, MAX_STATE, Message,
    Promise, Refuse, State, VERSIONS, Versions, Welcome,
};

/// The longest body: 1 MiB of pages and their headers.
pub const MAX_BODY: usize = (1 << 20) + (64 << 10);
/// The longest body of a frame that carries no memory and no state.
const MAX_TALK: usize = 64 << 10;
const HEADER: usize = 12;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Kind {
    /// Source: the first frame of each connection.
    Hello = 1,
    /// Destination: the answer.
    Welcome = 2,
    /// Source: a piece of the promise or of the state, which the next [`Kind::Promise`] or [`Kind::State`] ends.
    Part = 3,
    /// Source: the pieces were what the guest was promised.
    Promise = 4,
    /// Destination: it can keep the promise, and has the RAM.
    Accept = 5,
    /// Destination: it cannot, and why.
    Refuse = 6,
    /// Source: guest memory.
    Pages = 7,
    /// Source: no more guest memory on this connection.
    EndOfPages = 8,
    /// Source: the pieces were everything else.
    State = 9,
    /// Destination: the VM is complete and could run.
    Ready = 10,
    /// Source: it is yours. The single point of commitment.
    Commit = 11,
    /// Destination: it runs.
    Running = 12,
    /// Either end: gives up, and why.
    Failed = 13,
    /// Source: the pieces were a file that a reset boots. Only to a destination whose [`Welcome`] says that it takes them.
    BootFile = 14,
}

impl Kind {
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

    /// All of them.
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

/// What is wrong with what came over a connection.
#[derive(Debug, Error)]
pub enum WireError {
    /// The connection ended, stalled, or failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The other end closed the connection between two frames.
    #[error("the other end closed the connection")]
    Closed,
    /// Not a kind of this protocol.
    #[error(
        "a frame of unknown kind {0} came: the other end is not hypernest, or of a later version"
    )]
    UnknownKind(u16),
    /// Longer than its kind allows.
    #[error("a {kind:?} frame of {len} bytes came: {max} are allowed")]
    TooLong {
        /// Its kind.
        kind: Kind,
        /// What it claims.
        len: u64,
        /// What it may have.
        max: usize,
    },
    /// The checksum is wrong.
    #[error("a {kind:?} frame came damaged: its checksum is wrong")]
    Damaged {
        /// Its kind.
        kind: Kind,
    },
    /// The body does not say what such a frame says.
    #[error("a {kind:?} frame makes no sense: {why}")]
    Nonsense {
        /// Its kind.
        kind: Kind,
        /// Why.
        why: String,
    },
    /// Not the frame whose turn it is.
    #[error("a {got:?} frame came where {wanted} was due")]
    OutOfTurn {
        /// What came.
        got: Kind,
        /// What was due.
        wanted: &'static str,
    },
}

/// Writes frames.
#[derive(Debug, Default)]
pub struct FrameWriter {
    /// Header and, if it is short, body of the frame being written.
    frame: Vec<u8>,
}

impl FrameWriter {
    /// Writes a frame to `to`, which should not need a buffer of its own; how many bytes it took.
    ///
    /// # Errors
    /// If the connection fails.
    ///
    /// # Panics
    /// If the body is longer than its kind may have.
    pub fn write(&mut self, to: &mut impl Write, kind: Kind, body: &[u8]) -> io::Result<u64> {
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
            // Another system call takes less than copying so much.
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

/// A frame as it came.
#[derive(Debug)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: Kind,
    /// What it carries.
    pub body: &'a [u8],
}

impl FrameReader {
    /// Waits for the next frame.
    ///
    /// # Errors
    /// If the connection fails, or what comes is no frame.
    pub fn read(&mut self, from: &mut impl Read) -> Result<Frame<'_>, WireError> {
        let mut header = [0; HEADER];
        read_header(from, &mut header)?;
        let [l0, l1, l2, l3, k0, k1, z0, z1, c0, c1, c2, c3] = header;
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        let number = u16::from_le_bytes([k0, k1]);
        let kind = Kind::of(number).ok_or(WireError::UnknownKind(number))?;
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

/// An end between two frames is told from one inside a frame.
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
