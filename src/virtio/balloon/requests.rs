//! What the driver's requests contain.

use crate::memory::Dma;
use crate::units::Gpa;
use crate::virtio::queue::{Chain, RingError, total};

use super::PAGE;

/// The most pages in a request: Linux has 256, Windows' driver 1024.
const MAX_PAGES: usize = 4096;
/// Bytes of a page's number (5.5.6.1).
const NUMBER: usize = 4;

/// The pages of a request.
#[derive(Debug)]
pub(super) struct Pages {
    numbers: Box<[u32]>,
    len: usize,
}

impl Default for Pages {
    fn default() -> Self {
        Self {
            numbers: vec![0; MAX_PAGES].into(),
            len: 0,
        }
    }
}

impl Pages {
    /// Reads those of a request; bytes at the end that are no whole number are ignored.
    ///
    /// # Errors
    /// If they are not in memory, or too many.
    pub(super) fn read(&mut self, chain: &Chain, dma: &Dma) -> Result<(), RingError> {
        self.len = 0;
        let count = usize::try_from(total(chain.readable())).unwrap_or(usize::MAX) / NUMBER;
        if count > MAX_PAGES {
            return Err(RingError::Request {
                what: "a request for more pages than 4096",
            });
        }
        let mut bytes = [0; 1024];
        let mut at = 0;
        while self.len < count {
            let len = bytes.len().min((count - self.len) * NUMBER);
            chain.read(dma, at, &mut bytes[..len])?;
            for number in bytes[..len].as_chunks::<NUMBER>().0 {
                self.numbers[self.len] = u32::from_le_bytes(*number);
                self.len += 1;
            }
            at += len as u64;
        }
        Ok(())
    }

    /// The pages in ascending order, as ranges, each once.
    pub(super) fn runs(&mut self) -> impl Iterator<Item = (Gpa, u64)> {
        let numbers = &mut self.numbers[..self.len];
        numbers.sort_unstable();
        let follows = |a: &u32, b: &u32| b - a <= 1;
        numbers.chunk_by(follows).filter_map(|run| {
            let (first, last) = (run.first()?, run.last()?);
            let pages = u64::from(last - first) + 1;
            Some((Gpa(u64::from(*first) * PAGE), pages * PAGE))
        })
    }
}

/// Bytes of `struct virtio_balloon_stat` (5.5.6.3): a tag, and a value behind it.
const STATISTIC: usize = 10;
/// More than there are tags.
const MAX_STATISTICS: usize = 32;

/// The statistics of a request.
#[derive(Debug)]
pub(super) struct Statistics {
    bytes: [u8; MAX_STATISTICS * STATISTIC],
    len: usize,
}

impl Statistics {
    /// Tags and values.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, u64)> {
        let (all, _) = self.bytes[..self.len].as_chunks::<STATISTIC>();
        all.iter().map(|&[a, b, c, d, e, f, g, h, i, j]| {
            let value = u64::from_le_bytes([c, d, e, f, g, h, i, j]);
            (u16::from_le_bytes([a, b]), value)
        })
    }
}

/// Reads the statistics of a request, at most 32 of them.
///
/// # Errors
/// If they are not in memory.
pub(super) fn read_statistics(chain: &Chain, dma: &Dma) -> Result<Statistics, RingError> {
    let mut bytes = [0; MAX_STATISTICS * STATISTIC];
    let len = chain.read(dma, 0, &mut bytes)?;
    Ok(Statistics { bytes, len })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_page_is_in_one_run(numbers in proptest::collection::vec(
            prop_oneof![0..20_u32, u32::MAX - 3..=u32::MAX], 0..30,
        )) {
            let mut pages = Pages::default();
            pages.numbers[..numbers.len()].copy_from_slice(&numbers);
            pages.len = numbers.len();
            let mut found = Vec::new();
            let mut end = None;
            for (gpa, len) in pages.runs() {
                prop_assert!(end.is_none_or(|end| end < gpa.0), "runs do not touch");
                end = Some(gpa.0 + len);
                found.extend((gpa.0 / PAGE..(gpa.0 + len) / PAGE).map(|n| u32::try_from(n).unwrap()));
            }
            let all: BTreeSet<_> = numbers.into_iter().collect();
            prop_assert_eq!(found, all.into_iter().collect::<Vec<_>>());
        }
    }
}
