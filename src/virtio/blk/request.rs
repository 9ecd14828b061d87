//! What a request of the driver says (virtio 1.2, 5.2.6): a header of 16 bytes, data, and the status, a byte
//! that the device writes. The driver may split them over descriptors as it likes (2.7.4).

use crate::block::Counted;
use crate::memory::Dma;
use crate::units::Gpa;
use crate::virtio::queue::{Chain, RingError, parts, total};

/// Bytes of the header: type, a reserved dword, and the sector.
const HEADER: usize = 16;

/// Bytes of `struct virtio_blk_discard_write_zeroes`: sector, number of sectors, flags.
const RANGE: usize = 16;

/// Flag of write zeroes: the blocks may be given back.
const UNMAP: u32 = 1;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    Write,
    Flush,
    GetId,
    Discard,
    WriteZeroes,
    #[default]
    Unknown,
}

impl Command {
    fn of(number: u32) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            4 => Self::Flush,
            8 => Self::GetId,
            11 => Self::Discard,
            13 => Self::WriteZeroes,
            _ => Self::Unknown,
        }
    }

    /// Whether the device writes the data.
    pub(super) fn reads(self) -> bool {
        matches!(self, Self::Read | Self::GetId)
    }

    /// What it is counted as.
    pub(super) fn counted(self) -> Option<Counted> {
        match self {
            Self::Read => Some(Counted::Read),
            Self::Write => Some(Counted::Write),
            Self::Flush => Some(Counted::Flush),
            Self::Discard => Some(Counted::Discard),
            Self::WriteZeroes => Some(Counted::WriteZeroes),
            Self::GetId | Self::Unknown => None,
        }
    }

    /// Whether it changes the disk.
    pub(super) fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Discard | Self::WriteZeroes)
    }
}

/// A request's header, and where its parts are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) command: Command,
    pub(super) sector: u64,
    /// Bytes of data.
    pub(super) len: u64,
    /// Where the status goes.
    pub(super) status: Gpa,
}

impl Parsed {
    /// Reads the header of `chain`.
    ///
    /// # Errors
    /// If the header or the status is missing, or not in memory.
    pub(super) fn new(chain: &Chain, dma: &Dma) -> Result<Self, RingError> {
        let missing = |what| RingError::Request { what };
        let last = chain.writable().iter().rfind(|segment| segment.len > 0);
        let last = last.ok_or(missing("a block request without a status"))?;
        let mut header = [0; HEADER];
        if chain.read(dma, 0, &mut header)? < HEADER {
            return Err(missing("a block request without a header"));
        }
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let command = Command::of(u32::from_le_bytes([a, b, c, d]));
        let len = if command.reads() {
            total(chain.writable()) - 1
        } else {
            total(chain.readable()) - HEADER as u64
        };
        Ok(Self {
            command,
            sector: u64::from_le_bytes(sector),
            len,
            // A segment does not wrap around.
            status: Gpa(last.gpa.0 + u64::from(last.len) - 1),
        })
    }

    /// The parts of guest memory that its data is in.
    pub(super) fn data<'a>(&self, chain: &'a Chain) -> impl Iterator<Item = (Gpa, u64)> + use<'a> {
        let (segments, skip) = if self.command.reads() {
            (chain.writable(), 0)
        } else {
            (chain.readable(), HEADER as u64)
        };
        parts(segments, skip, self.len)
    }
}

/// The range of a discard or of write zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) sector: u64,
    pub(super) sectors: u32,
    pub(super) unmap: bool,
    /// A flag that is not known.
    pub(super) reserved: bool,
}

impl Range {
    /// Reads the range from the data of `chain`; none if it has no place for exactly one.
    ///
    /// # Errors
    /// If it is not in memory.
    pub(super) fn new(
        parsed: &Parsed,
        chain: &Chain,
        dma: &Dma,
    ) -> Result<Option<Self>, RingError> {
        if parsed.len != RANGE as u64 {
            return Ok(None);
        }
        let mut range = [0; RANGE];
        chain.read(dma, HEADER as u64, &mut range)?;
        let (sector, rest) = range.split_at(8);
        let (sectors, flags) = rest.split_at(4);
        let dword = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_le_bytes);
        let flags = dword(flags);
        Ok(Some(Self {
            sector: sector.try_into().map_or(0, u64::from_le_bytes),
            sectors: dword(sectors),
            unmap: flags & UNMAP != 0,
            reserved: flags & !UNMAP != 0,
        }))
    }
}
