//! Frames in a stream, in both directions.

use std::fmt;

use crate::memory::Readable;
use crate::net::{HEADER, MAX_FRAME, MIN_FRAME, Sent};

/// Bytes of a length.
const LENGTH: usize = 4;
/// The most bytes of a frame without its header.
const MAX: usize = MAX_FRAME - HEADER;
/// The length to which short frames are padded: the shortest of Ethernet, without its checksum. So frames
/// that are none cost as much as others.
const PADDED: usize = 60;
/// The most bytes of a frame to the peer: passt ends the stream at longer ones (tap_passt_input in its
/// tap.c).
const MAX_SENT: usize = 65535;
/// How much is read at once.
const READ_SIZE: usize = 2 * (LENGTH + MAX);
/// How much waits to be written before no more frames are taken.
const WRITE_SIZE: usize = LENGTH + MAX_SENT;

/// The length of a frame that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadLength(u32);

impl fmt::Display for BadLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a frame of {} bytes, more than {MAX}", self.0)
    }
}

/// What has been read.
#[derive(Debug)]
pub(super) struct Incoming {
    bytes: Box<[u8]>,
    /// Where what was not taken begins and ends.
    start: usize,
    end: usize,
}

impl Default for Incoming {
    fn default() -> Self {
        Self {
            bytes: vec![0; READ_SIZE].into(),
            start: 0,
            end: 0,
        }
    }
}

impl Incoming {
    /// Where to read to, after [`Incoming::next`] has said that there is no whole frame. It is never empty
    /// then.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }

    /// So many bytes were read to there.
    pub(super) fn filled(&mut self, count: usize) {
        self.end = self.bytes.len().min(self.end + count);
    }

    /// Takes the next frame into `frame` and returns its length, if it has come as a whole. A short one gets
    /// zeroes behind, up to the length of the shortest.
    ///
    /// # Errors
    /// If the stream has no frames.
    pub(super) fn next(&mut self, frame: &mut [u8]) -> Result<Option<usize>, BadLength> {
        let waiting = &self.bytes[self.start..self.end];
        let Some((length, rest)) = waiting.split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length);
        let len = usize::try_from(length).unwrap_or(usize::MAX);
        if len > MAX.min(frame.len()) {
            return Err(BadLength(length));
        }
        let Some(body) = rest.get(..len) else {
            return Ok(None);
        };
        self.start += LENGTH + len;
        frame[..len].copy_from_slice(body);
        let padded = len.max(PADDED);
        frame[len..padded].fill(0);
        Ok(Some(padded))
    }
}

/// What is to be written.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    written: usize,
}

impl Outgoing {
    /// Whether frames are taken.
    pub(super) fn has_room(&self) -> bool {
        self.bytes.len() < WRITE_SIZE
    }

    /// Adds a frame of the host's own, of at least [`MIN_FRAME`] bytes.
    pub(super) fn push_own(&mut self, frame: &[u8]) {
        if let Ok(length) = u32::try_from(frame.len()) {
            self.bytes.extend(length.to_be_bytes());
            self.bytes.extend(frame);
        }
    }

    /// Adds a frame, whose header is left out.
    pub(super) fn push(&mut self, frame: &Readable) -> Sent {
        let len = usize::try_from(frame.len()).unwrap_or(usize::MAX);
        let len = len.checked_sub(HEADER);
        let Some(len) = len.filter(|len| (MIN_FRAME..=MAX_SENT).contains(len)) else {
            return Sent::Dropped;
        };
        let before = self.bytes.len();
        let length = u32::try_from(len).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_be_bytes());
        self.bytes.resize(before + LENGTH + len, 0);
        match frame.copy_to(HEADER as u64, &mut self.bytes[before + LENGTH..]) {
            Ok(count) if count == len => Sent::Yes,
            _ => {
                self.bytes.truncate(before);
                Sent::Dropped
            }
        }
    }

    /// What is to be written next.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    /// So many of them were.
    pub(super) fn written(&mut self, count: usize) {
        self.written += count;
        if self.written >= self.bytes.len() {
            self.bytes.clear();
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::{Dma, GuestRam, MemoryConfig};
    use crate::units::Gpa;

    fn dma() -> Dma {
        let ram = GuestRam::new(&MemoryConfig::of(1 << 20), &[(Gpa(0), 1 << 20)]).unwrap();
        let dma = Dma::new(ram);
        dma.gate().set(true);
        dma
    }

    /// The frames in `stream`, which arrives in pieces of these lengths over and over.
    fn frames(stream: &[u8], pieces: &[usize]) -> Result<Vec<Vec<u8>>, BadLength> {
        let mut incoming = Incoming::default();
        let mut frame = vec![0; MAX];
        let mut found = Vec::new();
        let mut left = stream;
        let mut pieces = pieces.iter().cycle();
        loop {
            while let Some(len) = incoming.next(&mut frame)? {
                found.push(frame[..len].to_vec());
            }
            if left.is_empty() {
                return Ok(found);
            }
            let room = incoming.room();
            assert!(!room.is_empty());
            let count = room.len().min(left.len()).min(*pieces.next().unwrap());
            room[..count].copy_from_slice(&left[..count]);
            left = &left[count..];
            incoming.filled(count);
        }
    }

    fn padded(mut data: Vec<u8>) -> Vec<u8> {
        data.resize(data.len().max(60), 0);
        data
    }

    fn lengths() -> impl Strategy<Value = usize> {
        prop_oneof![0..100_usize, Just(MAX_SENT), Just(MIN_FRAME), 0..=MAX]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn frames_arrive_whole_in_any_pieces(
            lengths in proptest::collection::vec(lengths(), 1..8),
            pieces in proptest::collection::vec(1..200_000_usize, 1..8),
        ) {
            let (dma, mut outgoing) = (dma(), Outgoing::default());
            let mut stream = Vec::new();
            let mut sent = Vec::new();
            for (n, len) in (1..).zip(lengths) {
                let data = vec![n; len];
                dma.write(Gpa(0x100 + HEADER as u64), &data).unwrap();
                let frame = dma.readable(Gpa(0x100), (HEADER + len) as u64).unwrap();
                let taken = outgoing.push(&frame);
                prop_assert_eq!(taken == Sent::Yes, (MIN_FRAME..=MAX_SENT).contains(&len));
                if taken == Sent::Yes {
                    sent.push(padded(data));
                }
                let some = outgoing.bytes().len() / 2;
                stream.extend(&outgoing.bytes()[..some]);
                outgoing.written(some);
            }
            stream.extend(outgoing.bytes());
            prop_assert_eq!(frames(&stream, &pieces).unwrap(), sent);
        }

        #[test]
        fn any_bytes_are_frames_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(frames(&bytes, &[1000]), frames(&bytes, &[1, 2, 3, 4, 5]));
        }
    }

    #[test]
    fn a_length_beyond_the_longest_frame_is_refused_at_once() {
        let length = u32::try_from(MAX).unwrap() + 1;
        assert_eq!(frames(&length.to_be_bytes(), &[4]), Err(BadLength(length)));
        assert_eq!(frames(&(length - 1).to_be_bytes(), &[4]), Ok(vec![]));
        let short = [&[0, 0, 0, 2, 7, 7, 0, 0, 0, 14][..], &[9; 14], &[0; 4]].concat();
        let expected = [vec![7; 2], vec![9; 14], vec![]].map(padded);
        assert_eq!(frames(&short, &[3]), Ok(expected.to_vec()));
    }

    #[test]
    fn what_waits_is_bounded() {
        let (dma, mut outgoing) = (dma(), Outgoing::default());
        let mut count = 0;
        while outgoing.has_room() {
            let frame = dma.readable(Gpa(0), (HEADER + MAX_SENT) as u64).unwrap();
            assert_eq!(outgoing.push(&frame), Sent::Yes);
            count += 1;
        }
        assert_eq!(count, 1);
        let long = (HEADER + MAX_SENT) as u64 + 1;
        let long = dma.readable(Gpa(0), long).unwrap();
        assert_eq!(outgoing.push(&long), Sent::Dropped);
        let short = (HEADER + MIN_FRAME) as u64 - 1;
        let short = dma.readable(Gpa(0), short).unwrap();
        assert_eq!(outgoing.push(&short), Sent::Dropped);
        assert_eq!(outgoing.bytes().len(), LENGTH + MAX_SENT);
    }
}
