//! The protocol between a lab host and the machine that runs it, over the host's second serial port.
//!
//! Frames of `0xA5, kind, length (u16, little endian), payload`. The last frame of the host carries the
//! totals of what it sent, so bytes lost on the way are noticed.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use thiserror::Error;

const MARK: u8 = 0xa5;

/// The largest payload of a frame.
pub const MAX_PAYLOAD: usize = 4096;

/// Input is sent in chunks that fit a 16550's receive FIFO, each acknowledged: an emulated port has no other
/// protection against overruns.
pub const MAX_INPUT: usize = 11;

/// The kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Host: init has started; the payload is the kernel's release.
    Hello,
    /// Host: the command starts now.
    Started,
    /// Host: standard output of the command.
    Stdout,
    /// Host: standard error of the command.
    Stderr,
    /// Host: a message from init itself.
    Note,
    /// Host: a chunk of the archive of fetched files.
    Fetched,
    /// Host: the command has ended; the payload is a [`Finished`] in JSON.
    Finished,
    /// Host: the last input frame was received.
    Taken,
    /// To the host: input for the command.
    Stdin,
    /// To the host: end of input.
    StdinEnd,
}

const KINDS: [(Kind, u8); 10] = [
    (Kind::Hello, b'H'),
    (Kind::Started, b'S'),
    (Kind::Stdout, b'o'),
    (Kind::Stderr, b'e'),
    (Kind::Note, b'n'),
    (Kind::Fetched, b'f'),
    (Kind::Finished, b'F'),
    (Kind::Taken, b't'),
    (Kind::Stdin, b'i'),
    (Kind::StdinEnd, b'I'),
];

impl Kind {
    fn code(self) -> u8 {
        KINDS
            .iter()
            .find(|(kind, _)| *kind == self)
            .map_or(0, |(_, code)| *code)
    }

    fn from_code(code: u8) -> Option<Self> {
        KINDS
            .iter()
            .find(|(_, known)| *known == code)
            .map(|(kind, _)| *kind)
    }
}

/// The end of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Exit status, or 128 and the signal that ended it.
    pub status: u8,
    /// Bytes of standard output sent.
    pub stdout: u64,
    /// Bytes of standard error sent.
    pub stderr: u64,
    /// Bytes of the archive of fetched files sent.
    #[serde(default)]
    pub fetched: u64,
    /// The number of files that could not be fetched.
    #[serde(default)]
    pub unfetched: u32,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its kind.
    pub kind: Kind,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// The stream is corrupt.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "the lab host's control line is garbled (byte {byte:#04x} where a frame should have its {place}): \
     bytes were lost on the emulated serial port"
)]
pub struct Garbled {
    byte: u8,
    place: &'static str,
}

/// Writes one frame; payloads over [`MAX_PAYLOAD`] are sent as several.
pub fn send(out: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let mut rest = payload;
    loop {
        let (now, later) = rest.split_at(rest.len().min(MAX_PAYLOAD));
        let length = u16::try_from(now.len()).map_err(io::Error::other)?;
        let mut frame = Vec::with_capacity(now.len() + 4);
        frame.extend([MARK, kind.code()]);
        frame.extend(length.to_le_bytes());
        frame.extend(now);
        out.write_all(&frame)?;
        rest = later;
        if rest.is_empty() {
            return out.flush();
        }
    }
}

/// Decodes frames from chunks of any size.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// Appends bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// The next complete frame, if there is one.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Garbled> {
        let [mark, code, low, high, ..] = self.bytes[..] else {
            return Ok(None);
        };
        if mark != MARK {
            return Err(Garbled {
                byte: mark,
                place: "start",
            });
        }
        let kind = Kind::from_code(code).ok_or(Garbled {
            byte: code,
            place: "kind",
        })?;
        let length = usize::from(u16::from_le_bytes([low, high]));
        if length > MAX_PAYLOAD {
            return Err(Garbled {
                byte: high,
                place: "length",
            });
        }
        if self.bytes.len() < 4 + length {
            return Ok(None);
        }
        let payload = self.bytes[4..4 + length].to_vec();
        self.bytes.drain(..4 + length);
        Ok(Some(Frame { kind, payload }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9000), 0..5),
            cut in 1_usize..5000,
        ) {
            let mut line = Vec::new();
            for payload in &payloads {
                send(&mut line, Kind::Stdout, payload).unwrap();
            }
            let mut decoder = Decoder::default();
            let mut back = Vec::new();
            for piece in line.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    prop_assert_eq!(frame.kind, Kind::Stdout);
                    back.extend(frame.payload);
                }
            }
            prop_assert_eq!(back, payloads.concat());
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.push(&noise);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }

    #[test]
    fn a_lost_byte_is_noticed() {
        let mut line = Vec::new();
        send(&mut line, Kind::Stdout, b"abc").unwrap();
        send(&mut line, Kind::Stdout, b"def").unwrap();
        line.remove(5);
        let mut decoder = Decoder::default();
        decoder.push(&line);
        decoder.next_frame().unwrap();
        assert!(decoder.next_frame().is_err());
    }

    #[test]
    fn every_kind_has_its_own_code() {
        for (kind, code) in KINDS {
            assert_eq!(kind.code(), code);
            assert_eq!(Kind::from_code(code), Some(kind));
        }
    }
}
