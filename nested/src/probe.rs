//! Lines and samples that a guest program sends to its VMM: a byte stream on the debug console port.
//!
//! The stream contains three kinds of item, distinguished by bytes that never occur in UTF-8 text:
//!
//! - **text**: UTF-8 lines, each ended by `
//! `; so the stream is readable without a decoder;
//! - **alive**: one zero byte, written by the first instructions of a program;
//! - **frames**: named blocks of little-endian integers.
//!
//! ```text
//! frame:  FF 'H' 'N' 'P' | kind u8 | width u8 | name length u8 | 0 | count u32 | name | count * width bytes
//! ```
//!
//! KVM passes port writes to the VMM one at a time, even those of a `rep outs`: a block costs an exit per
//! access. A console with 32-bit accesses ([`WIDE_CONSOLE`]) reduces that to a quarter.
//!
//! Where that is still too expensive, a program leaves samples in its memory and rings the [`Doorbell`]: see
//! [`crate::board`].

mod doorbell;

pub use doorbell::{DOORBELL_PORT, DOORBELL_PRESENT, Doorbell};

/// The debug console's port.
pub const CONSOLE_PORT: u16 = 0x402;
/// The byte that a read of the console's port returns if there is a console.
pub const CONSOLE_PRESENT: u8 = 0xE9;
/// The value that a 32-bit read of the port returns if a 32-bit write is accepted as four bytes, lowest
/// first.
pub const WIDE_CONSOLE: u32 = 0xE9E9_E9E9;
/// The debug-exit port: writing `code` there ends the run.
pub const EXIT_PORT: u16 = 0xF4;

/// The byte that signals that the first instruction ran.
pub const ALIVE: u8 = 0;
/// The first bytes of a frame.
pub const MAGIC: [u8; 4] = [0xFF, b'H', b'N', b'P'];
/// The size of a frame's header, before its name.
pub const HEADER_LEN: usize = 12;
/// The maximum number of integers in a frame.
pub const MAX_COUNT: u32 = 1 << 20;
/// The longest text line that a decoder accepts.
pub const MAX_LINE: usize = 64 * 1024;

const KIND_SAMPLES: u8 = 1;
const KIND_MARK: u8 = 2;

/// The size of one sample in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 32 bits.
    Four,
    /// 64 bits.
    Eight,
}

impl Width {
    /// The narrowest width that holds `max`.
    #[must_use]
    pub const fn for_max(max: u64) -> Self {
        if max <= u32::MAX as u64 {
            Self::Four
        } else {
            Self::Eight
        }
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

/// The header of a frame of `count` samples; the name and the samples follow.
///
/// `None` if the name is longer than 255 bytes or there are more than [`MAX_COUNT`] samples.
#[must_use]
pub fn samples_header(name: &str, width: Width, count: usize) -> Option<[u8; HEADER_LEN]> {
    let width = match width {
        Width::Four => 4,
        Width::Eight => 8,
    };
    header(KIND_SAMPLES, width, name, count)
}

/// The header of a mark: a frame without integers that names a point in a program's run.
///
/// `None` if the name is longer than 255 bytes.
#[must_use]
pub fn mark_header(name: &str) -> Option<[u8; HEADER_LEN]> {
    header(KIND_MARK, 0, name, 0)
}

fn header(kind: u8, width: u8, name: &str, count: usize) -> Option<[u8; HEADER_LEN]> {
    let name_len = u8::try_from(name.len()).ok()?;
    let count = u32::try_from(count)
        .ok()
        .filter(|&count| count <= MAX_COUNT)?;
    let mut bytes = [0; HEADER_LEN];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4] = kind;
    bytes[5] = width;
    bytes[6] = name_len;
    bytes[8..].copy_from_slice(&count.to_le_bytes());
    Some(bytes)
}

/// One item of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    /// The program's first instruction ran.
    Alive,
    /// A line of text without its end; not necessarily valid UTF-8.
    Line(&'a [u8]),
    /// A named point in the run.
    Mark(&'a str),
    /// Named samples.
    Samples(Samples<'a>),
}

/// A block of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Samples<'a> {
    /// The name of the samples.
    pub name: &'a str,
    width: Width,
    bytes: &'a [u8],
}

impl<'a> Samples<'a> {
    /// The number of samples.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len() / self.width.bytes()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The samples, in the order in which they were taken.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u64> + use<'a> {
        self.bytes.chunks_exact(self.width.bytes()).map(|chunk| {
            let mut value = [0; 8];
            value[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(value)
        })
    }
}

/// Why a stream is malformed. The decoder cannot resynchronize: the rest is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// A byte that begins a frame is not followed by the rest of [`MAGIC`].
    Magic,
    /// A frame of a kind that this version does not support.
    Kind(u8),
    /// A width that does not belong to the frame's kind.
    Width(u8),
    /// More integers than [`MAX_COUNT`], or integers where there must be none.
    Count(u32),
    /// A name that is not UTF-8.
    Name,
    /// A line longer than [`MAX_LINE`].
    LineTooLong,
}

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic => write!(f, "byte 0xff in the probe stream does not begin a frame"),
            Self::Kind(kind) => write!(f, "probe frame of unknown kind {kind}"),
            Self::Width(width) => write!(f, "probe frame with integers of {width} bytes"),
            Self::Count(count) => write!(
                f,
                "probe frame with {count} integers (at most {MAX_COUNT} in samples, 0 in marks)"
            ),
            Self::Name => write!(f, "name of a probe frame is not UTF-8"),
            Self::LineTooLong => {
                write!(f, "line of more than {MAX_LINE} bytes in the probe stream")
            }
        }
    }
}

impl core::error::Error for Malformed {}

/// Decodes the first item of `stream`: the item and its length in bytes, or `None` if the item is still
/// incomplete.
///
/// # Errors
/// [`Malformed`] if the bytes can never become an item.
pub fn next_item(stream: &[u8]) -> Result<Option<(Item<'_>, usize)>, Malformed> {
    match stream.first() {
        None => Ok(None),
        Some(&ALIVE) => Ok(Some((Item::Alive, 1))),
        Some(&0xFF) => frame(stream),
        Some(_) => line(stream),
    }
}

fn line(stream: &[u8]) -> Result<Option<(Item<'_>, usize)>, Malformed> {
    let window = &stream[..stream.len().min(MAX_LINE + 1)];
    match window.iter().position(|&byte| byte == b'\n') {
        Some(end) => {
            let text = &stream[..end];
            Ok(Some((
                Item::Line(text.strip_suffix(b"\r").unwrap_or(text)),
                end + 1,
            )))
        }
        None if window.len() > MAX_LINE => Err(Malformed::LineTooLong),
        None => Ok(None),
    }
}

fn frame(stream: &[u8]) -> Result<Option<(Item<'_>, usize)>, Malformed> {
    let seen = stream.len().min(MAGIC.len());
    if stream[..seen] != MAGIC[..seen] {
        return Err(Malformed::Magic);
    }
    let Some((header, rest)) = stream.split_first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let [_, _, _, _, kind, width, name_len, _, count @ ..] = *header;
    let count = u32::from_le_bytes(count);
    let width = match (kind, width) {
        (KIND_SAMPLES, 4) => Some(Width::Four),
        (KIND_SAMPLES, 8) => Some(Width::Eight),
        (KIND_MARK, 0) => None,
        (KIND_SAMPLES | KIND_MARK, width) => return Err(Malformed::Width(width)),
        (kind, _) => return Err(Malformed::Kind(kind)),
    };
    let most = if width.is_some() { MAX_COUNT } else { 0 };
    if count > most {
        return Err(Malformed::Count(count));
    }
    let Some((name, rest)) = rest.split_at_checked(usize::from(name_len)) else {
        return Ok(None);
    };
    let name = core::str::from_utf8(name).map_err(|_| Malformed::Name)?;
    // At most 2^20 * 8: no overflow.
    let len = count as usize * width.map_or(0, Width::bytes);
    let Some(bytes) = rest.get(..len) else {
        return Ok(None);
    };
    let item = match width {
        Some(width) => Item::Samples(Samples { name, width, bytes }),
        None => Item::Mark(name),
    };
    Ok(Some((item, HEADER_LEN + name.len() + len)))
}

/// Iterates over a whole captured stream. Ends at the first incomplete or malformed item, whose bytes
/// [`Items::rest`] returns.
#[derive(Debug, Clone)]
pub struct Items<'a> {
    rest: &'a [u8],
}

impl<'a> Items<'a> {
    /// Begins at the start of `stream`.
    #[must_use]
    pub const fn new(stream: &'a [u8]) -> Self {
        Self { rest: stream }
    }

    /// The bytes that have not been decoded.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<Item<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        match next_item(self.rest) {
            Ok(Some((item, taken))) => {
                self.rest = &self.rest[taken..];
                Some(Ok(item))
            }
            Ok(None) => None,
            Err(error) => {
                self.rest = &[];
                Some(Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests;
