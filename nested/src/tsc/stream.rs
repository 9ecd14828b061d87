//! A sampler's output as a byte stream in which something may be missing: a VM may be saved in the midst of a
//! frame, and a console may lose bytes.

use super::words::{Ack, Hello, MAX_WORDS, Report};
use crate::probe::{ALIVE, HEADER_LEN, Item, MAGIC, MAX_LINE, next_item};

/// What a sampler said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one at a time, and reports are nearly all of them"
)]
pub enum Said<'a> {
    /// What it is going to do.
    Hello(Hello),
    /// What it has noted.
    Report(Report),
    /// A change of the TSC's frequency, acknowledged.
    Ack(Ack),
    /// A line of text.
    Line(&'a [u8]),
}

/// What stands at the beginning of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "as above")]
pub enum Next<'a> {
    /// Nothing that is complete yet.
    Incomplete,
    /// So many bytes that say nothing.
    Skip {
        /// How many, at least one.
        bytes: usize,
        /// They were something once, of which a part is missing.
        broken: bool,
    },
    /// Something, and its bytes.
    Said(Said<'a>, usize),
}

const BROKEN: Next<'_> = Next::Skip {
    bytes: 1,
    broken: true,
};

/// Looks at the beginning of `stream`. What is broken is skipped up to the next frame.
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

/// Text has no byte with which a frame begins: such a byte is the end of what was a frame or a line.
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
        // Whatever it was, it is not waited for.
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
