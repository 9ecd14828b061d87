//! Measurements that an L1 guest program passes to its host: a page and an array of samples in guest memory.
//!
//! The program sends the page's address, and a signal when it is complete, by [`crate::probe::Doorbell`]. All
//! words are 64-bit little-endian. The board is guest input: [`read`] checks everything.

use core::fmt;
use core::mem::{offset_of, size_of};

use crate::l2exit::Kind;

/// The first word of a board: `"HNH2BRD"`.
pub const MAGIC: u64 = 0x0044_5242_3248_4E48;
/// The layout described here.
pub const VERSION: u64 = 1;
/// The maximum number of samples on one board.
pub const MAX_CAPACITY: u64 = 1 << 20;

/// The board, as the guest writes it at the start of a page.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Board {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u64,
    /// [`Kind::index`].
    pub kind: u64,
    /// A [`Status`].
    pub status: u64,
    /// The number of samples that there is room for.
    pub capacity: u64,
    /// The address of the [`Sample`]s.
    pub samples_gpa: u64,
    /// L2's TSC before the first sample.
    pub stopwatch_begin: u64,
    /// L2's TSC after the last sample.
    pub stopwatch_end: u64,
    /// The exit reason or code that L1 saw last.
    pub last_exit_reason: u64,
    /// Its qualification or EXITINFO1.
    pub last_exit_qualification: u64,
    /// L2's RIP at it.
    pub last_guest_rip: u64,
    /// The number of L2's exits that L1 saw while samples were taken.
    pub exits: u64,
}

/// The progress of a kind's measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Status {
    /// The samples do not count yet.
    WarmingUp = 1,
    /// Samples are being taken.
    Measuring = 2,
    /// All samples have been taken.
    Complete = 3,
    /// L1 gave up.
    Failed = 4,
}

impl Status {
    /// The status with this number.
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            1 => Some(Self::WarmingUp),
            2 => Some(Self::Measuring),
            3 => Some(Self::Complete),
            4 => Some(Self::Failed),
            _ => None,
        }
    }
}

/// The stamps of one exit, in TSC ticks.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sample {
    /// L2, just before the exit.
    pub before: u64,
    /// L1, its first instructions after the exit; 0 if L1 was not entered.
    pub exited: u64,
    /// L1, just before it resumes L2; 0 if L1 was not entered.
    pub resumed: u64,
    /// L2, its first instruction after the exit; 0 if the sample was not taken.
    pub after: u64,
}

/// Bytes of a board.
pub const BOARD_LEN: usize = size_of::<Board>();
/// Bytes of a sample.
pub const SAMPLE_LEN: usize = size_of::<Sample>();

const _: () = {
    assert!(BOARD_LEN == 96 && SAMPLE_LEN == 32);
    assert!(offset_of!(Board, kind) == 16);
    assert!(offset_of!(Board, status) == 24);
    assert!(offset_of!(Board, capacity) == 32);
    assert!(offset_of!(Board, samples_gpa) == 40);
    assert!(offset_of!(Board, stopwatch_begin) == 48);
    assert!(offset_of!(Board, last_exit_reason) == 64);
    assert!(offset_of!(Board, exits) == 88);
    assert!(offset_of!(Sample, exited) == 8);
    assert!(offset_of!(Sample, resumed) == 16);
    assert!(offset_of!(Sample, after) == 24);
};

impl Board {
    /// A board for `capacity` samples of `kind`, warming up.
    #[must_use]
    pub const fn new(kind: Kind, capacity: u64, samples_gpa: u64) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            kind: kind.index(),
            status: Status::WarmingUp as u64,
            capacity,
            samples_gpa,
            stopwatch_begin: 0,
            stopwatch_end: 0,
            last_exit_reason: 0,
            last_exit_qualification: 0,
            last_guest_rip: 0,
            exits: 0,
        }
    }

    /// The words, in their order in memory.
    #[must_use]
    pub const fn words(&self) -> [u64; BOARD_LEN / 8] {
        [
            self.magic,
            self.version,
            self.kind,
            self.status,
            self.capacity,
            self.samples_gpa,
            self.stopwatch_begin,
            self.stopwatch_end,
            self.last_exit_reason,
            self.last_exit_qualification,
            self.last_guest_rip,
            self.exits,
        ]
    }
}

/// The content of a board, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The measured kind.
    pub kind: Kind,
    /// Its progress.
    pub status: Status,
    /// The number of samples that there is room for, at most [`MAX_CAPACITY`].
    pub capacity: usize,
    /// The address of the samples: the array does not wrap around the address space. Only the reader can
    /// check that it is memory.
    pub samples_gpa: u64,
    /// L2's TSC ticks from before the first to after the last sample, once all have been taken.
    pub stopwatch: Option<u64>,
    /// The last exit that L1 saw.
    pub last_exit: LastExit,
    /// The number of L2's exits that L1 saw while samples were taken.
    pub exits: u64,
}

impl Reading {
    /// The size of the array of samples.
    #[must_use]
    pub const fn samples_len(&self) -> usize {
        // At most 2^20 * 32.
        self.capacity * SAMPLE_LEN
    }
}

/// The last exit that L1 saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastExit {
    /// Exit reason or code.
    pub reason: u64,
    /// Qualification or EXITINFO1.
    pub qualification: u64,
    /// L2's RIP.
    pub rip: u64,
}

/// Why a board is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Fewer bytes than a board has.
    Short(usize),
    /// It does not begin with [`MAGIC`].
    Magic(u64),
    /// Another layout.
    Version(u64),
    /// No such kind.
    Kind(u64),
    /// No such status.
    Status(u64),
    /// More room than [`MAX_CAPACITY`].
    Capacity(u64),
    /// The samples are not aligned to 8 bytes, or wrap around.
    Samples(u64),
    /// The stopwatch of a complete measurement runs backwards.
    Stopwatch {
        /// Its begin.
        begin: u64,
        /// Its end.
        end: u64,
    },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest's board of measurements ")?;
        match *self {
            Self::Short(len) => write!(f, "has {len} bytes instead of {BOARD_LEN}"),
            Self::Magic(magic) => write!(f, "begins with {magic:#018x} instead of {MAGIC:#018x}"),
            Self::Version(version) => {
                write!(f, "has version {version}; this program supports {VERSION}")
            }
            Self::Kind(kind) => write!(f, "names kind {kind} of {}", Kind::ALL.len()),
            Self::Status(status) => write!(f, "has status {status}"),
            Self::Capacity(capacity) => {
                write!(
                    f,
                    "has room for {capacity} samples, more than {MAX_CAPACITY}"
                )
            }
            Self::Samples(gpa) => {
                write!(f, "has its samples at {gpa:#x}, unaligned or past the end")
            }
            Self::Stopwatch { begin, end } => {
                write!(
                    f,
                    "has a stopwatch that ran backwards, from {begin} to {end}"
                )
            }
        }
    }
}

impl core::error::Error for Malformed {}

/// Reads the board at the start of `bytes`.
///
/// # Errors
/// [`Malformed`] with the first problem.
pub fn read(bytes: &[u8]) -> Result<Reading, Malformed> {
    let short = Malformed::Short(bytes.len());
    let (words, _) = bytes.as_chunks::<8>();
    let words = words.first_chunk().ok_or(short)?;
    let [
        magic,
        version,
        kind,
        status,
        capacity,
        samples_gpa,
        begin,
        end,
        reason,
        qualification,
        rip,
        exits,
    ]: [u64; BOARD_LEN / 8] = words.map(u64::from_le_bytes);
    if magic != MAGIC {
        return Err(Malformed::Magic(magic));
    }
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    let kind = Kind::from_index(kind).ok_or(Malformed::Kind(kind))?;
    let status = Status::from_number(status).ok_or(Malformed::Status(status))?;
    let capacity = usize::try_from(capacity)
        .ok()
        .filter(|_| capacity <= MAX_CAPACITY)
        .ok_or(Malformed::Capacity(capacity))?;
    let end_of_samples = samples_gpa.checked_add((capacity * SAMPLE_LEN) as u64);
    if !samples_gpa.is_multiple_of(8) || end_of_samples.is_none() {
        return Err(Malformed::Samples(samples_gpa));
    }
    let stopwatch = match status {
        Status::Complete => Some(
            end.checked_sub(begin)
                .ok_or(Malformed::Stopwatch { begin, end })?,
        ),
        _ => None,
    };
    Ok(Reading {
        kind,
        status,
        capacity,
        samples_gpa,
        stopwatch,
        last_exit: LastExit {
            reason,
            qualification,
            rip,
        },
        exits,
    })
}

/// The samples in `bytes`, an array as the guest wrote it; a remainder at its end is ignored.
pub fn samples(bytes: &[u8]) -> impl ExactSizeIterator<Item = Sample> {
    bytes.as_chunks::<SAMPLE_LEN>().0.iter().map(|bytes| {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        Sample {
            before: word(0),
            exited: word(8),
            resumed: word(16),
            after: word(24),
        }
    })
}

/// The intervals of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// It was not taken.
    NotTaken,
    /// L1 was not entered.
    Whole {
        /// TSC ticks from L2 to L2.
        round_trip: u64,
    },
    /// L1 was entered: the parts' sum is the round trip.
    Parts {
        /// TSC ticks from L2 to L1.
        l2_to_l1: u64,
        /// TSC ticks in L1.
        l1: u64,
        /// TSC ticks from L1 to L2.
        l1_to_l2: u64,
    },
    /// The stamps are not in order: the processors' TSCs differ, or the guest wrote invalid ones.
    OutOfOrder,
}

impl Sample {
    /// The intervals between the stamps.
    #[must_use]
    pub const fn split(&self) -> Split {
        if self.after == 0 {
            return Split::NotTaken;
        }
        if self.exited == 0 && self.resumed == 0 {
            return match self.after.checked_sub(self.before) {
                Some(round_trip) => Split::Whole { round_trip },
                None => Split::OutOfOrder,
            };
        }
        let parts = (
            self.exited.checked_sub(self.before),
            self.resumed.checked_sub(self.exited),
            self.after.checked_sub(self.resumed),
        );
        match parts {
            (Some(l2_to_l1), Some(l1), Some(l1_to_l2)) => Split::Parts {
                l2_to_l1,
                l1,
                l1_to_l2,
            },
            _ => Split::OutOfOrder,
        }
    }
}

#[cfg(test)]
mod tests;
