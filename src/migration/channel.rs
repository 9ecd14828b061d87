//! One connection that carries frames and messages.

use std::time::Duration;

use super::MigrationError;
use super::transport::Stream;
use super::wire::{
    Failed, Frame, FrameKind, FrameReader, FrameWriter, MAX_BODY, WireError, WireMessage,
};

/// The maximum number of bytes in a [`FrameKind::Part`].
pub(super) const PART: usize = 1 << 20;

/// One connection with its frame reader and writer.
#[derive(Debug)]
pub struct Channel {
    stream: Stream,
    reader: FrameReader,
    writer: FrameWriter,
}

impl Channel {
    /// Creates a channel over `stream`.
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            reader: FrameReader::default(),
            writer: FrameWriter::default(),
        }
    }

    /// The connection.
    pub fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// Sends a frame and returns the number of bytes sent.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn send_frame(&mut self, kind: FrameKind, body: &[u8]) -> Result<u64, WireError> {
        Ok(self.writer.write(&mut self.stream, kind, body)?)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn send<M: WireMessage>(&mut self, message: &M) -> Result<u64, WireError> {
        self.send_frame(M::KIND, &message.body())
    }

    /// Sends `bytes` in [`FrameKind::Part`] frames and returns the number of bytes sent.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn send_parts(&mut self, bytes: &[u8]) -> Result<u64, WireError> {
        const { assert!(PART <= MAX_BODY) };
        let mut sent = 0;
        for part in bytes.chunks(PART) {
            sent += self.send_frame(FrameKind::Part, part)?;
        }
        Ok(sent)
    }

    /// Reads the next frame.
    ///
    /// # Errors
    /// If the connection fails, or the other end aborts.
    pub fn frame(&mut self) -> Result<Frame<'_>, MigrationError> {
        let frame = self.reader.read(&mut self.stream)?;
        if frame.kind == FrameKind::Failed {
            let failed: Failed = frame.message("anything")?;
            return Err(MigrationError::Peer(escaped(&failed.why)));
        }
        Ok(frame)
    }

    /// Reads the next frame as a message.
    ///
    /// # Errors
    /// If the connection fails, or the frame is of another kind.
    pub fn recv<M: WireMessage>(&mut self, wanted: &'static str) -> Result<M, MigrationError> {
        Ok(self.frame()?.message(wanted)?)
    }

    /// Reads the next frame, which must be of `kind` and has no body.
    ///
    /// # Errors
    /// If the connection fails, or the frame is of another kind.
    pub fn recv_kind(
        &mut self,
        kind: FrameKind,
        wanted: &'static str,
    ) -> Result<(), MigrationError> {
        let frame = self.frame()?;
        if frame.kind != kind {
            return Err(WireError::OutOfTurn {
                got: frame.kind,
                wanted,
            }
            .into());
        }
        Ok(())
    }

    /// Returns the reason that the other end sent for aborting, if it sent one before the connection failed
    /// with `e`; otherwise `e`.
    pub fn abort_reason(&mut self, e: MigrationError) -> MigrationError {
        if !matches!(e, MigrationError::Wire(_)) {
            return e;
        }
        self.stream.cannot_be_cancelled(Duration::from_millis(200));
        match self.frame() {
            Err(word @ MigrationError::Peer(_)) => word,
            _ => e,
        }
    }

    /// Sends the reason why this end aborts; errors are ignored, since the other end may be gone.
    pub fn send_failure(&mut self, why: &str) {
        self.stream.cannot_be_cancelled(Duration::from_secs(1));
        let _gone = self.send(&Failed {
            why: why.to_owned(),
        });
    }

    /// Reads and discards further frames, so that the message sent last is not lost: TCP resets a
    /// connection that is closed with unread input.
    pub fn drain(&mut self, frames: u32) {
        self.stream.cannot_be_cancelled(Duration::from_millis(500));
        for _ in 0..frames {
            if self.reader.read(&mut self.stream).is_err() {
                break;
            }
        }
    }
}

/// Collects the parts of a blob until a message ends it.
#[derive(Debug)]
pub(super) struct Parts {
    bytes: Vec<u8>,
    max: usize,
}

impl Parts {
    /// Creates an empty collection for at most `max` bytes.
    pub(super) fn new(max: usize) -> Self {
        Self {
            bytes: Vec::new(),
            max,
        }
    }

    /// Adds a part.
    ///
    /// # Errors
    /// If the total exceeds the maximum.
    pub(super) fn add(&mut self, part: &[u8]) -> Result<(), WireError> {
        if self.bytes.len() + part.len() > self.max {
            return Err(WireError::Nonsense {
                kind: FrameKind::Part,
                why: format!("more than {} bytes", self.max),
            });
        }
        self.bytes.extend_from_slice(part);
        Ok(())
    }

    /// Returns all collected bytes, which must be `len` in number.
    ///
    /// # Errors
    /// If the length differs.
    pub(super) fn finish(&mut self, len: u64, kind: FrameKind) -> Result<Vec<u8>, WireError> {
        if self.bytes.len() as u64 != len {
            return Err(WireError::Nonsense {
                kind,
                why: format!("received {} of {len} bytes", self.bytes.len()),
            });
        }
        Ok(std::mem::take(&mut self.bytes))
    }
}

/// Escapes a string of the peer, which could contain terminal control sequences.
pub(super) fn escaped(text: &str) -> String {
    let short: String = text.chars().take(4096).collect();
    short.escape_debug().to_string()
}
