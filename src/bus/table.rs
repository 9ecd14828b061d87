//! The published table: which address leads where. Pure.

use std::sync::Arc;

use super::{Handler, Region};

/// Addresses `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Range {
    /// `None` if it is empty or wraps.
    pub(super) fn new(first: u64, len: u64) -> Option<Self> {
        let last = first.checked_add(len.checked_sub(1)?)?;
        Some(Self { first, last })
    }

    pub(super) fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// A region at its place.
#[derive(Clone)]
pub(super) struct Placement {
    pub(super) range: Range,
    pub(super) name: Arc<str>,
    pub(super) region: Region,
    pub(super) handler: Arc<dyn Handler>,
}

/// A part of a placement that is decoded.
struct Segment {
    range: Range,
    of: Placement,
}

/// All that is decoded: no two segments overlap, and they are in address order.
#[derive(Default)]
pub(super) struct Table(Vec<Segment>);

impl Table {
    /// Of placements that may overlap: each gets what those before it leave.
    pub(super) fn new<'a>(by_priority: impl Iterator<Item = &'a Placement>) -> Self {
        let mut table = Self::default();
        for placement in by_priority {
            table.add(placement);
        }
        table
    }

    /// Puts `placement` into the gaps that are left of its range.
    fn add(&mut self, placement: &Placement) {
        let mut at = self.after(placement.range.first);
        let mut next = placement.range.first;
        loop {
            let end = match self.0.get(at) {
                Some(taken) if taken.range.first <= placement.range.last => taken.range,
                _ => {
                    let rest = Range {
                        first: next,
                        last: placement.range.last,
                    };
                    self.insert(at, rest, placement);
                    return;
                }
            };
            if next < end.first {
                let gap = Range {
                    first: next,
                    last: end.first - 1,
                };
                self.insert(at, gap, placement);
                at += 1;
            }
            at += 1;
            if end.last >= placement.range.last {
                return;
            }
            next = end.last + 1;
        }
    }

    fn insert(&mut self, at: usize, range: Range, of: &Placement) {
        let of = of.clone();
        self.0.insert(at, Segment { range, of });
    }

    /// The first segment that does not end before `addr`.
    fn after(&self, addr: u64) -> usize {
        self.0.partition_point(|segment| segment.range.last < addr)
    }

    /// See [`super::Bus::read`].
    pub(super) fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let Some((handler, region, offset)) = self.find(addr) else {
            return false;
        };
        handler.read(region, offset, data);
        true
    }

    /// See [`super::Bus::write`].
    pub(super) fn write(&self, addr: u64, data: &[u8]) -> bool {
        let Some((handler, region, offset)) = self.find(addr) else {
            return false;
        };
        handler.write(region, offset, data);
        true
    }

    /// Whose region has `addr`, and at which offset.
    fn find(&self, addr: u64) -> Option<(&dyn Handler, Region, u64)> {
        let segment = self.0.get(self.after(addr))?;
        (segment.range.first <= addr).then(|| {
            let of = &segment.of;
            (&*of.handler, of.region, addr - of.range.first)
        })
    }

    pub(super) fn ranges(&self) -> impl Iterator<Item = (u64, u64, Arc<str>)> {
        let each = self.0.iter();
        each.map(|s| (s.range.first, s.range.last, Arc::clone(&s.of.name)))
    }
}
