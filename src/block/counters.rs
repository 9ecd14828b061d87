//! What a disk shows of itself: written by its controller, read by others at any time.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::throttle::Limits;
use super::{DiskReport, ThrottleReport};

/// The kinds of requests that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// The guest reads.
    Read,
    /// The guest writes.
    Write,
    /// What the guest has written becomes durable.
    Flush,
    /// Blocks are no longer needed.
    Discard,
    /// Blocks are zeroed.
    WriteZeroes,
}

/// The values. Its controller alone writes them, under its own lock.
#[derive(Debug, Default)]
pub struct DiskCounters {
    size: AtomicU64,
    kinds: [OfKind; 5],
    invalid: AtomicU64,
    in_flight: AtomicU64,
    paused: AtomicBool,
    iops: AtomicU64,
    bps: AtomicU64,
    held: AtomicU64,
}

#[derive(Debug, Default)]
struct OfKind {
    operations: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
    failed: AtomicU64,
}

impl DiskCounters {
    /// The disk has so many bytes.
    pub fn set_size(&self, size: u64) {
        self.size.store(size, Relaxed);
    }

    /// So many requests are under way on the host.
    pub fn set_in_flight(&self, requests: usize) {
        self.in_flight.store(requests as u64, Relaxed);
    }

    /// An error has paused the VM, or it was resumed.
    pub fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Relaxed);
    }

    /// These limits hold.
    pub fn set_limits(&self, limits: Limits) {
        for (shown, limit) in [(&self.iops, limits.iops), (&self.bps, limits.bps)] {
            shown.store(limit.map_or(0, NonZeroU64::get), Relaxed);
        }
    }

    /// Requests have to wait because of a limit.
    pub fn held(&self) {
        self.held.fetch_add(1, Relaxed);
    }

    /// A request for `bytes` was carried out in `time`.
    pub fn done(&self, kind: Counted, bytes: u64, time: Duration) {
        let of_kind = &self.kinds[kind as usize];
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        for (counter, more) in [
            (&of_kind.operations, 1),
            (&of_kind.bytes, bytes),
            (&of_kind.nanoseconds, nanoseconds),
        ] {
            counter.fetch_add(more, Relaxed);
        }
    }

    /// The guest got an error of the host.
    pub fn failed(&self, kind: Counted) {
        self.kinds[kind as usize].failed.fetch_add(1, Relaxed);
    }

    /// The guest asked for what the disk does not have.
    pub fn invalid(&self) {
        self.invalid.fetch_add(1, Relaxed);
    }

    /// The values now. They need not be of one instant.
    pub fn report(&self) -> DiskReport {
        let of = |kind: Counted| &self.kinds[kind as usize];
        let operations = |kind| of(kind).operations.load(Relaxed);
        let bytes = |kind| of(kind).bytes.load(Relaxed);
        let time = |kind| of(kind).nanoseconds.load(Relaxed);
        let failed = |kind| of(kind).failed.load(Relaxed);
        use Counted::{Discard, Flush, Read, Write, WriteZeroes};
        DiskReport {
            size: self.size.load(Relaxed),
            rd_bytes: bytes(Read),
            rd_operations: operations(Read),
            rd_total_time_ns: time(Read),
            wr_bytes: bytes(Write),
            wr_operations: operations(Write),
            wr_total_time_ns: time(Write),
            flush_operations: operations(Flush),
            flush_total_time_ns: time(Flush),
            unmap_bytes: bytes(Discard),
            unmap_operations: operations(Discard),
            zero_bytes: bytes(WriteZeroes),
            zero_operations: operations(WriteZeroes),
            failed_rd_operations: failed(Read),
            failed_wr_operations: failed(Write),
            failed_flush_operations: failed(Flush),
            failed_unmap_operations: failed(Discard),
            failed_zero_operations: failed(WriteZeroes),
            invalid_operations: self.invalid.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            paused: self.paused.load(Relaxed),
            throttle: ThrottleReport {
                iops: self.iops.load(Relaxed),
                bps: self.bps.load(Relaxed),
                held: self.held.load(Relaxed),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_own_numbers() {
        use Counted::{Discard, Flush, Read, Write, WriteZeroes};
        let counters = DiskCounters::default();
        for (n, kind) in (1..).zip([Read, Write, Flush, Discard, WriteZeroes]) {
            for _ in 0..n {
                counters.done(kind, 512 * n, Duration::from_nanos(n));
            }
            counters.failed(kind);
        }
        counters.failed(Flush);
        counters.invalid();
        let expected = DiskReport {
            rd_bytes: 512,
            rd_operations: 1,
            rd_total_time_ns: 1,
            wr_bytes: 2048,
            wr_operations: 2,
            wr_total_time_ns: 4,
            flush_operations: 3,
            flush_total_time_ns: 9,
            unmap_bytes: 8192,
            unmap_operations: 4,
            zero_bytes: 12800,
            zero_operations: 5,
            failed_rd_operations: 1,
            failed_wr_operations: 1,
            failed_flush_operations: 2,
            failed_unmap_operations: 1,
            failed_zero_operations: 1,
            invalid_operations: 1,
            ..DiskReport::default()
        };
        assert_eq!(counters.report(), expected);
        counters.set_size(4096);
        counters.set_in_flight(7);
        counters.set_paused(true);
        counters.set_limits(Limits {
            iops: None,
            bps: NonZeroU64::new(9),
        });
        counters.held();
        let expected = DiskReport {
            size: 4096,
            in_flight: 7,
            paused: true,
            throttle: ThrottleReport {
                iops: 0,
                bps: 9,
                held: 1,
            },
            ..expected
        };
        assert_eq!(counters.report(), expected);
    }
}
