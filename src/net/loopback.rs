//! A network that returns each frame to its sender, for tests of drivers.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use nix::sys::eventfd::EventFd;

use super::{Backend, MAX_FRAME, Sent};
use crate::memory::Readable;
use crate::sys::{Bell, eventfd};

/// How many frames are under way at most.
const MAX_FRAMES: usize = 16;

/// What each pair of queues has sent comes back to it.
#[derive(Debug)]
pub struct Loopback {
    frames: Vec<VecDeque<Vec<u8>>>,
    bell: Arc<EventFd>,
}

impl Loopback {
    /// Of so many pairs of queues.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn new(pairs: u16) -> io::Result<Self> {
        Ok(Self {
            frames: vec![VecDeque::new(); pairs.into()],
            bell: Arc::new(eventfd()?),
        })
    }
}

impl Backend for Loopback {
    fn bell(&self) -> Option<Bell> {
        Some(Bell::Event(Arc::clone(&self.bell)))
    }

    fn link(&self) -> bool {
        true
    }

    fn receive(&mut self, pair: usize, frame: &mut [u8]) -> Option<usize> {
        let next = self.frames.get_mut(pair)?.pop_front()?;
        frame[..next.len()].copy_from_slice(&next);
        Some(next.len())
    }

    fn send(&mut self, pair: usize, frame: &Readable) -> Sent {
        let Some(frames) = self.frames.get_mut(pair) else {
            return Sent::Dropped;
        };
        let len = usize::try_from(frame.len()).unwrap_or(usize::MAX);
        if frames.len() >= MAX_FRAMES || len > MAX_FRAME {
            return Sent::Dropped;
        }
        let mut copy = vec![0; len];
        match frame.copy_to(0, &mut copy) {
            Ok(count) if count == len => {
                frames.push_back(copy);
                // It fails only if the counter is full, and then the bell rings as well.
                let _rung = self.bell.write(1);
                Sent::Yes
            }
            _ => Sent::Dropped,
        }
    }

    fn release(&mut self) {
        self.frames.iter_mut().for_each(VecDeque::clear);
    }
}
