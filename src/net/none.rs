//! No network: the cable is out.

use super::{Backend, Sent};
use crate::memory::Readable;

/// Nothing comes, and what is sent is lost.
#[derive(Debug)]
pub struct Nothing;

impl Backend for Nothing {
    fn link(&self) -> bool {
        false
    }

    fn receive(&mut self, _pair: usize, _frame: &mut [u8]) -> Option<usize> {
        None
    }

    fn send(&mut self, _pair: usize, _frame: &Readable) -> Sent {
        Sent::Dropped
    }
}
