//! A sampler's output as a byte stream with possible gaps: a VM may be saved in the middle of a
//! frame, and a console may lose bytes.

use super::words::{Ack, Hello, MAX_WORDS, Report};
use crate::probe::{ALIVE, HEADER_LEN, Item, MAGIC, MAX_LINE, next_item};

/// A message from a sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one at a time, and reports are nearly all of them"
)]
pub enum Said<'a> {
    /// Its configuration.
    Hello(Hello),
    /// Its statistics.
    Report(Report),
    /// A change of the TSC's frequency, acknowledged.
    Ack(Ack),
    /// A line of text.
    Line(&'a [u8]),
}

/// The item at the beginning of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "as above")]
pub enum Next<'a> {
    /// No complete item yet.
    Incomplete,
    /// Bytes without a meaning.
    Skip {
        /// The number of bytes, at least one.
        bytes: usize,
        /// The bytes are an item of which a part is missing.
        broken: bool,
    },
    /// A message and its length in bytes.
    Said(Said<'a>, usize),
}

const BROKEN: Next<'_> = Next::Skip {
    bytes: 1,
    broken: true,
};

/// Decodes the beginning of `stream`. Broken items are skipped up to the next frame.
#[must_use]
pub fn next_said(stream: &[u8]) -> Next<'_> {
    match stream.first() {
        None => Next::Incomplete,
        Some(&ALIVE) => Next::Skip {
            bytes: 1,
            broken: false,
        },
        Some(&first) if first == MAGIC[0] => frame(stream),
        Some(_) => line(stream),
    }
}

/// Text contains no byte with which a frame begins: such a byte ends a broken frame or line.
fn line(stream: &[u8]) -> Next<'_> {
    let window = &stream[..stream.len().min(MAX_LINE)];
    let end = window
        .iter()
        .position(|&byte| byte == b'\n' || byte == MAGIC[0]);
    match end {
        Some(end) if stream[end] == b'\n' => {
            let text = &stream[..end];
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            Next::Said(Said::Line(text), end + 1)
        }
        Some(end) => Next::Skip {
            bytes: end,
            broken: true,
        },
        None if window.len() == MAX_LINE => Next::Skip {
            bytes: MAX_LINE,
            broken: true,
        },
        None => Next::Incomplete,
    }
}

fn frame(stream: &[u8]) -> Next<'_> {
    if let Some((header, _)) = stream.split_first_chunk::<HEADER_LEN>() {
        let [.., a, b, c, d] = *header;
        // An invalid length is not waited for.
        if u32::from_le_bytes([a, b, c, d]) as usize > MAX_WORDS {
            return BROKEN;
        }
    }
    match next_item(stream) {
        Ok(None) => Next::Incomplete,
        Ok(Some((Item::Samples(samples), taken))) => {
            let words = samples.iter();
            let said = match samples.name {
                Report::NAME => Report::decode(words).map(Said::Report),
                Ack::NAME => Ack::decode(words).map(Said::Ack),
                Hello::NAME => Hello::decode(words).map(Said::Hello),
                _ => {
                    return Next::Skip {
                        bytes: taken,
                        broken: false,
                    };
                }
            };
            said.map_or(BROKEN, |said| Next::Said(said, taken))
        }
        Ok(Some((_, taken))) => Next::Skip {
            bytes: taken,
            broken: false,
        },
        Err(_) => BROKEN,
    }
}
