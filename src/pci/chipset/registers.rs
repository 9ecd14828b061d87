//! Configuration registers that store what software writes.

use crate::state::{Decoder, Encoder, StateError};

/// A register of four bytes.
#[derive(Debug)]
pub(super) struct Row {
    /// Its offset, a multiple of 4.
    pub(super) at: u16,
    /// Its value after a reset.
    pub(super) reset: u32,
    /// The bits that software can write.
    pub(super) writable: u32,
}

pub(super) const fn row(at: u16, reset: u32, writable: u32) -> Row {
    Row {
        at,
        reset,
        writable,
    }
}

/// All registers of a function that are not zero.
#[derive(Debug)]
pub(super) struct Registers<const N: usize> {
    rows: &'static [Row; N],
    values: [u32; N],
}

impl<const N: usize> Registers<N> {
    /// With their values after a reset.
    pub(super) fn new(rows: &'static [Row; N]) -> Self {
        Self {
            rows,
            values: std::array::from_fn(|n| rows[n].reset),
        }
    }

    fn index(&self, at: u16) -> Option<usize> {
        self.rows.iter().position(|row| row.at == at)
    }

    /// The register at `at`; 0 if there is none.
    pub(super) fn get(&self, at: u16) -> u32 {
        self.index(at).map_or(0, |n| self.values[n])
    }

    /// Sets the register at `at`, whatever software could write of it.
    pub(super) fn set(&mut self, at: u16, value: u32) {
        if let Some(n) = self.index(at) {
            self.values[n] = value;
        }
    }

    /// Writes those bits of the register at `at` that `mask` has and that software can write.
    pub(super) fn write(&mut self, at: u16, value: u32, mask: u32) {
        if let Some(n) = self.index(at) {
            let mask = mask & self.rows[n].writable;
            self.values[n] = (self.values[n] & !mask) | (value & mask);
        }
    }

    /// Back to the values after a reset.
    pub(super) fn reset(&mut self) {
        self.values = std::array::from_fn(|n| self.rows[n].reset);
    }

    /// Writes down those that can change.
    pub(super) fn save(&self, to: &mut Encoder) {
        let changing = self.rows.iter().zip(&self.values);
        for (_, value) in changing.filter(|(row, _)| row.writable != 0) {
            to.u32(*value);
        }
    }

    /// Takes over what was saved; bits that software cannot write stay.
    ///
    /// # Errors
    /// If it is cut off.
    pub(super) fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        let changing = self.rows.iter().zip(&mut self.values);
        for (row, value) in changing.filter(|(row, _)| row.writable != 0) {
            let saved = from.u32("configuration register")?;
            *value = (row.reset & !row.writable) | (saved & row.writable);
        }
        Ok(())
    }
}
