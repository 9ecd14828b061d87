//! The doorbell: a port by which a guest program signals that its [board](crate::board) is ready.

/// The doorbell's port, 32 bits wide.
pub const DOORBELL_PORT: u16 = 0x404;
/// The value that a read of the port returns if a VMM implements it: `"HNBL"`.
pub const DOORBELL_PRESENT: u32 = 0x4C42_4E48;

/// The meaning of a write to the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doorbell {
    /// By L2: the measured samples begin. L1 does not intercept the port, so the host sees it at once.
    Begin,
    /// By L2: the measured samples ended.
    End,
    /// By L1: the board is complete.
    Done,
    /// By L1, once, before any measurement: the board's address.
    Board {
        /// The page's address.
        gpa: u64,
    },
}

impl Doorbell {
    /// The value of [`Doorbell::Begin`].
    pub const BEGIN: u32 = 1;
    /// The value of [`Doorbell::End`].
    pub const END: u32 = 2;
    /// The value of [`Doorbell::Done`].
    pub const DONE: u32 = 3;
    /// Values up to this one are not page numbers.
    const LAST_RESERVED: u32 = 15;

    /// The meaning of `value`; `None` if it has none.
    #[must_use]
    pub const fn from_value(value: u32) -> Option<Self> {
        match value {
            Self::BEGIN => Some(Self::Begin),
            Self::END => Some(Self::End),
            Self::DONE => Some(Self::Done),
            0..=Self::LAST_RESERVED => None,
            page => Some(Self::Board {
                gpa: (page as u64) << 12,
            }),
        }
    }

    /// The value to write; `None` for a board whose address has no value: unaligned, in the lowest pages, or
    /// past 16 TiB.
    #[must_use]
    pub const fn value(self) -> Option<u32> {
        match self {
            Self::Begin => Some(Self::BEGIN),
            Self::End => Some(Self::END),
            Self::Done => Some(Self::DONE),
            Self::Board { gpa } => {
                let [a, b, c, d, ..] = (gpa >> 12).to_le_bytes();
                let page = u32::from_le_bytes([a, b, c, d]);
                if (page as u64) << 12 == gpa && page > Self::LAST_RESERVED {
                    Some(page)
                } else {
                    None
                }
            }
        }
    }
}
