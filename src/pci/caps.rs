//! The capability list and the registers behind it, from 0x40 to the end of the first 256 bytes (PCI Local
//! Bus 3.0, 6.7).

use thiserror::Error;

use crate::state::{Decoder, Encoder, StateError};

/// Where registers of the device's own begin.
pub const FIRST: u16 = 0x40;
const END: u16 = 0x100;
const LEN: usize = (END - FIRST) as usize;

/// A capability does not fit.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("capability {id:#04x} with {len} bytes does not fit into configuration space")]
pub struct NoRoom {
    /// Its id.
    pub id: u8,
    /// Its length with id and pointer.
    pub len: usize,
}

/// The capabilities of a function. Registers that nothing else computes are stored here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    bytes: [u8; LEN],
    /// Bits that software may write.
    writable: [u8; LEN],
    /// What they are after a reset.
    initial: [u8; LEN],
    first: Option<u16>,
    last: Option<u16>,
    next: u16,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            bytes: [0; LEN],
            writable: [0; LEN],
            initial: [0; LEN],
            first: None,
            last: None,
            next: FIRST,
        }
    }
}

impl Capabilities {
    /// Appends the capability `id`; `body` is what follows id and next pointer, of which software may write
    /// the bits in `writable`. Returns its offset in configuration space.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn add(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u16, NoRoom> {
        let no_room = NoRoom {
            id,
            len: body.len() + 2,
        };
        let at = self.next;
        let len = u16::try_from(no_room.len).map_err(|_| no_room)?;
        if len > END - at {
            return Err(no_room);
        }
        let index = usize::from(at - FIRST);
        self.bytes[index] = id;
        self.bytes[index + 2..][..body.len()].copy_from_slice(body);
        let bits = writable.len().min(body.len());
        self.writable[index + 2..][..bits].copy_from_slice(&writable[..bits]);
        if let Some(last) = self.last {
            self.bytes[usize::from(last - FIRST) + 1] = u8::try_from(at).unwrap_or(0);
        }
        self.first = self.first.or(Some(at));
        self.last = Some(at);
        // Each begins at a register (6.7).
        self.next = (at + len).next_multiple_of(4);
        self.initial = self.bytes;
        Ok(at)
    }

    /// The offset of the first.
    pub fn first(&self) -> Option<u16> {
        self.first
    }

    /// The register at `offset`, a multiple of 4.
    pub fn read(&self, offset: u16) -> u32 {
        let at = offset.checked_sub(FIRST).map(usize::from);
        at.and_then(|at| self.bytes.get(at..)?.first_chunk())
            .map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    /// Writes those bits of the register at `offset` that `mask` has and that are writable.
    pub fn write(&mut self, offset: u16, value: u32, mask: u32) {
        let Some(at) = offset.checked_sub(FIRST).map(usize::from) else {
            return;
        };
        let (value, mask) = (value.to_le_bytes(), mask.to_le_bytes());
        for (n, (value, mask)) in value.into_iter().zip(mask).enumerate() {
            if let (Some(byte), Some(writable)) =
                (self.bytes.get_mut(at + n), self.writable.get(at + n))
            {
                let mask = mask & writable;
                *byte = (*byte & !mask) | (value & mask);
            }
        }
    }

    /// Back to what they were made with.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
    }

    /// Writes the writable bits down.
    pub fn save(&self, to: &mut Encoder) {
        let bytes = self.bytes.iter().zip(&self.writable);
        let bytes: Vec<_> = bytes.map(|(byte, writable)| byte & writable).collect();
        to.bytes(&bytes);
    }

    /// Takes over saved bits.
    ///
    /// # Errors
    /// If they are cut off.
    pub fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        const ITEM: &str = "capabilities";
        let saved = from.bytes(ITEM)?;
        if saved.len() != LEN {
            return Err(from.invalid(ITEM, format!("{} bytes instead of {LEN}", saved.len())));
        }
        for ((byte, writable), saved) in self.bytes.iter_mut().zip(&self.writable).zip(saved) {
            *byte = (*byte & !writable) | (saved & writable);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn two() -> Capabilities {
        let mut caps = Capabilities::default();
        assert_eq!(caps.add(0x11, &[1; 10], &[0, 0xc0]), Ok(0x40));
        assert_eq!(caps.add(0x09, &[2; 13], &[]), Ok(0x4c));
        caps
    }

    #[test]
    fn the_list_is_linked_and_ends() {
        let caps = two();
        assert_eq!(caps.first(), Some(0x40));
        assert_eq!(caps.read(0x40), 0x0101_4c11);
        assert_eq!(caps.read(0x4c), 0x0202_0009);
        assert_eq!(caps.read(0x58), 0x0002_0202, "padded to a register");
        assert_eq!(Capabilities::default().first(), None);
        for offset in [0, 0x3c, 0x100, 0xffc] {
            assert_eq!(caps.read(offset), 0);
        }
    }

    #[test]
    fn only_writable_bits_change() {
        let mut caps = two();
        for offset in (0..0x1000).step_by(4) {
            caps.write(offset, u32::MAX, u32::MAX);
        }
        assert_eq!(caps.read(0x40), 0xc101_4c11);
        caps.write(0x40, 0x4000_0000, 0x00ff_ffff);
        assert_eq!(caps.read(0x40), 0xc101_4c11, "another byte was written");
        caps.write(0x40, 0x4000_0000, 0xff00_0000);
        assert_eq!(caps.read(0x40), 0x4101_4c11);
        caps.reset();
        assert_eq!(caps, two());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut caps = two();
        let refused = caps.add(0x09, &[0; 163], &[]);
        assert_eq!(refused, Err(NoRoom { id: 9, len: 165 }));
        assert!(caps.add(0x09, &[0; 70_000], &[]).is_err());
        assert_eq!(caps.add(0x09, &[0; 162], &[]), Ok(0x5c));
    }

    proptest! {
        #[test]
        fn writes_come_back_and_change_no_constant(
            writes in proptest::collection::vec((0..0x50_u16, any::<u32>(), any::<u32>()), 0..64),
        ) {
            let mut caps = two();
            for (register, value, mask) in writes {
                caps.write(register * 4, value, mask);
            }
            prop_assert_eq!(caps.read(0x40) & 0x3fff_ffff, 0x0101_4c11);
            let mut e = Encoder::new();
            caps.save(&mut e);
            let body = e.into_body();
            let mut loaded = two();
            loaded.load(&mut Decoder::new("s", 1, &body)).unwrap();
            prop_assert_eq!(loaded, caps);
        }
    }
}
