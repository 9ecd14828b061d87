//! A frame on its way into the driver's buffers.

use crate::memory::Dma;
use crate::net::{HEADER, MAX_FRAME};
use crate::virtio::queue::{Chain, Ring, RingError, Segment, total};

/// `num_buffers` of the header (5.1.6).
const NUM_BUFFERS: usize = 10;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// The driver has it.
    Done,
    /// It does not fit into what the driver has, so many buffers, and is dropped.
    TooLong {
        /// As many as were looked at.
        buffers: u16,
    },
    /// There are not enough buffers now; the driver notifies of the next.
    Waits,
}

/// The frames of one pair of queues, one after the other.
#[derive(Debug)]
pub(super) struct Receiver {
    frame: Box<[u8]>,
    /// The length of the frame that waits, with its header; 0: there is none.
    waiting: usize,
    buffers: Vec<Buffer>,
    segments: Vec<Segment>,
}

/// A buffer of the driver.
#[derive(Clone, Copy, Debug)]
struct Buffer {
    head: u16,
    /// Where its segments end.
    end: usize,
    /// How much of the frame is in it.
    len: u32,
}

impl Default for Receiver {
    fn default() -> Self {
        Self {
            frame: vec![0; MAX_FRAME].into(),
            waiting: 0,
            buffers: Vec::new(),
            segments: Vec::new(),
        }
    }
}

impl Receiver {
    /// Drops the frame that waits.
    pub(super) fn clear(&mut self) {
        self.waiting = 0;
    }

    /// The length of the frame that waits; if there is none, `receive` is asked for one.
    pub(super) fn next(
        &mut self,
        receive: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Option<usize> {
        if self.waiting == 0 {
            let len = receive(&mut self.frame)?;
            self.waiting = len.clamp(HEADER, self.frame.len());
        }
        Some(self.waiting)
    }

    /// Gives the frame that waits to the driver, with `merge` in as many buffers as it takes.
    ///
    /// # Errors
    /// If the ring is broken, or may not be accessed now; the frame waits then.
    pub(super) fn deliver(
        &mut self,
        merge: bool,
        chain: &mut Chain,
        ring: &mut Ring,
        dma: &Dma,
    ) -> Result<Delivery, RingError> {
        self.buffers.clear();
        self.segments.clear();
        let outcome = self.try_deliver(merge, chain, ring, dma);
        match outcome {
            Ok(Delivery::Done) => self.waiting = 0,
            Ok(Delivery::TooLong { .. }) => {
                self.waiting = 0;
                ring.undo_pops(self.heads());
            }
            Ok(Delivery::Waits) | Err(_) => ring.undo_pops(self.heads()),
        }
        outcome
    }

    fn count(&self) -> u16 {
        u16::try_from(self.buffers.len()).unwrap_or(u16::MAX)
    }

    fn heads(&self) -> impl Iterator<Item = u16> {
        self.buffers.iter().map(|buffer| buffer.head)
    }

    fn try_deliver(
        &mut self,
        merge: bool,
        chain: &mut Chain,
        ring: &mut Ring,
        dma: &Dma,
    ) -> Result<Delivery, RingError> {
        let mut room = 0;
        while room < self.waiting {
            let buffers = self.count();
            if buffers >= if merge { ring.size() } else { 1 } {
                return Ok(Delivery::TooLong { buffers });
            }
            if !ring.pop(dma, chain)? {
                if ring.rearm(dma)? {
                    continue;
                }
                return Ok(Delivery::Waits);
            }
            self.segments.extend(chain.writable());
            let len = total(chain.writable());
            if len == 0 {
                ring.undo_pop(chain.head());
                return Err(RingError::Request {
                    what: "a buffer for a frame has no room",
                });
            }
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            let taken = len.min(self.waiting - room);
            room += taken;
            self.buffers.push(Buffer {
                head: chain.head(),
                end: self.segments.len(),
                len: u32::try_from(taken).unwrap_or(u32::MAX),
            });
        }
        let count = self.count().to_le_bytes();
        self.frame[NUM_BUFFERS..HEADER].copy_from_slice(&count);
        self.write(dma)?;
        let used = self.buffers.iter().map(|buffer| (buffer.head, buffer.len));
        ring.push_all(dma, used)?;
        Ok(Delivery::Done)
    }

    fn write(&self, dma: &Dma) -> Result<(), RingError> {
        let mut left = &self.frame[..self.waiting];
        let mut segments = self.segments.iter();
        for buffer in &self.buffers {
            let (mut part, rest) = left.split_at(usize::try_from(buffer.len).unwrap_or(0));
            left = rest;
            let taken = self.segments.len() - segments.len();
            for segment in segments.by_ref().take(buffer.end - taken) {
                let len = usize::try_from(segment.len).unwrap_or(usize::MAX);
                let (data, rest) = part.split_at(len.min(part.len()));
                dma.write(segment.gpa, data)?;
                part = rest;
            }
        }
        Ok(())
    }
}
