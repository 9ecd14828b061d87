//! Who lies where in guest RAM while a kernel is being loaded: nothing may overlap anything else or leave
//! free RAM.

use std::ops::Range;

use thiserror::Error;

use super::memory_map::{MemoryKind, MemoryRange};
use crate::units::Gpa;

/// Why something cannot lie where it wants to, or anywhere.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ClaimError {
    /// The range is not free RAM.
    #[error(
        "{what} must lie at {start:#x}..{end:#x}, which is not all RAM; the guest has RAM at {ram}: give it \
         more with --memory"
    )]
    NotRam {
        /// What is to be placed.
        what: String,
        /// First address.
        start: u64,
        /// First address after it.
        end: u64,
        /// The free RAM.
        ram: String,
    },
    /// The range is taken.
    #[error(
        "{what} must lie at {start:#x}..{end:#x}, but {other} is already at {other_start:#x}..{other_end:#x}"
    )]
    Taken {
        /// What is to be placed.
        what: String,
        /// First address.
        start: u64,
        /// First address after it.
        end: u64,
        /// What lies there.
        other: String,
        /// Its first address.
        other_start: u64,
        /// The first address after it.
        other_end: u64,
    },
    /// The range wraps around the end of the address space.
    #[error(
        "{what} must lie at {start:#x} with {len:#x} bytes, which is past the end of the address space"
    )]
    Wraps {
        /// What is to be placed.
        what: String,
        /// First address.
        start: u64,
        /// Bytes.
        len: u64,
    },
    /// There is no room.
    #[error(
        "no {len} bytes of RAM in one piece are free at {start:#x}..{end:#x} for {what}: give the guest \
         more with --memory"
    )]
    NoRoom {
        /// What is to be placed.
        what: String,
        /// Bytes.
        len: u64,
        /// The lowest address it may have.
        start: u64,
        /// The first address after what it may have.
        end: u64,
    },
}

/// The free RAM and what has been placed in it.
#[derive(Clone, Debug)]
pub struct Claims {
    ram: Vec<Range<u64>>,
    /// Sorted by address, disjoint.
    taken: Vec<(Range<u64>, String)>,
}

impl Claims {
    /// All RAM of `map` is free.
    pub fn new(map: &[MemoryRange]) -> Self {
        Self {
            ram: map
                .iter()
                .filter(|range| range.kind == MemoryKind::Ram)
                .map(|range| range.start..range.end())
                .collect(),
            taken: Vec::new(),
        }
    }

    /// Places `what` at `start`.
    ///
    /// # Errors
    /// If that is not free RAM.
    pub fn at(&mut self, what: &str, start: u64, len: u64) -> Result<Gpa, ClaimError> {
        let Some(end) = start.checked_add(len) else {
            return Err(ClaimError::Wraps {
                what: what.to_owned(),
                start,
                len,
            });
        };
        if !self
            .ram
            .iter()
            .any(|ram| ram.start <= start && end <= ram.end)
        {
            let ram: Vec<_> = self
                .ram
                .iter()
                .map(|ram| format!("{:#x}..{:#x}", ram.start, ram.end))
                .collect();
            return Err(ClaimError::NotRam {
                what: what.to_owned(),
                start,
                end,
                ram: ram.join(", "),
            });
        }
        let position = self.taken.partition_point(|(range, _)| range.end <= start);
        if let Some((other, name)) = self.taken.get(position)
            && other.start < end
        {
            return Err(ClaimError::Taken {
                what: what.to_owned(),
                start,
                end,
                other: name.clone(),
                other_start: other.start,
                other_end: other.end,
            });
        }
        if len > 0 {
            self.taken.insert(position, (start..end, what.to_owned()));
        }
        Ok(Gpa(start))
    }

    /// Places `what` as low as possible in `within`, aligned to `align` (a power of two).
    ///
    /// # Errors
    /// If there is no room.
    pub fn lowest(
        &mut self,
        what: &str,
        len: u64,
        align: u64,
        within: &Range<u64>,
    ) -> Result<Gpa, ClaimError> {
        let start = self.gaps(within).find_map(|gap| {
            let start = gap.start.checked_next_multiple_of(align)?;
            (start.checked_add(len)? <= gap.end).then_some(start)
        });
        self.place(what, start, len, within)
    }

    /// Places `what` as high as possible in `within`, aligned to `align` (a power of two).
    ///
    /// # Errors
    /// If there is no room.
    pub fn highest(
        &mut self,
        what: &str,
        len: u64,
        align: u64,
        within: &Range<u64>,
    ) -> Result<Gpa, ClaimError> {
        let start = self
            .gaps(within)
            .filter_map(|gap| {
                let last = gap.end.checked_sub(len)?;
                let start = last - last % align;
                (start >= gap.start).then_some(start)
            })
            .last();
        self.place(what, start, len, within)
    }

    fn place(
        &mut self,
        what: &str,
        start: Option<u64>,
        len: u64,
        within: &Range<u64>,
    ) -> Result<Gpa, ClaimError> {
        match start {
            Some(start) => self.at(what, start, len),
            None => Err(ClaimError::NoRoom {
                what: what.to_owned(),
                len,
                start: within.start,
                end: within.end,
            }),
        }
    }

    /// The free pieces of RAM in `within`, low to high.
    fn gaps(&self, within: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let within = within.clone();
        self.ram
            .iter()
            .flat_map(|ram| {
                let inside = self
                    .taken
                    .iter()
                    .map(|(range, _)| range)
                    .filter(|range| ram.start <= range.start && range.end <= ram.end);
                let starts =
                    std::iter::once(ram.start).chain(inside.clone().map(|range| range.end));
                let ends = inside.map(|range| range.start).chain([ram.end]);
                starts.zip(ends)
            })
            .map(move |(start, end)| start.max(within.start)..end.min(within.end))
            .filter(|gap| gap.start < gap.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claims(ram: &[Range<u64>]) -> Claims {
        let map: Vec<_> = ram
            .iter()
            .map(|range| MemoryRange {
                start: range.start,
                len: range.end - range.start,
                kind: MemoryKind::Ram,
            })
            .collect();
        Claims::new(&map)
    }

    #[test]
    fn a_fixed_claim_wants_free_ram() {
        let mut claims = claims(&[0x1000..0x9000, 0x10_0000..0x20_0000]);
        assert_eq!(claims.at("a", 0x2000, 0x1000), Ok(Gpa(0x2000)));
        assert_eq!(claims.at("b", 0x3000, 0x1000), Ok(Gpa(0x3000)));
        let error = claims.at("c", 0x2fff, 2).unwrap_err();
        assert_eq!(
            error.to_string(),
            "c must lie at 0x2fff..0x3001, but a is already at 0x2000..0x3000"
        );
        assert!(matches!(
            claims.at("d", 0x8fff, 2),
            Err(ClaimError::NotRam { .. })
        ));
        assert!(matches!(
            claims.at("e", u64::MAX, 2),
            Err(ClaimError::Wraps { .. })
        ));
    }

    #[test]
    fn free_claims_take_the_lowest_or_highest_gap() {
        let mut claims = claims(&[0x1000..0x9000, 0x10_0000..0x20_0000]);
        let all = 0..u64::MAX;
        claims.at("a", 0x1000, 0x800).unwrap();
        assert_eq!(claims.lowest("b", 0x1000, 0x1000, &all), Ok(Gpa(0x2000)));
        assert_eq!(claims.lowest("c", 0x700, 0x10, &all), Ok(Gpa(0x1800)));
        assert_eq!(
            claims.highest("d", 0x1001, 0x1000, &all),
            Ok(Gpa(0x1f_e000))
        );
        assert_eq!(
            claims.highest("e", 0x10, 0x10, &(0..0x9000)),
            Ok(Gpa(0x8ff0))
        );
        assert_eq!(claims.lowest("f", 0x9000, 0x1000, &all), Ok(Gpa(0x10_0000)));
        let error = claims.lowest("g", 0x10_0000, 1, &all).unwrap_err();
        assert!(
            error.to_string().starts_with("no 1048576 bytes of RAM"),
            "{error}"
        );
        assert!(claims.highest("h", u64::MAX, 0x1000, &all).is_err());
    }

    proptest! {
        #[test]
        fn claims_never_overlap_and_stay_in_ram(
            wishes in proptest::collection::vec((0_u8..3, 0_u64..0x12_0000, 0_u64..0x2_0000, 0_u32..14),
                1..60),
        ) {
            let ram = [0x1000..0x9_f000, 0x10_0000..0x20_0000];
            let mut claims = claims(&ram);
            let mut placed: Vec<Range<u64>> = Vec::new();
            for (how, start, len, shift) in wishes {
                let align = 1_u64 << shift;
                let within = start..0x1f_0000;
                let got = match how {
                    0 => claims.at("x", start, len),
                    1 => claims.lowest("x", len, align, &within),
                    _ => claims.highest("x", len, align, &within),
                };
                if let Ok(Gpa(at)) = got {
                    let range = at..at + len;
                    prop_assert!(ram.iter().any(|r| r.start <= range.start && range.end <= r.end));
                    prop_assert!(how == 0 || (at % align == 0 && within.start <= at
                        && range.end <= within.end));
                    for other in placed.iter().filter(|_| len > 0) {
                        prop_assert!(range.end <= other.start || other.end <= range.start);
                    }
                    if len > 0 { placed.push(range); }
                }
            }
        }
    }
}
