//! Sets of guest pages: which ones were written since somebody last looked.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::RamPiece;
use crate::units::Gpa;

/// The page size that KVM logs in and everything here is counted in.
pub const PAGE: u64 = 4096;
const WORD: u64 = u64::BITS as u64;

/// Consecutive guest pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first page's address.
    pub gpa: Gpa,
    /// How many.
    pub pages: u64,
}

#[derive(Clone, Debug)]
struct Piece {
    gpa: u64,
    pages: u64,
    words: Vec<u64>,
}

/// A set of guest pages.
#[derive(Clone, Debug, Default)]
pub struct PageSet {
    pieces: Vec<Piece>,
}

impl PageSet {
    /// None of the pages of `pieces`.
    pub fn none(pieces: impl IntoIterator<Item = RamPiece>) -> Self {
        Self {
            pieces: pieces
                .into_iter()
                .map(|piece| {
                    let pages = piece.len / PAGE;
                    Piece {
                        gpa: piece.gpa.0,
                        pages,
                        words: vec![0; words(pages)],
                    }
                })
                .collect(),
        }
    }

    /// Adds all pages.
    pub fn fill(&mut self) {
        for piece in &mut self.pieces {
            piece.words.fill(u64::MAX);
            piece.trim();
        }
    }

    /// Takes all pages away.
    pub fn clear(&mut self) {
        for piece in &mut self.pieces {
            piece.words.fill(0);
        }
    }

    /// Adds page number `page` of piece number `piece`; what is not there is left out.
    pub fn insert(&mut self, piece: usize, page: u64) {
        if let Some(piece) = self.pieces.get_mut(piece)
            && page < piece.pages
            && let Some(word) = word_mut(&mut piece.words, page / WORD)
        {
            *word |= 1 << (page % WORD);
        }
    }

    /// Adds the pages of piece number `piece` that `bytes` of it touch.
    fn insert_range(&mut self, piece: usize, bytes: Range<u64>) {
        let Some(there) = self.pieces.get_mut(piece) else {
            return;
        };
        let end = bytes.end.div_ceil(PAGE).min(there.pages);
        let mut page = bytes.start / PAGE;
        while page < end {
            let Some(word) = word_mut(&mut there.words, page / WORD) else {
                return;
            };
            let in_word = (end - page).min(WORD - page % WORD);
            *word |= (u64::MAX >> (WORD - in_word)) << (page % WORD);
            page += in_word;
        }
    }

    /// Adds the pages that `bytes` of guest memory touch.
    pub fn insert_all(&mut self, bytes: Range<Gpa>) {
        for number in 0..self.pieces.len() {
            let (gpa, len) = (self.pieces[number].gpa, self.pieces[number].pages * PAGE);
            let start = bytes.start.0.saturating_sub(gpa).min(len);
            let end = bytes.end.0.saturating_sub(gpa).min(len);
            if start < end {
                self.insert_range(number, start..end);
            }
        }
    }

    /// Adds the pages of piece number `piece` whose bits are set in `bitmap`, which is in KVM's order.
    pub fn insert_bitmap(&mut self, piece: usize, bitmap: &[u64]) {
        if let Some(piece) = self.pieces.get_mut(piece) {
            for (word, more) in piece.words.iter_mut().zip(bitmap) {
                *word |= more;
            }
            piece.trim();
        }
    }

    /// Adds the pages of `other`, which is of the same RAM.
    pub fn insert_set(&mut self, other: &Self) {
        for (piece, other) in self.pieces.iter_mut().zip(&other.pieces) {
            for (word, more) in piece.words.iter_mut().zip(&other.words) {
                *word |= more;
            }
        }
    }

    /// How many pages there are.
    pub fn count(&self) -> u64 {
        let words = self.pieces.iter().flat_map(|piece| &piece.words);
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        let mut words = self.pieces.iter().flat_map(|piece| &piece.words);
        words.all(|&word| word == 0)
    }

    /// How many pages each piece has, and how many words its bitmap.
    pub fn bitmap_words(&self) -> impl Iterator<Item = usize> {
        self.pieces.iter().map(|piece| piece.words.len())
    }

    /// The pages in ascending order, as runs of at most `longest` that do not cross a multiple of it.
    pub fn runs(&self, longest: u64) -> impl Iterator<Item = Run> {
        let longest = longest.max(1);
        self.pieces.iter().flat_map(move |piece| {
            let mut at = 0;
            std::iter::from_fn(move || {
                let run = piece.next_run(at, longest)?;
                at = run.end;
                Some(Run {
                    gpa: Gpa(piece.gpa + run.start * PAGE),
                    pages: run.end - run.start,
                })
            })
        })
    }
}

impl Piece {
    /// Takes away what is past the last page.
    fn trim(&mut self) {
        let rest = self.pages % WORD;
        if rest != 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << rest) - 1;
        }
    }

    fn next_run(&self, from: u64, longest: u64) -> Option<Range<u64>> {
        let start = self.next(from, |word| word)?;
        let end = self.next(start, |word| !word).unwrap_or(self.pages);
        let boundary = (start / longest + 1) * longest;
        Some(start..end.min(boundary).min(self.pages))
    }

    /// The first page from `from` on whose bit is set in what `view` makes of its word.
    fn next(&self, from: u64, view: impl Fn(u64) -> u64) -> Option<u64> {
        let first = usize::try_from(from / WORD).ok()?;
        let mut mask = u64::MAX << (from % WORD);
        for (index, &word) in (from / WORD..).zip(self.words.get(first..)?) {
            let found = view(word) & mask;
            if found != 0 {
                return Some(index * WORD + u64::from(found.trailing_zeros()));
            }
            mask = u64::MAX;
        }
        None
    }
}

fn words(pages: u64) -> usize {
    usize::try_from(pages.div_ceil(WORD)).expect("RAM is mapped, so its pages can be counted")
}

fn word_mut(words: &mut [u64], index: u64) -> Option<&mut u64> {
    words.get_mut(usize::try_from(index).ok()?)
}

#[derive(Debug)]
struct SharedPiece {
    gpa: u64,
    len: u64,
    words: Vec<AtomicU64>,
}

/// Pages that were written, marked by many and collected by one. Marking takes no lock, and costs one load
/// while nobody collects.
#[derive(Debug)]
pub struct WrittenPages {
    on: AtomicBool,
    pieces: Vec<SharedPiece>,
}

impl WrittenPages {
    /// For the pages of `pieces`; nobody collects yet.
    pub fn new(pieces: impl IntoIterator<Item = RamPiece>) -> Self {
        Self {
            on: AtomicBool::new(false),
            pieces: pieces
                .into_iter()
                .map(|piece| SharedPiece {
                    gpa: piece.gpa.0,
                    len: piece.len,
                    words: (0..words(piece.len / PAGE))
                        .map(|_| AtomicU64::new(0))
                        .collect(),
                })
                .collect(),
        }
    }

    /// Begins or ends to collect.
    pub fn switch(&self, on: bool) {
        self.on.store(on, Ordering::SeqCst);
        if !on {
            self.take(|_, _, _| {});
        }
    }

    /// The `len` bytes from `gpa` on have been written. After they have been: a page that is taken too early
    /// is taken again.
    pub fn mark(&self, gpa: Gpa, len: u64) {
        if !self.on.load(Ordering::SeqCst) {
            return;
        }
        let end = gpa.0.saturating_add(len);
        for piece in &self.pieces {
            let first = gpa.0.max(piece.gpa);
            let last = end.min(piece.gpa + piece.len);
            if first < last {
                for page in (first - piece.gpa) / PAGE..=(last - 1 - piece.gpa) / PAGE {
                    piece.mark(page);
                }
            }
        }
    }

    /// Page number `page` of piece number `piece` has been written, whether anybody collects or not.
    pub fn mark_page(&self, piece: usize, page: u64) {
        if let Some(piece) = self.pieces.get(piece) {
            piece.mark(page);
        }
    }

    /// Moves all marks into `set`, which is of the same RAM.
    pub fn collect(&self, set: &mut PageSet) {
        self.take(|piece, index, word| {
            if let Some(piece) = set.pieces.get_mut(piece)
                && let Some(there) = piece.words.get_mut(index)
            {
                *there |= word;
            }
        });
        for piece in &mut set.pieces {
            piece.trim();
        }
    }

    fn take(&self, mut each: impl FnMut(usize, usize, u64)) {
        for (number, piece) in self.pieces.iter().enumerate() {
            for (index, word) in piece.words.iter().enumerate() {
                // Most words are empty; a plain load leaves their cache lines shared.
                if word.load(Ordering::Relaxed) != 0 {
                    each(number, index, word.swap(0, Ordering::SeqCst));
                }
            }
        }
    }
}

impl SharedPiece {
    fn mark(&self, page: u64) {
        let word = usize::try_from(page / WORD).ok();
        if let Some(word) = word.and_then(|index| self.words.get(index)) {
            word.fetch_or(1 << (page % WORD), Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn pieces(lengths: &[(u64, u64)]) -> Vec<RamPiece> {
        lengths
            .iter()
            .map(|&(gpa, pages)| RamPiece {
                gpa: Gpa(gpa),
                len: pages * PAGE,
                host: 0,
            })
            .collect()
    }

    fn list(set: &PageSet, longest: u64) -> Vec<(u64, u64)> {
        let runs = set.runs(longest);
        runs.map(|run| (run.gpa.0 / PAGE, run.pages)).collect()
    }

    #[test]
    fn runs_end_at_gaps_pieces_and_the_longest() {
        let mut set = PageSet::none(pieces(&[(0, 130), (1 << 32, 3)]));
        assert!(set.is_empty());
        for page in [0, 1, 63, 64, 65, 127, 128, 129, 130, 5000] {
            set.insert(0, page);
        }
        set.insert(1, 2);
        set.insert(2, 0);
        let high = (1 << 32) / PAGE;
        assert_eq!(list(&set, 1000), [(0, 2), (63, 3), (127, 3), (high + 2, 1)]);
        assert_eq!(
            list(&set, 64),
            [(0, 2), (63, 1), (64, 2), (127, 1), (128, 2), (high + 2, 1)]
        );
        assert_eq!(set.count(), 9);
        set.fill();
        assert_eq!(set.count(), 133);
        assert_eq!(list(&set, 1000), [(0, 130), (high, 3)]);
        set.clear();
        assert!(set.is_empty());
        set.insert_bitmap(1, &[u64::MAX, 1]);
        assert_eq!(list(&set, 2), [(high, 2), (high + 2, 1)]);
    }

    #[test]
    fn ranges_hold_every_page_that_they_touch() {
        let mut set = PageSet::none(pieces(&[(0, 300)]));
        set.insert_range(0, 5 * PAGE + 1..6 * PAGE + 1);
        set.insert_range(0, 64 * PAGE..200 * PAGE);
        set.insert_range(0, 299 * PAGE..u64::MAX);
        set.insert_range(0, 7 * PAGE..7 * PAGE);
        set.insert_range(1, 0..PAGE);
        assert_eq!(list(&set, 1000), [(5, 2), (64, 136), (299, 1)]);
        let mut set = PageSet::none(pieces(&[(0, 3), (1 << 32, 2)]));
        set.insert_all(Gpa(2 * PAGE + 5)..Gpa((1 << 32) + 1));
        assert_eq!(list(&set, 9), [(2, 1), ((1 << 32) / PAGE, 1)]);
    }

    #[test]
    fn writes_are_marked_while_somebody_collects() {
        let written = WrittenPages::new(pieces(&[(0, 100), (1 << 32, 2)]));
        let mut set = PageSet::none(pieces(&[(0, 100), (1 << 32, 2)]));
        written.mark(Gpa(0), PAGE);
        written.collect(&mut set);
        assert!(set.is_empty());
        written.switch(true);
        written.mark(Gpa(PAGE - 1), 2);
        written.mark(Gpa(70 * PAGE), 1);
        written.mark(Gpa(71 * PAGE), 0);
        written.mark(Gpa((1 << 32) + PAGE), 100 * PAGE);
        written.mark(Gpa(u64::MAX), 100);
        written.mark_page(0, 99);
        written.mark_page(7, 99);
        written.collect(&mut set);
        let high = (1 << 32) / PAGE;
        assert_eq!(list(&set, 64), [(0, 2), (70, 1), (99, 1), (high + 1, 1)]);
        set.clear();
        written.collect(&mut set);
        assert!(set.is_empty());
        written.mark(Gpa(0), 1);
        written.switch(false);
        written.switch(true);
        written.collect(&mut set);
        assert!(set.is_empty());
    }

    proptest! {
        #[test]
        fn runs_hold_exactly_the_pages_of_the_set(
            pages in proptest::collection::btree_set(0_u64..300, 0..80), longest in 1_u64..100
        ) {
            let mut set = PageSet::none(pieces(&[(0x10_0000, 300)]));
            for &page in &pages {
                set.insert(0, page);
            }
            let mut seen = BTreeSet::new();
            for run in set.runs(longest) {
                let first = (run.gpa.0 - 0x10_0000) / PAGE;
                prop_assert!(run.pages >= 1 && run.pages <= longest);
                for page in first..first + run.pages {
                    prop_assert!(seen.insert(page));
                }
            }
            prop_assert_eq!(seen, pages);
        }
    }
}
