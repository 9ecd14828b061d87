//! One connection, as frames and messages.

use std::time::Duration;

use super::MigrationError;
use super::transport::Stream;
use super::wire::{Failed, Frame, FrameReader, FrameWriter, Kind, MAX_BODY, Message, WireError};

/// The most bytes in a [`Kind::Part`].
pub(super) const PART: usize = 1 << 20;

/// One connection.
#[derive(Debug)]
pub struct Channel {
    stream: Stream,
    reader: FrameReader,
    writer: FrameWriter,
}

impl Channel {
    /// Over `stream`.
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

    /// Sends a frame; how many bytes it took.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn send_frame(&mut self, kind: Kind, body: &[u8]) -> Result<u64, WireError> {
        Ok(self.writer.write(&mut self.stream, kind, body)?)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn send<M: Message>(&mut self, message: &M) -> Result<u64, WireError> {
        self.send_frame(M::KIND, &message.body())
    }

    /// Sends `bytes` in pieces; how many bytes it took.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn send_parts(&mut self, bytes: &[u8]) -> Result<u64, WireError> {
        const { assert!(PART <= MAX_BODY) };
        let mut sent = 0;
        for part in bytes.chunks(PART) {
            sent += self.send_frame(Kind::Part, part)?;
        }
        Ok(sent)
    }

    /// Waits for a frame.
    ///
    /// # Errors
    /// If none comes, or the other end gives up.
    pub fn frame(&mut self) -> Result<Frame<'_>, MigrationError> {
        let frame = self.reader.read(&mut self.stream)?;
        if frame.kind == Kind::Failed {
            let failed: Failed = frame.message("anything")?;
            return Err(MigrationError::Peer(visible(&failed.why)));
        }
        Ok(frame)
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// If something else comes, or nothing.
    pub fn recv<M: Message>(&mut self, wanted: &'static str) -> Result<M, MigrationError> {
        Ok(self.frame()?.message(wanted)?)
    }

    /// Waits for a frame without a body.
    ///
    /// # Errors
    /// If something else comes, or nothing.
    pub fn recv_kind(&mut self, kind: Kind, wanted: &'static str) -> Result<(), MigrationError> {
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

    /// What the other end had to say before the connection failed with `e`, if it is known that it gave up.
    pub fn last_word(&mut self, e: MigrationError) -> MigrationError {
        if !matches!(e, MigrationError::Wire(_)) {
            return e;
        }
        self.stream.cannot_be_cancelled(Duration::from_millis(200));
        match self.frame() {
            Err(word @ MigrationError::Peer(_)) => word,
            _ => e,
        }
    }

    /// Tells the other end why this one gives up, as far as it still listens.
    pub fn give_up(&mut self, why: &str) {
        self.stream.cannot_be_cancelled(Duration::from_secs(1));
        let _gone = self.send(&Failed {
            why: why.to_owned(),
        });
    }

    /// Reads what still comes and throws it away, so that what was said last is not lost with it (TCP resets a connection
    /// that is closed with input unread).
    pub fn drain(&mut self, frames: u32) {
        self.stream.cannot_be_cancelled(Duration::from_millis(500));
        for _ in 0..frames {
            if self.reader.read(&mut self.stream).is_err() {
                break;
            }
        }
    }
}

/// Collects the pieces that a message then ends.
#[derive(Debug)]
pub(super) struct Parts {
    bytes: Vec<u8>,
    max: usize,
}

impl Parts {
    /// Nothing yet, and at most `max` bytes.
    pub(super) fn new(max: usize) -> Self {
        Self {
            bytes: Vec::new(),
            max,
        }
    }

    /// Adds a piece.
    ///
    /// # Errors
    /// If it becomes too much.
    pub(super) fn add(&mut self, part: &[u8]) -> Result<(), WireError> {
        if self.bytes.len() + part.len() > self.max {
            return Err(WireError::Nonsense {
                kind: Kind::Part,
                why: format!("more than {} bytes", self.max),
            });
        }
        self.bytes.extend_from_slice(part);
        Ok(())
    }

    /// All of it, which must be `len` bytes.
    ///
    /// # Errors
    /// If it is not.
    pub(super) fn finish(&mut self, len: u64, kind: Kind) -> Result<Vec<u8>, WireError> {
        if self.bytes.len() as u64 != len {
            return Err(WireError::Nonsense {
                kind,
                why: format!("{} bytes came of {len}", self.bytes.len()),
            });
        }
        Ok(std::mem::take(&mut self.bytes))
    }
}

/// Another's words, which could hold anything that a terminal obeys.
pub(super) fn visible(text: &str) -> String {
    let short: String = text.chars().take(4096).collect();
    short.escape_debug().to_string()
}
