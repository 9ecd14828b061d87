//! The DMA interface: a guest writes the address of a request, and the device copies an item into guest
//! memory, or skips part of it.

use super::Cursor;
use crate::memory::Dma;
use crate::units::Gpa;

/// Ports of the register with the address of a request, whose write starts it. Its numbers are big endian, as
/// are those of the request.
pub(super) const LEN: u64 = 8;
/// The lower half: the address is complete when this is written.
const LOW: u64 = 4;

/// What the address register reads.
const SIGNATURE: [u8; 8] = *b"QEMU CFG";

/// A request: control, length, address.
const REQUEST_LEN: usize = 16;

// The request's control. It is 0 when the request is done, and ERROR alone if that failed.
const ERROR: u32 = 1 << 0;
const READ: u32 = 1 << 1;
const SKIP: u32 = 1 << 2;
const SELECT: u32 = 1 << 3;
const WRITE: u32 = 1 << 4;

/// Bytes that are copied at a time: zeros may follow an item for as long as a request likes.
const CHUNK: usize = 4096;

/// The registers, and what they reach.
#[derive(Debug)]
pub(super) struct DmaPort {
    memory: Dma,
    /// The upper half of the next request's address.
    pub(super) high: u32,
}

impl DmaPort {
    /// Which reaches `memory`.
    pub(super) fn new(memory: Dma) -> Self {
        memory.gate().set(true);
        Self { memory, high: 0 }
    }

    /// A read of the address register.
    pub(super) fn read(offset: u64, data: &mut [u8]) {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let signature = SIGNATURE.get(at..).unwrap_or_default();
        if let Some(bytes) = signature.get(..data.len()) {
            data.copy_from_slice(bytes);
        }
    }

    /// A write of half of the address register. Serves the request when the address is complete.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], cursor: &mut Cursor<'_>) {
        let Ok(half) = data.try_into().map(u32::from_be_bytes) else {
            return;
        };
        match offset {
            0 => self.high = half,
            LOW => {
                let high = u64::from(std::mem::take(&mut self.high));
                self.serve(Gpa(high << 32 | u64::from(half)), cursor);
            }
            _ => {}
        }
    }

    fn serve(&self, at: Gpa, cursor: &mut Cursor<'_>) {
        let mut request = [0; REQUEST_LEN];
        if self.memory.read(at, &mut request).is_err() {
            // There is nowhere to report it.
            return;
        }
        let [control, len, high, low] =
            [0, 4, 8, 12].map(|n| u32::from_be_bytes(std::array::from_fn(|i| request[n + i])));
        if control & SELECT != 0 {
            cursor.select(u16::try_from(control >> 16).unwrap_or(u16::MAX));
        }
        let to = Gpa(u64::from(high) << 32 | u64::from(low));
        let done = if control & READ != 0 {
            self.copy(to, len, cursor)
        } else if control & WRITE != 0 {
            // No item can be written.
            len == 0
        } else {
            if control & SKIP != 0 {
                cursor.skip(len);
            }
            true
        };
        let result = if done { 0 } else { ERROR };
        // If the guest cannot be told, it has made its request in memory that it does not have.
        let _told = self.memory.write(at, &result.to_be_bytes());
    }

    /// Copies `len` bytes from the cursor on; false if there is no RAM for them.
    fn copy(&self, to: Gpa, len: u32, cursor: &mut Cursor<'_>) -> bool {
        let mut bytes = [0; CHUNK];
        let mut done = 0;
        while done < len {
            let part = usize::try_from(len - done).unwrap_or(CHUNK).min(CHUNK);
            let bytes = &mut bytes[..part];
            cursor.read(bytes);
            let Some(gpa) = to.0.checked_add(done.into()) else {
                return false;
            };
            if self.memory.write(Gpa(gpa), bytes).is_err() {
                return false;
            }
            done += u32::try_from(part).expect("a chunk");
        }
        true
    }
}
